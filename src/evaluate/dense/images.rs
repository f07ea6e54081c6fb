//! Images with their targets, prepared: read and resized on all cores, a batch at a time, cut into windows, and put through
//! the model. What is in memory is one batch of images, their windows' features, and no more.

use std::ops::Range;

use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use super::DenseRequest;
use super::model::DenseModel;
use super::targets::{Plane, Target};
use super::windows::{cut, nearest, places};
use crate::data::{DecodeOptions, Preprocess, Record, Source};
use crate::extract::ErrorPolicy;
use crate::{Error, Result};

/// One image, ready to be cut.
pub(super) struct Prepared<V> {
    pub record: Record,
    /// Height and width after resizing.
    pub size: (usize, usize),
    /// Network input of the whole image, `[3, height, width]`.
    pixels: Vec<f32>,
    /// The target as it was stored, at the size of the original.
    pub target: Plane<V>,
    /// Top and left of every window.
    pub places: Vec<(isize, isize)>,
}

impl<V: Copy> Prepared<V> {
    /// Appends the network input `[3, H, W]` of the window at `place`, zeros outside the image.
    fn window_pixels(&self, place: (isize, isize), window: (usize, usize), out: &mut Vec<f32>) {
        for plane in self.pixels.chunks_exact(self.size.0 * self.size.1) {
            cut(plane, self.size, place, window, 0.0, out);
        }
    }

    /// Appends the target of every window, `outside` beyond the image; sizes follow the resized image.
    pub(super) fn window_targets(&self, window: (usize, usize), outside: V, out: &mut Vec<V>) {
        let target = nearest(
            &self.target.values,
            (self.target.height, self.target.width),
            self.size,
        );
        for &place in &self.places {
            cut(&target, self.size, place, window, outside, out);
        }
    }
}

fn not_finite(record: &Record, value: f32) -> Error {
    let reason = format!(
        "patch features: expected finite values, found {value} (row {})",
        record.row
    );
    Error::failed(record.path.clone(), reason)
}

/// Pixels of targets that were gone through, and how many of them are left out of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pixels {
    pub all: u64,
    pub left_out: u64,
    pub images: u64,
    pub images_with: u64,
}

impl Pixels {
    fn count<V: PartialEq>(&mut self, values: &[V], void: V) {
        let left_out = values.iter().filter(|value| **value == void).count() as u64;
        self.all += values.len() as u64;
        self.left_out += left_out;
        self.images += 1;
        self.images_with += u64::from(left_out > 0);
    }
}

/// Goes through the images of a source.
pub(super) struct Reader<'a, T> {
    pub source: &'a dyn Source,
    pub target: &'a T,
    pub request: &'a DenseRequest,
    /// What the progress bar says.
    pub doing: &'static str,
}

impl<T: Target> Reader<'_, T> {
    /// Calls `each` with every image, in order, and the features of its windows `[windows, rows * columns, dim]`. Images
    /// that cannot be read or whose features are not finite are left out with a notice, or end the run, as the request says.
    pub(super) fn run(
        &self,
        model: &mut DenseModel,
        mut each: impl FnMut(&Prepared<T::Value>, &[f32]) -> Result<()>,
    ) -> Result<Pixels> {
        let mut pixels = Pixels::default();
        let progress = progress_bar(self.source.len(), self.doing);
        let batch = self.request.batch as u64;
        let mut left_out = 0;
        for first in (0..self.source.len()).step_by(self.request.batch) {
            let rows = first..(first + batch).min(self.source.len());
            let n_rows = rows.end - rows.start;
            let images = self.read(rows, &model.preprocess, model.window)?;
            left_out += n_rows - images.len() as u64;
            let features = self.features(&images, model)?;
            let mut rest = features.as_slice();
            for image in &images {
                let (own, others) = rest.split_at(image.places.len() * model.window_len());
                rest = others;
                if let Some(value) = own.iter().find(|value| !value.is_finite()) {
                    self.leave_out(not_finite(&image.record, *value))?;
                    left_out += 1;
                    continue;
                }
                pixels.count(&image.target.values, T::VOID);
                each(image, own)?;
            }
            progress.inc(n_rows);
        }
        progress.finish_and_clear();
        if left_out > 0 {
            tracing::warn!("{left_out} of {} images are left out", self.source.len());
        }
        Ok(pixels)
    }

    /// Tells of an image that cannot be used, or ends the run.
    fn leave_out(&self, error: Error) -> Result<()> {
        if self.request.on_error == ErrorPolicy::Fail {
            return Err(error);
        }
        tracing::warn!("left out: {error}");
        Ok(())
    }

    /// The images of `rows` that can be read.
    fn read(
        &self,
        rows: Range<u64>,
        preprocess: &Preprocess,
        window: (usize, usize),
    ) -> Result<Vec<Prepared<T::Value>>> {
        let read: Vec<Result<Prepared<T::Value>>> = rows
            .into_par_iter()
            .map(|row| self.prepare(row, preprocess, window))
            .collect();
        let mut images = Vec::with_capacity(read.len());
        for image in read {
            match image {
                Ok(image) => images.push(image),
                Err(error) => self.leave_out(error)?,
            }
        }
        Ok(images)
    }

    fn prepare(
        &self,
        row: u64,
        preprocess: &Preprocess,
        window: (usize, usize),
    ) -> Result<Prepared<T::Value>> {
        let record = self.source.record(row);
        let decode: &DecodeOptions = &self.request.decode;
        let image = self
            .source
            .load(row, decode)
            .map_err(|error| Error::failed(error.path, format!("{} (row {row})", error.reason)))?;
        let (height, width) = (image.height(), image.width());
        let missing = || Error::input(record.path.clone(), format!("no {} (row {row})", T::NAME));
        let file = T::file(&record).ok_or_else(missing)?;
        let target = self.target.read(file, (height, width), decode)?;
        let size = preprocess.output_size_for(height, width);
        let mut pixels = vec![0.0; 3 * size.0 * size.1];
        preprocess.write_tensor(&image, &mut pixels)?;
        let stride = self.request.stride_of(window);
        Ok(Prepared {
            size,
            pixels,
            target,
            places: places(size, window, stride),
            record,
        })
    }

    /// Features of all windows of `images`, one after the other; the model sees a batch of windows at a time.
    fn features(&self, images: &[Prepared<T::Value>], model: &mut DenseModel) -> Result<Vec<f32>> {
        let windows: usize = images.iter().map(|image| image.places.len()).sum();
        let mut features = Vec::with_capacity(windows * model.window_len());
        let (mut pixels, mut waiting) = (Vec::new(), 0);
        let places = images
            .iter()
            .flat_map(|image| image.places.iter().map(move |&place| (image, place)));
        for (image, place) in places {
            image.window_pixels(place, model.window, &mut pixels);
            waiting += 1;
            if waiting == self.request.batch {
                model.features(&pixels, waiting, &mut features)?;
                pixels.clear();
                waiting = 0;
            }
        }
        if waiting > 0 {
            model.features(&pixels, waiting, &mut features)?;
        }
        Ok(features)
    }
}

fn progress_bar(total: u64, doing: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:32} {pos}/{len} images, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(doing)
}
