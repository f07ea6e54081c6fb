//! Huffman codes: the bits of a scan, tables made for looking up, and the coefficients of sequential scans.

use super::idct::Block;
use super::scan::Coder;
use super::stream::{Fault, HuffmanSpec, Stream, Tables, ZIGZAG, damaged};

/// Bits looked up at once for a symbol.
const LOOKUP: u32 = 9;
/// Bits looked up at once for a symbol together with the value that follows it.
const FAST: u32 = 10;

/// The bits of a scan up to the next marker, after which zeros are read. It copies cheaply, so that a loop can keep it in registers.
#[derive(Clone, Copy)]
pub(super) struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, highest first. Below the `left` highest stand bits that follow them, or zeros.
    bits: u64,
    /// Bits read from the file and not used; below 0 once zeros were used that are not in the file.
    left: i32,
    marker: u8,
    /// Whether the file ended.
    ended: bool,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(stream: &Stream<'a>) -> Self {
        Self {
            bytes: stream.bytes,
            at: stream.at,
            bits: 0,
            left: 0,
            marker: stream.marker,
            ended: false,
        }
    }

    /// Says where reading goes on; bits that were not used are dropped.
    pub(super) fn leave(&self, stream: &mut Stream) {
        stream.at = self.at;
        stream.marker = self.marker;
    }

    /// Whether the file ended before a marker came, or is about to.
    pub(super) fn is_near_end(&self) -> bool {
        self.ended || self.marker == 0 && self.bytes.len() - self.at < 16
    }

    /// Makes at least 32 bits ready: a code and the value behind it.
    #[inline(always)]
    pub(super) fn fill(&mut self) {
        if self.left < 32 {
            self.fill_more();
        }
    }

    #[inline(always)]
    fn fill_more(&mut self) {
        if self.marker == 0
            && let Some(chunk) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>())
        {
            let word = u64::from_be_bytes(*chunk);
            let has_marker = (!word).wrapping_sub(0x0101_0101_0101_0101) & word & 0x8080_8080_8080_8080;
            if has_marker == 0 {
                self.bits |= word >> self.left;
                let taken = (63 - self.left) >> 3;
                self.at += taken as usize;
                self.left += taken * 8;
                return;
            }
        }
        *self = self.filled_slowly();
    }

    /// Byte by byte: 0xFF with 0 behind is a byte of data, with anything else a marker.
    #[cold]
    #[inline(never)]
    fn filled_slowly(mut self) -> Self {
        while self.left < 56 && self.marker == 0 && !self.ended {
            let mut next = || {
                let byte = self.bytes.get(self.at).copied();
                self.at += usize::from(byte.is_some());
                self.ended |= byte.is_none();
                byte.unwrap_or(0)
            };
            let mut byte = next();
            if byte == 0xFF {
                while byte == 0xFF {
                    byte = next();
                }
                self.marker = byte;
                byte = 0xFF;
            }
            if self.marker == 0 && !self.ended {
                self.bits |= u64::from(byte) << (56 - self.left);
                self.left += 8;
            }
        }
        self
    }

    #[inline(always)]
    fn skip(&mut self, count: u32) {
        self.bits <<= count;
        self.left -= count as i32;
    }

    /// The next `count` bits, at most 16, of those that [`Self::fill`] made ready.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> i32 {
        let value = (self.bits >> 1 >> (63 - count)) as i32;
        self.skip(count);
        value
    }

    /// The next `count` bits as a signed value: those that begin with 0 are negative.
    #[inline(always)]
    pub(super) fn take_signed(&mut self, count: u32) -> i32 {
        let value = self.take(count);
        signed(value, count)
    }

    /// A difference between samples, of up to 16 bits.
    pub(super) fn difference(&mut self, table: &Table) -> u16 {
        self.fill();
        match self.symbol(table) {
            16 => 0x8000,
            size => self.take_signed(size.into()) as u16,
        }
    }

    #[inline(always)]
    pub(super) fn symbol(&mut self, table: &Table) -> u8 {
        let [symbol, length] = table.lookup[(self.bits >> (64 - LOOKUP)) as usize].to_le_bytes();
        if length != 0 {
            self.skip(length.into());
            return symbol;
        }
        let (symbol, length) = table.long((self.bits >> 48) as i32);
        self.skip(length);
        symbol
    }

    /// To be asked after each MCU: whether it used bits that are not there, up to a marker. From then on, all are zeros.
    ///
    /// # Errors
    /// [`Fault::Ended`] where the file ended instead.
    #[inline(always)]
    pub(super) fn has_run_out(&mut self) -> Result<bool, Fault> {
        if self.left >= 0 {
            return Ok(false);
        }
        if self.ended {
            return Err(Fault::Ended);
        }
        self.left = 0;
        Ok(true)
    }

    /// Reads the restart marker that is due; whether bits follow it.
    pub(super) fn restart(&mut self, stream: &mut Stream<'a>) -> Result<bool, Fault> {
        self.leave(stream);
        stream.read_restart()?;
        *self = Self::new(stream);
        Ok(self.marker == 0)
    }
}

