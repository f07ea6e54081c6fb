//! Arithmetic-coded scans, sequential and progressive (ITU-T T.81, annexes D, F and G). Pillow reads such files up to 64 KiB only,
//! since it hands over the rest too late; here they may be longer.

use super::idct::Block;
use super::scan::Coder;
use super::stream::{Fault, ScanHeader, Stream, ZIGZAG};

/// The estimates of a decision's probability (table D.3): the size of the less probable interval, the estimate after the
/// less and after the more probable symbol, and whether the former exchanges the two. The last one always says a half.
#[rustfmt::skip]
const ESTIMATES: [(i64, u8, u8, bool); 114] = [
    (0x5a1d, 1, 1, true), (0x2586, 14, 2, false), (0x1114, 16, 3, false), (0x080b, 18, 4, false),
    (0x03d8, 20, 5, false), (0x01da, 23, 6, false), (0x00e5, 25, 7, false), (0x006f, 28, 8, false),
    (0x0036, 30, 9, false), (0x001a, 33, 10, false), (0x000d, 35, 11, false), (0x0006, 9, 12, false),
    (0x0003, 10, 13, false), (0x0001, 12, 13, false), (0x5a7f, 15, 15, true), (0x3f25, 36, 16, false),
    (0x2cf2, 38, 17, false), (0x207c, 39, 18, false), (0x17b9, 40, 19, false), (0x1182, 42, 20, false),
    (0x0cef, 43, 21, false), (0x09a1, 45, 22, false), (0x072f, 46, 23, false), (0x055c, 48, 24, false),
    (0x0406, 49, 25, false), (0x0303, 51, 26, false), (0x0240, 52, 27, false), (0x01b1, 54, 28, false),
    (0x0144, 56, 29, false), (0x00f5, 57, 30, false), (0x00b7, 59, 31, false), (0x008a, 60, 32, false),
    (0x0068, 62, 33, false), (0x004e, 63, 34, false), (0x003b, 32, 35, false), (0x002c, 33, 9, false),
    (0x5ae1, 37, 37, true), (0x484c, 64, 38, false), (0x3a0d, 65, 39, false), (0x2ef1, 67, 40, false),
    (0x261f, 68, 41, false), (0x1f33, 69, 42, false), (0x19a8, 70, 43, false), (0x1518, 72, 44, false),
    (0x1177, 73, 45, false), (0x0e74, 74, 46, false), (0x0bfb, 75, 47, false), (0x09f8, 77, 48, false),
    (0x0861, 78, 49, false), (0x0706, 79, 50, false), (0x05cd, 48, 51, false), (0x04de, 50, 52, false),
    (0x040f, 50, 53, false), (0x0363, 51, 54, false), (0x02d4, 52, 55, false), (0x025c, 53, 56, false),
    (0x01f8, 54, 57, false), (0x01a4, 55, 58, false), (0x0160, 56, 59, false), (0x0125, 57, 60, false),
    (0x00f6, 58, 61, false), (0x00cb, 59, 62, false), (0x00ab, 61, 63, false), (0x008f, 61, 32, false),
    (0x5b12, 65, 65, true), (0x4d04, 80, 66, false), (0x412c, 81, 67, false), (0x37d8, 82, 68, false),
    (0x2fe8, 83, 69, false), (0x293c, 84, 70, false), (0x2379, 86, 71, false), (0x1edf, 87, 72, false),
    (0x1aa9, 87, 73, false), (0x174e, 72, 74, false), (0x1424, 72, 75, false), (0x119c, 74, 76, false),
    (0x0f6b, 74, 77, false), (0x0d51, 75, 78, false), (0x0bb6, 77, 79, false), (0x0a40, 77, 48, false),
    (0x5832, 80, 81, true), (0x4d1c, 88, 82, false), (0x438e, 89, 83, false), (0x3bdd, 90, 84, false),
    (0x34ee, 91, 85, false), (0x2eae, 92, 86, false), (0x299a, 93, 87, false), (0x2516, 86, 71, false),
    (0x5570, 88, 89, true), (0x4ca9, 95, 90, false), (0x44d9, 96, 91, false), (0x3e22, 97, 92, false),
    (0x3824, 99, 93, false), (0x32b4, 99, 94, false), (0x2e17, 93, 86, false), (0x56a8, 95, 96, true),
    (0x4f46, 101, 97, false), (0x47e5, 102, 98, false), (0x41cf, 103, 99, false), (0x3c3d, 104, 100, false),
    (0x375e, 99, 93, false), (0x5231, 105, 102, false), (0x4c0f, 106, 103, false), (0x4639, 107, 104, false),
    (0x415e, 103, 99, false), (0x5627, 105, 106, true), (0x50e7, 108, 107, false), (0x4b85, 109, 103, false),
    (0x5597, 110, 109, false), (0x504f, 111, 107, false), (0x5a10, 110, 111, true), (0x5522, 112, 109, false),
    (0x59eb, 112, 111, true), (0x5a1d, 113, 113, false),
];

