//! Huffman-coded scans of progressive images: the means or a band of the other coefficients, their high bits first.

use super::huffman::{BitReader, Table, Use, table};
use super::idct::Block;
use super::scan::Coder;
use super::stream::{Fault, ScanHeader, Stream, ZIGZAG, damaged};

enum Kind {
    Means,
    MeansRefined,
    Band,
    BandRefined,
}

/// Decodes the blocks of one scan.
pub(super) struct Progressive<'a> {
    reader: BitReader<'a>,
    kind: Kind,
    /// Per component of the scan.
    tables: Vec<Box<Table>>,
    means: [i32; 4],
    first: usize,
    last: usize,
    low: u8,
    /// Blocks, from this one on, whose band has ended.
    ended: u32,
    has_run_out: bool,
    has_overflowed: bool,
}

/// Refuses parameters that no progressive scan has.
pub(super) fn check(scan: &ScanHeader) -> Result<(), Fault> {
    let is_band = match scan.first {
        0 => scan.last == 0,
        _ => scan.first <= scan.last && scan.last < 64 && scan.components.len() == 1,
    };
    let are_bits = scan.low <= 13 && (scan.high == 0 || scan.high == scan.low + 1);
    if is_band && are_bits {
        return Ok(());
    }
    damaged(format!(
        "a progressive scan of coefficients {} to {}, bits {} to {}",
        scan.first, scan.last, scan.high, scan.low
    ))
}

impl<'a> Progressive<'a> {
    /// `numbers` are the tables' numbers for each component of the scan.
    pub(super) fn new(stream: &Stream<'a>, scan: &ScanHeader, numbers: &[(u8, u8)]) -> Result<Self, Fault> {
        let kind = match (scan.first, scan.high) {
            (0, 0) => Kind::Means,
            (0, _) => Kind::MeansRefined,
            (_, 0) => Kind::Band,
            _ => Kind::BandRefined,
        };
        let of = |&(dc, ac): &(u8, u8)| match kind {
            Kind::Means => Some(table(&stream.tables, dc, Use::Means)),
            Kind::MeansRefined => None,
            _ => Some(table(&stream.tables, ac, Use::Band)),
        };
        Ok(Self {
            reader: BitReader::new(stream),
            tables: numbers.iter().filter_map(of).collect::<Result<_, Fault>>()?,
            kind,
            means: [0; 4],
            first: scan.first,
            last: scan.last,
            low: scan.low,
            ended: 0,
            has_run_out: false,
            has_overflowed: false,
        })
    }

    fn mean(&mut self, slot: usize) -> i16 {
        self.reader.fill();
        let size = self.reader.symbol(&self.tables[slot]);
        let difference = self.reader.take_signed(size.into());
        match self.means[slot].checked_add(difference) {
            Some(mean) => self.means[slot] = mean,
            None => self.has_overflowed = true,
        }
        (self.means[slot] << self.low) as i16
    }

    /// The run of blocks that a symbol of run `run` and no value begins.
    fn run_of_ends(&mut self, run: u32) -> u32 {
        (1 << run) + self.reader.take(run) as u32
    }

    fn band(&mut self, block: &mut Block) {
        if self.ended > 0 {
            self.ended -= 1;
            return;
        }
        let mut at = self.first;
        while at <= self.last {
            self.reader.fill();
            let symbol = self.reader.symbol(&self.tables[0]);
            let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            if size != 0 {
                at += run;
                let value = self.reader.take_signed(size) << self.low;
                block[usize::from(ZIGZAG[at & 127])] = value as i16;
                at += 1;
            } else if run == 15 {
                at += 16;
            } else {
                self.ended = self.run_of_ends(run as u32) - 1;
                return;
            }
        }
    }

    /// Reads the next bit of a coefficient that is not 0.
    fn refine(&mut self, value: &mut i16) {
        self.reader.fill();
        let bit = 1_i16 << self.low;
        if self.reader.take(1) != 0 && *value & bit == 0 {
            *value = value.wrapping_add(if *value >= 0 { bit } else { -bit });
        }
    }

    fn band_refined(&mut self, block: &mut Block) {
        let mut at = self.first;
        if self.ended == 0 {
            while at <= self.last {
                self.reader.fill();
                let symbol = self.reader.symbol(&self.tables[0]);
                let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
                let mut new = 0;
                if size != 0 {
                    let bit = 1_i16 << self.low;
                    new = if self.reader.take(1) != 0 { bit } else { -bit };
                } else if run != 15 {
                    self.ended = self.run_of_ends(run);
                    break;
                }
                // Past the coefficients that are not 0, each of which gets its bit, and `run` that stay 0.
                while at <= self.last {
                    let value = &mut block[usize::from(ZIGZAG[at])];
                    if *value != 0 {
                        self.refine(value);
                    } else if run == 0 {
                        break;
                    } else {
                        run -= 1;
                    }
                    at += 1;
                }
                if new != 0 {
                    block[usize::from(ZIGZAG[at & 127])] = new;
                }
                at += 1;
            }
        }
        if self.ended > 0 {
            while at <= self.last {
                let value = &mut block[usize::from(ZIGZAG[at])];
                if *value != 0 {
                    self.refine(value);
                }
                at += 1;
            }
            self.ended -= 1;
        }
    }
}

impl<'a> Coder<'a> for Progressive<'a> {
    fn block(&mut self, slot: usize, block: &mut Block) {
        match self.kind {
            Kind::Means => block[0] = self.mean(slot),
            Kind::MeansRefined => {
                self.reader.fill();
                if self.reader.take(1) != 0 {
                    block[0] |= 1 << self.low;
                }
            }
            Kind::Band => self.band(block),
            Kind::BandRefined => self.band_refined(block),
        }
    }

    fn end_unit(&mut self) -> Result<(), Fault> {
        if self.has_overflowed {
            return damaged("a mean beyond 32 bits");
        }
        self.has_run_out |= self.reader.has_run_out()?;
        Ok(())
    }

    fn restart(&mut self, stream: &mut Stream<'a>) -> Result<(), Fault> {
        if self.reader.restart(stream)? {
            self.has_run_out = false;
        }
        self.means = [0; 4];
        self.ended = 0;
        Ok(())
    }

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