fn signed(value: i32, count: u32) -> i32 {
    match count {
        0 => 0,
        _ if value < 1 << (count - 1) => value - (1 << count) + 1,
        _ => value,
    }
}

/// What the symbols of a table stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Lengths of differences between means, up to 15 bits.
    Means,
    /// Lengths of differences between samples, up to 16 bits.
    Differences,
    /// Runs and lengths of coefficients.
    Band,
}

/// A Huffman table, made for looking up.
pub(super) struct Table {
    /// By the next [`LOOKUP`] bits: the symbol, and its length; a length of 0 for longer codes.
    lookup: [u16; 1 << LOOKUP],
    /// By the next [`FAST`] bits, where they hold a symbol and its value: the bits of both, the coefficients passed over
    /// (64 at the end of a block) and the value. 0 where they do not.
    fast: [i32; 1 << FAST],
    /// The last code of each length, -1 for none.
    last: [i32; 17],
    /// What is added to a code of each length for its symbol's place.
    offset: [i32; 17],
    symbols: [u8; 256],
}

impl Table {
    pub(super) fn new(spec: &HuffmanSpec, purpose: Use) -> Result<Box<Self>, Fault> {
        let mut table = Box::new(Self {
            lookup: [0; 1 << LOOKUP],
            fast: [0; 1 << FAST],
            last: [-1; 17],
            offset: [0; 17],
            symbols: spec.symbols,
        });
        let (mut code, mut place) = (0_i32, 0_usize);
        for length in 1..=16_u32 {
            let count = usize::from(spec.counts[length as usize]);
            if place + count > 256 {
                return damaged("a Huffman table of more than 256 codes");
            }
            if count > 0 {
                table.offset[length as usize] = place as i32 - code;
                for symbol in &spec.symbols[place..place + count] {
                    table.enter(*symbol, code, length, purpose);
                    code += 1;
                }
                place += count;
                table.last[length as usize] = code - 1;
                // No code may be all ones.
                if code >= 1 << length {
                    return damaged("a Huffman table whose codes do not fit their lengths");
                }
            }
            code <<= 1;
        }
        let max = match purpose {
            Use::Means => 15,
            Use::Differences => 16,
            Use::Band => 255,
        };
        if spec.symbols[..place].iter().any(|&symbol| symbol > max) {
            return damaged(format!("a Huffman table of values above {max} bits"));
        }
        Ok(table)
    }

    fn enter(&mut self, symbol: u8, code: i32, length: u32, purpose: Use) {
        let is_band = purpose == Use::Band;
        if length <= LOOKUP && code < 1 << length {
            let free = LOOKUP - length;
            let first = (code as usize) << free;
            self.lookup[first..first + (1 << free)].fill(u16::from_le_bytes([symbol, length as u8]));
        }
        let (run, size) = match is_band {
            true => (u32::from(symbol >> 4), u32::from(symbol & 15)),
            false => (0, u32::from(symbol)),
        };
        let bits = length + size;
        if bits > FAST || code >= 1 << length {
            return;
        }
        let run = match (is_band, run, size) {
            (true, 15, 0) => 16,
            (true, _, 0) => 64,
            _ => run,
        };
        let free = FAST - bits;
        for value in 0..1 << size {
            let first = ((code << size | value) as usize) << free;
            let entry = signed(value, size) << 16 | (run << 8 | bits) as i32;
            self.fast[first..first + (1 << free)].fill(entry);
        }
    }

    /// The symbol and length of the code that the next eight bits begin with, if it is no longer than they.
    pub(super) fn short(&self, next: u8) -> Option<(u8, u32)> {
        let [symbol, length] = self.lookup[usize::from(next) << (LOOKUP - 8)].to_le_bytes();
        matches!(length, 1..=8).then_some((symbol, length.into()))
    }

    /// The symbol of a code, if one of that length can be.
    pub(super) fn of_length(&self, code: i32, length: u32) -> Option<u8> {
        let length = length as usize;
        if length > 16 || code > self.last[length] {
            return None;
        }
        Some(self.symbols[((code + self.offset[length]) & 0xFF) as usize])
    }

    /// The symbol and length of a code of more than [`LOOKUP`] bits, from the next 16. What is no code reads as 17 bits
    /// and 0.
    #[cold]
    fn long(&self, bits: i32) -> (u8, u32) {
        for length in LOOKUP + 1..=16 {
            if let Some(symbol) = self.of_length(bits >> (16 - length), length) {
                return (symbol, length);
            }
        }
        (0, 17)
    }
}