/// A decision's state: the place of its estimate, and in the highest bit the more probable symbol.
type State = u8;

/// The place of the estimate that says a half.
const EVEN: State = 113;

/// Decisions of one table for means.
type MeanStates = [State; 64];
/// Decisions of one table for the other coefficients.
type BandStates = [State; 256];

#[derive(Clone, Copy)]
enum Kind {
    Sequential,
    Means,
    MeansRefined,
    Band,
    BandRefined,
}

impl Kind {
    fn has_means(self) -> bool {
        matches!(self, Self::Sequential | Self::Means)
    }

    fn has_band(self) -> bool {
        matches!(self, Self::Sequential | Self::Band | Self::BandRefined)
    }
}

/// The binary decisions of a scan.
struct Decisions<'a> {
    bytes: &'a [u8],
    at: usize,
    marker: u8,
    ended: bool,
    code: i64,
    interval: i64,
    /// Bits of `code` that are not used yet; from -16 while the first bytes are read.
    shift: i32,
}

impl<'a> Decisions<'a> {
    fn new(stream: &Stream<'a>) -> Self {
        Self {
            bytes: stream.bytes,
            at: stream.at,
            marker: stream.marker,
            ended: false,
            code: 0,
            interval: 0,
            shift: -16,
        }
    }

    fn raw_byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        self.ended |= byte.is_none();
        byte.unwrap_or(0)
    }

    /// The next byte of data; 0 from a marker on, which is how data may end.
    fn byte(&mut self) -> u8 {
        if self.marker != 0 || self.ended {
            return 0;
        }
        let mut byte = self.raw_byte();
        if byte != 0xFF {
            return byte;
        }
        while byte == 0xFF {
            byte = self.raw_byte();
        }
        self.marker = byte;
        if byte == 0 { 0xFF } else { 0 }
    }

    fn next(&mut self, state: &mut State) -> bool {
        while self.interval < 0x8000 {
            self.shift -= 1;
            if self.shift < 0 {
                self.code = (self.code << 8) | i64::from(self.byte());
                self.shift += 8;
                if self.shift < 0 {
                    self.shift += 1;
                    if self.shift == 0 {
                        self.interval = 0x8000;
                    }
                }
            }
            self.interval <<= 1;
        }
        let mut symbol = *state & 0x80;
        let (size, after_less, after_more, exchanges) = ESTIMATES[usize::from(*state & 0x7F).min(113)];
        let after_less = symbol ^ after_less ^ if exchanges { 0x80 } else { 0 };
        let after_more = symbol ^ after_more;
        self.interval -= size;
        let bound = self.interval << self.shift;
        let is_upper = self.code >= bound;
        if is_upper || self.interval < 0x8000 {
            // The smaller interval is the less probable symbol's, whichever of the two it is.
            let is_less = is_upper != (self.interval < size);
            *state = if is_less { after_less } else { after_more };
            if is_less {
                symbol ^= 0x80;
            }
        }
        if is_upper {
            self.code -= bound;
            self.interval = size;
        }
        symbol != 0
    }
}

