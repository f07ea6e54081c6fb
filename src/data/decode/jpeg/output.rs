//! From coefficients to pixels: samples of a few rows of units at a time, upsampled and converted while they are in the cache.

use super::colour::convert;
use super::frame::Frame;
use super::idct::{Block, inverse};
use super::upsample::Upsampling;

/// Samples of one component, of two rows of units: the current one and the one above.
struct Plane {
    samples: Vec<u8>,
    stride: usize,
    /// Rows of samples that `samples` holds.
    rows: usize,
    size: usize,
    factors: Block,
}

impl Plane {
    fn row(&self, y: usize) -> &[u8] {
        let at = (y % self.rows) * self.stride;
        &self.samples[at..at + self.stride]
    }
}

/// An image in the making.
pub(super) struct Picture<'f> {
    frame: &'f Frame,
    planes: Vec<Plane>,
    /// Rows above what a unit's last rows need of the next row of units.
    held_back: usize,
    done: usize,
    pixels: Vec<u8>,
    wide: [Vec<u8>; 4],
    sums: Vec<u16>,
}

impl<'f> Picture<'f> {
    pub(super) fn new(frame: &'f Frame) -> Self {
        let (width, height) = frame.size;
        let mut planes = Vec::with_capacity(frame.components.len());
        for component in &frame.components {
            let stride = component.padded.0 * component.size;
            let rows = 2 * component.sampling.1 * component.size;
            // A component without a scan has no factors, and comes out grey.
            let factors = component.factors.unwrap_or([0; 64]).map(|factor| factor as i16);
            planes.push(Plane {
                samples: vec![0; stride * rows],
                stride,
                rows,
                size: component.size,
                factors,
            });
        }
        let mut upsamplings = frame.components.iter().map(|component| component.upsampling);
        let held_back = if upsamplings.any(Upsampling::needs_neighbours) {
            frame.max.1
        } else {
            0
        };
        Self {
            frame,
            planes,
            held_back,
            done: 0,
            pixels: vec![0; width * height * 3],
            wide: std::array::from_fn(|_| vec![0; width]),
            sums: Vec::with_capacity(width / 2 + 3),
        }
    }

    /// Transforms the block of component `place` in column `x` and row `y`.
    #[inline]
    pub(super) fn put(&mut self, place: usize, x: usize, y: usize, block: &Block) {
        let plane = &mut self.planes[place];
        let at = (y * plane.size % plane.rows) * plane.stride + x * plane.size;
        inverse(
            plane.size,
            block,
            &plane.factors,
            &mut plane.samples[at..],
            plane.stride,
        );
    }

    /// Sets a sample, for images without blocks.
    pub(super) fn put_sample(&mut self, place: usize, x: usize, y: usize, sample: u8) {
        let plane = &mut self.planes[place];
        let at = (y % plane.rows) * plane.stride + x;
        plane.samples[at] = sample;
    }

    /// Converts what row `row` of units, the last one put, completes.
    pub(super) fn end_row(&mut self, row: usize) {
        let height = self.frame.size.1;
        let ready = (row + 1) * self.frame.max.1 * self.frame.block;
        let ready = if row + 1 == self.frame.mcus.1 {
            height
        } else {
            ready.saturating_sub(self.held_back)
        };
        for y in self.done..ready.min(height) {
            self.convert_row(y);
        }
        self.done = ready.min(height);
    }

    fn convert_row(&mut self, y: usize) {
        let frame = self.frame;
        let parts = frame.components.iter().zip(&self.planes).zip(&mut self.wide);
        for ((component, plane), wide) in parts {
            let how = component.upsampling;
            if how != Upsampling::None {
                let (columns, rows) = component.samples;
                let (near, far) = how.rows(y, rows);
                how.run(y, plane.row(near), plane.row(far), columns, &mut self.sums, wide);
            }
        }
        let mut rows: [&[u8]; 4] = [&[]; 4];
        for (at, row) in rows.iter_mut().enumerate().take(frame.components.len()) {
            *row = match frame.components[at].upsampling {
                Upsampling::None => self.planes[at].row(y),
                _ => &self.wide[at],
            };
        }
        let length = frame.size.0 * 3;
        convert(frame.colour, rows, &mut self.pixels[y * length..(y + 1) * length]);
    }

    pub(super) fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}
