//! What is packed next, asked for from memory while tiles are multiplied: packing alone would wait for it.

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

const LINE: usize = 64;

/// Rows of bytes, some way apart.
pub(super) struct Region {
    row: *const u8,
    row_stride: usize,
    rows: usize,
    lines: usize,
    /// Lines of this row that have been asked for.
    line: usize,
}

impl Region {
    /// `rows` rows of `count` values from `first` on, `row_stride` values apart.
    pub(super) fn new<T>(first: *const T, row_stride: usize, rows: usize, count: usize) -> Self {
        Self {
            row: first.cast(),
            row_stride: row_stride * size_of::<T>(),
            rows,
            lines: (count * size_of::<T>()).div_ceil(LINE),
            line: 0,
        }
    }

    fn lines(&self) -> usize {
        self.rows * self.lines
    }

    fn ask(&mut self) {
        let place = self.row.wrapping_add(self.line * LINE);
        // SAFETY: asking for memory reads none, wherever it is.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(place.cast());
        }
        self.line += 1;
        if self.line == self.lines {
            self.line = 0;
            self.rows -= 1;
            self.row = self.row.wrapping_add(self.row_stride);
        }
    }
}

/// Regions, asked for in equal parts.
pub(super) struct Ahead {
    regions: [Option<Region>; 2],
    lines_of_part: usize,
}

impl Ahead {
    pub(super) fn new(regions: [Option<Region>; 2], parts: usize) -> Self {
        let lines: usize = regions.iter().flatten().map(Region::lines).sum();
        Self {
            regions,
            lines_of_part: lines.div_ceil(parts.max(1)),
        }
    }

    /// Asks for one part.
    #[inline]
    pub(super) fn ask(&mut self) {
        for _ in 0..self.lines_of_part {
            match self
                .regions
                .iter_mut()
                .flatten()
                .find(|region| region.lines() > 0)
            {
                Some(region) => region.ask(),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_asked_for_once() {
        let values = [0f32; 4 * 100];
        let places = |region: &mut Region| {
            let mut places = Vec::new();
            while region.lines() > 0 {
                places.push(region.row as usize + region.line * LINE - values.as_ptr() as usize);
                region.ask();
            }
            places
        };
        let mut region = Region::new(values.as_ptr(), 100, 3, 40);
        assert_eq!(places(&mut region), [0, 64, 128, 400, 464, 528, 800, 864, 928]);
        let regions = || {
            [
                Some(Region::new(values.as_ptr(), 100, 2, 33)),
                Some(Region::new(values.as_ptr(), 100, 3, 16)),
            ]
        };
        let mut ahead = Ahead::new(regions(), 4);
        let left = |ahead: &Ahead| ahead.regions.iter().flatten().map(Region::lines).sum::<usize>();
        let counts: Vec<usize> = (0..5)
            .map(|_| {
                ahead.ask();
                left(&ahead)
            })
            .collect();
        assert_eq!(counts, [6, 3, 0, 0, 0]);
    }
}