/// Decodes the blocks of one scan.
pub(super) struct Arithmetic<'a> {
    decisions: Decisions<'a>,
    kind: Kind,
    /// Per component of the scan, the tables of means and of the other coefficients.
    numbers: [(usize, usize); 4],
    mean_states: Box<[MeanStates; 16]>,
    band_states: Box<[BandStates; 16]>,
    even: State,
    means: [i32; 4],
    /// Where the states of the next mean begin, by the difference before.
    contexts: [usize; 4],
    bounds: [(u8, u8); 16],
    last_low: [u8; 16],
    first: usize,
    last: usize,
    low: u8,
    /// Whether the data makes no sense up to the next restart.
    is_lost: bool,
}

impl<'a> Arithmetic<'a> {
    /// `numbers` are the tables' numbers for each component of the scan.
    pub(super) fn new(
        stream: &Stream<'a>,
        is_progressive: bool,
        scan: &ScanHeader,
        numbers: &[(u8, u8)],
    ) -> Result<Self, Fault> {
        let kind = match (is_progressive, scan.first, scan.high) {
            (false, _, _) => Kind::Sequential,
            (_, 0, 0) => Kind::Means,
            (_, 0, _) => Kind::MeansRefined,
            (_, _, 0) => Kind::Band,
            _ => Kind::BandRefined,
        };
        let mut slots = [(0, 0); 4];
        for (slot, &(dc, ac)) in slots.iter_mut().zip(numbers) {
            *slot = (usize::from(dc & 15), usize::from(ac & 15));
        }
        let is_whole = matches!(kind, Kind::Sequential);
        Ok(Self {
            decisions: Decisions::new(stream),
            kind,
            numbers: slots,
            mean_states: Box::new([[0; 64]; 16]),
            band_states: Box::new([[0; 256]; 16]),
            even: EVEN,
            means: [0; 4],
            contexts: [0; 4],
            bounds: stream.tables.arithmetic_dc,
            last_low: stream.tables.arithmetic_ac,
            first: if is_whole { 1 } else { scan.first },
            last: if is_whole { 63 } else { scan.last },
            low: if is_whole { 0 } else { scan.low },
            is_lost: false,
        })
    }

    /// The bits below the highest, each with the state of that height.
    fn magnitude(decisions: &mut Decisions, state: &mut State, highest: i32) -> i32 {
        let mut value = highest;
        let mut bit = highest >> 1;
        while bit != 0 {
            if decisions.next(state) {
                value |= bit;
            }
            bit >>= 1;
        }
        value + 1
    }

    fn mean(&mut self, slot: usize, block: &mut Block) {
        let table = self.numbers[slot].0;
        let states = &mut self.mean_states[table];
        let decisions = &mut self.decisions;
        let context = self.contexts[slot];
        if !decisions.next(&mut states[context]) {
            self.contexts[slot] = 0;
        } else {
            let is_negative = decisions.next(&mut states[context + 1]);
            let mut at = context + 2 + usize::from(is_negative);
            let mut highest = i32::from(decisions.next(&mut states[at]));
            if highest != 0 {
                at = 20;
                while decisions.next(&mut states[at]) {
                    highest <<= 1;
                    if highest == 0x8000 {
                        self.is_lost = true;
                        return;
                    }
                    at += 1;
                }
            }
            let (small, large) = self.bounds[table];
            let sign = if is_negative { 4 } else { 0 };
            self.contexts[slot] = if highest < (1 << small) >> 1 {
                0
            } else if highest > (1 << large) >> 1 {
                12 + sign
            } else {
                4 + sign
            };
            let value = Self::magnitude(decisions, &mut states[at + 14], highest);
            let mean = &mut self.means[slot];
            *mean = mean.wrapping_add(if is_negative { -value } else { value });
        }
        block[0] = (self.means[slot] << self.low) as i16;
    }

