//! Files whose end is missing. Pillow takes one if libjpeg got all pixels out of it, and libjpeg stops where it would read
//! ahead beyond the last byte, needed or not. How far it reads ahead depends on how it came there, so this follows its every
//! step, without making pixels.

use super::frame::{Frame, Layout};
use super::huffman::{Table, Use, sequential_table};
use super::stream::{Fault, Stream};

/// Bytes that Pillow reads at a time.
pub(super) const CHUNK: usize = 1 << 16;
/// libjpeg reads until it has this many bits.
const MIN_BITS: u32 = 57;
/// Bits of a code that it looks up at once.
const LOOKUP: u32 = 8;
/// Bytes a block that it wants before it does without looking for the end.
const BYTES_A_BLOCK: usize = 512;

/// The data at hand is used up.
struct Wanting;

/// What libjpeg keeps between units.
#[derive(Clone, Copy)]
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    bits: u64,
    left: u32,
    marker: u8,
    has_run_out: bool,
}

impl Bits<'_> {
    /// A byte of data; `None` at a marker.
    fn byte(&mut self) -> Result<Option<u8>, Wanting> {
        let mut next = || {
            let byte = self.bytes.get(self.at).copied().ok_or(Wanting);
            self.at += 1;
            byte
        };
        let mut byte = next()?;
        if byte != 0xFF {
            return Ok(Some(byte));
        }
        while byte == 0xFF {
            byte = next()?;
        }
        self.marker = byte;
        Ok((byte == 0).then_some(0xFF))
    }

    fn push(&mut self, byte: u8) {
        self.bits = (self.bits << 8) | u64::from(byte);
        self.left += 8;
    }

    fn fill(&mut self, wanted: u32) -> Result<(), Wanting> {
        while self.marker == 0 && self.left < MIN_BITS {
            if let Some(byte) = self.byte()? {
                self.push(byte);
            }
        }
        if self.marker != 0 && wanted > self.left {
            self.has_run_out = true;
            self.bits <<= MIN_BITS - self.left;
            self.left = MIN_BITS;
        }
        Ok(())
    }

    fn take(&mut self, count: u32) -> u32 {
        self.left -= count;
        ((self.bits >> self.left) & ((1 << count) - 1)) as u32
    }

    /// `count` bits; `ahead` says that no end is near.
    fn get(&mut self, count: u32, ahead: bool) -> Result<u32, Wanting> {
        if ahead {
            self.fill_ahead()?;
        } else if self.left < count {
            self.fill(count)?;
        }
        Ok(self.take(count))
    }

    /// Six bytes at once where there is room, without looking for the end. Stops at markers.
    fn fill_ahead(&mut self) -> Result<(), Wanting> {
        if self.left > 16 {
            return Ok(());
        }
        for _ in 0..6 {
            let [first, second] = match self.bytes.get(self.at..self.at + 2) {
                Some(&[first, second]) => [first, second],
                _ => return Err(Wanting),
            };
            self.at += 1 + usize::from(first == 0xFF);
            if first == 0xFF && second != 0 {
                return Err(Wanting);
            }
            self.push(first);
        }
        Ok(())
    }

    fn symbol(&mut self, table: &Table, ahead: bool) -> Result<u8, Wanting> {
        let mut length = LOOKUP + 1;
        if ahead {
            self.fill_ahead()?;
        } else if self.left < LOOKUP {
            self.fill(0)?;
            if self.left < LOOKUP {
                length = 1;
            }
        }
        if length > LOOKUP {
            let next = (self.bits >> (self.left - LOOKUP)) as u8;
            if let Some((symbol, length)) = table.short(next) {
                self.left -= length;
                return Ok(symbol);
            }
        }
        let mut code = 0;
        for at in 1..=17 {
            let count = if at < length {
                continue;
            } else if at == length {
                length
            } else {
                1
            };
            if !ahead && self.left < count {
                self.fill(count)?;
            }
            code = (code << count) | self.take(count) as i32;
            if let Some(symbol) = table.of_length(code, at) {
                return Ok(symbol);
            }
        }
        Ok(0)
    }

    fn block(&mut self, tables: &[Box<Table>; 2], ahead: bool) -> Result<(), Wanting> {
        let size = self.symbol(&tables[0], ahead)?;
        if size > 0 {
            self.get(size.into(), ahead)?;
        }
        let mut at = 1;
        while at < 64 {
            let symbol = self.symbol(&tables[1], ahead)?;
            let (run, size) = (symbol >> 4, symbol & 15);
            if size > 0 {
                self.get(size.into(), ahead)?;
                at += run + 1;
            } else if run == 15 {
                at += 16;
            } else {
                break;
            }
        }
        Ok(())
    }
}

/// Follows libjpeg through the one scan of an image, which begins where `start` stands, and what comes behind it.
///
/// # Errors
/// [`Fault::Ended`] where it runs out of data.
pub(super) fn check(
    start: &Stream,
    frame: &Frame,
    layout: &Layout,
    numbers: &[(u8, u8)],
) -> Result<(), Fault> {
    let mut tables = Vec::with_capacity(numbers.len());
    for &(dc, ac) in numbers {
        let of = |number, purpose| sequential_table(&start.tables, number, purpose);
        tables.push([of(dc, Use::Means)?, of(ac, Use::Band)?]);
    }
    let mut stream = start.clone();
    let whole = start.bytes;
    let mut end = start.at.next_multiple_of(CHUNK).min(whole.len());
    let mut state = Bits {
        bytes: whole,
        at: start.at,
        bits: 0,
        left: 0,
        marker: start.marker,
        has_run_out: false,
    };
    let interval = start.tables.restart_interval;
    let mut until_restart = interval;
    let rows: usize = (0..frame.mcus.1).map(|row| layout.rows(frame, row)).sum();
    let mut unit = 0;
    while unit < rows * layout.across {
        let bytes = &whole[..end];
        stream.bytes = bytes;
        let done = if interval > 0 && until_restart == 0 {
            (stream.at, stream.marker) = (state.at, state.marker);
            match stream.read_restart() {
                Ok(()) => {
                    (state.at, state.marker, state.left) = (stream.at, stream.marker, 0);
                    state.has_run_out &= state.marker != 0;
                    until_restart = interval;
                    Ok(())
                }
                Err(_) => Err(Wanting),
            }
        } else {
            Ok(())
        };
        let blocks = &layout.blocks;
        let follow = |ahead: bool| {
            let mut next = Bits { bytes, ..state };
            for &(slot, ..) in blocks {
                next.block(&tables[slot], ahead)?;
            }
            Ok(next)
        };
        let is_far = end - state.at.min(end) >= BYTES_A_BLOCK * blocks.len();
        let next = match done {
            Err(Wanting) => Err(Wanting),
            Ok(()) if state.has_run_out => Ok(state),
            Ok(()) if is_far && state.marker == 0 && interval == 0 => {
                follow(true).or_else(|Wanting| follow(false))
            }
            Ok(()) => follow(false),
        };
        match next {
            Ok(next) => {
                state = next;
                unit += 1;
                until_restart = until_restart.saturating_sub(1);
            }
            Err(Wanting) if end == whole.len() => return Err(Fault::Ended),
            Err(Wanting) => end = (end + CHUNK).min(whole.len()),
        }
    }
    (stream.at, stream.marker) = (state.at, state.marker);
    stream.finish(end)
}