/// The table of that number.
pub(super) fn table(tables: &Tables, number: u8, purpose: Use) -> Result<Box<Table>, Fault> {
    let (defined, kind) = match purpose {
        Use::Band => (&tables.ac, "coefficients"),
        Use::Means | Use::Differences => (&tables.dc, "means"),
    };
    match defined.get(usize::from(number)) {
        Some(Some(spec)) => Table::new(spec, purpose),
        _ => damaged(format!("Huffman table {number} of {kind} is missing")),
    }
}

/// The same for sequential scans, for which the tables of the standard stand in where a file has defined none.
pub(super) fn sequential_table(tables: &Tables, number: u8, purpose: Use) -> Result<Box<Table>, Fault> {
    let is_dc = purpose == Use::Means;
    let defined = if is_dc { &tables.dc } else { &tables.ac };
    match defined.get(usize::from(number)) {
        Some(None) if number < 2 => Table::new(&super::standard::table(number, is_dc), purpose),
        _ => table(tables, number, purpose),
    }
}

/// Decodes the blocks of a sequential scan.
pub(super) struct Sequential<'a> {
    pub reader: BitReader<'a>,
    /// Tables of means and of the other coefficients, each once.
    tables: Vec<Box<Table>>,
    /// Per component of the scan, its two tables.
    slots: [(usize, usize); 4],
    means: [i32; 4],
    has_run_out: bool,
}

impl<'a> Sequential<'a> {
    /// `numbers` are the tables' numbers for each component of the scan.
    pub(super) fn new(stream: &Stream<'a>, numbers: &[(u8, u8)]) -> Result<Self, Fault> {
        let mut known: Vec<(u8, Use)> = Vec::new();
        let mut tables = Vec::new();
        let mut slots = [(0, 0); 4];
        for (slot, &(dc, ac)) in slots.iter_mut().zip(numbers) {
            let mut place = |number, purpose| {
                if let Some(place) = known.iter().position(|entry| *entry == (number, purpose)) {
                    return Ok(place);
                }
                known.push((number, purpose));
                tables.push(sequential_table(&stream.tables, number, purpose)?);
                Ok(tables.len() - 1)
            };
            *slot = (place(dc, Use::Means)?, place(ac, Use::Band)?);
        }
        Ok(Self {
            reader: BitReader::new(stream),
            tables,
            slots,
            means: [0; 4],
            has_run_out: false,
        })
    }
}

impl<'a> Coder<'a> for Sequential<'a> {
    #[inline(always)]
    fn block(&mut self, slot: usize, block: &mut Block) {
        let (dc, ac) = self.slots[slot & 3];
        let (dc, ac) = (&*self.tables[dc], &*self.tables[ac]);
        let mut reader = self.reader;
        reader.fill();
        let entry = dc.fast[(reader.bits >> (64 - FAST)) as usize];
        let difference = if entry != 0 {
            reader.skip(entry as u32 & 0xFF);
            entry >> 16
        } else {
            let size = reader.symbol(dc);
            reader.take_signed(size.into())
        };
        let mean = self.means[slot & 3].wrapping_add(difference);
        self.means[slot & 3] = mean;
        block[0] = mean as i16;
        let mut at = 1_usize;
        while at < 64 {
            reader.fill();
            let entry = ac.fast[(reader.bits >> (64 - FAST)) as usize];
            if entry != 0 {
                reader.skip(entry as u32 & 0xFF);
                at += (entry >> 8 & 0xFF) as usize;
                let value = (entry >> 16) as i16;
                if value != 0 {
                    block[usize::from(ZIGZAG[at & 127] & 63)] = value;
                    at += 1;
                }
                continue;
            }
            let symbol = reader.symbol(ac);
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size != 0 {
                at += run;
                block[usize::from(ZIGZAG[at & 127] & 63)] = reader.take_signed(size) as i16;
                at += 1;
            } else if run == 15 {
                at += 16;
            } else {
                break;
            }
        }
        self.reader = reader;
    }

    #[inline(always)]
    fn end_unit(&mut self) -> Result<(), Fault> {
        self.has_run_out |= self.reader.has_run_out()?;
        Ok(())
    }

    fn restart(&mut self, stream: &mut Stream<'a>) -> Result<(), Fault> {
        if self.reader.restart(stream)? {
            self.has_run_out = false;
        }
        self.means = [0; 4];
        Ok(())
    }

    #[inline(always)]
    fn is_idle(&self) -> bool {
        self.has_run_out
    }

    fn has_run_out(&self) -> bool {
        self.has_run_out
    }

    fn leave(&self, stream: &mut Stream<'a>) {
        self.reader.leave(stream);
    }
}