    fn band(&mut self, slot: usize, block: &mut Block) {
        let table = self.numbers[slot].1;
        let states = &mut self.band_states[table];
        let decisions = &mut self.decisions;
        let mut at = self.first;
        while at <= self.last {
            let mut state = 3 * (at - 1);
            if decisions.next(&mut states[state]) {
                return;
            }
            while !decisions.next(&mut states[state + 1]) {
                state += 3;
                at += 1;
                if at > self.last {
                    self.is_lost = true;
                    return;
                }
            }
            let is_negative = decisions.next(&mut self.even);
            state += 2;
            let mut highest = i32::from(decisions.next(&mut states[state]));
            if highest != 0 && decisions.next(&mut states[state]) {
                highest = 2;
                state = if at <= usize::from(self.last_low[table]) {
                    189
                } else {
                    217
                };
                while decisions.next(&mut states[state]) {
                    highest <<= 1;
                    if highest == 0x8000 {
                        self.is_lost = true;
                        return;
                    }
                    state += 1;
                }
            }
            let value = Self::magnitude(decisions, &mut states[state + 14], highest);
            let value = if is_negative { -value } else { value };
            block[usize::from(ZIGZAG[at])] = (value << self.low) as i16;
            at += 1;
        }
    }

    fn band_refined(&mut self, slot: usize, block: &mut Block) {
        let table = self.numbers[slot].1;
        let states = &mut self.band_states[table];
        let decisions = &mut self.decisions;
        let bit = 1_i16 << self.low;
        let known = (1..=self.last)
            .rev()
            .find(|&at| block[usize::from(ZIGZAG[at])] != 0);
        let known = known.unwrap_or(0);
        let mut at = self.first;
        while at <= self.last {
            let mut state = 3 * (at - 1);
            if at > known && decisions.next(&mut states[state]) {
                return;
            }
            loop {
                let value = &mut block[usize::from(ZIGZAG[at])];
                if *value != 0 {
                    if decisions.next(&mut states[state + 2]) {
                        *value = value.wrapping_add(if *value < 0 { -bit } else { bit });
                    }
                    break;
                }
                if decisions.next(&mut states[state + 1]) {
                    *value = if decisions.next(&mut self.even) { -bit } else { bit };
                    break;
                }
                state += 3;
                at += 1;
                if at > self.last {
                    self.is_lost = true;
                    return;
                }
            }
            at += 1;
        }
    }
}

impl<'a> Coder<'a> for Arithmetic<'a> {
    fn block(&mut self, slot: usize, block: &mut Block) {
        if self.is_lost {
            return;
        }
        match self.kind {
            Kind::Sequential => {
                self.mean(slot, block);
                if !self.is_lost {
                    self.band(slot, block);
                }
            }
            Kind::Means => self.mean(slot, block),
            Kind::MeansRefined => {
                if self.decisions.next(&mut self.even) {
                    block[0] |= 1 << self.low;
                }
            }
            Kind::Band => self.band(slot, block),
            Kind::BandRefined => self.band_refined(slot, block),
        }
    }

    fn end_unit(&mut self) -> Result<(), Fault> {
        if self.decisions.ended {
            Err(Fault::Ended)
        } else {
            Ok(())
        }
    }

    fn restart(&mut self, stream: &mut Stream<'a>) -> Result<(), Fault> {
        self.leave(stream);
        stream.read_restart()?;
        self.decisions = Decisions::new(stream);
        if self.kind.has_means() {
            *self.mean_states = [[0; 64]; 16];
            self.means = [0; 4];
            self.contexts = [0; 4];
        }
        if self.kind.has_band() {
            *self.band_states = [[0; 256]; 16];
        }
        self.is_lost = false;
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.is_lost
    }

    fn has_run_out(&self) -> bool {
        false
    }

    fn leave(&self, stream: &mut Stream<'a>) {
        stream.at = self.decisions.at;
        stream.marker = self.decisions.marker;
    }
}
