//! Rows of a source as a network's input: decoded and prepared on all cores, several at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::{DecodeOptions, Image, Preprocess, RowError, Source};
use crate::{Error, Result};

/// Reads images of one size, and counts the time that it takes.
#[derive(Debug)]
pub struct BatchReader {
    preprocess: Preprocess,
    decode: DecodeOptions,
    height: usize,
    width: usize,
    decoding: Clock,
    preparing: Clock,
}

/// Images that were read.
#[derive(Debug, Default)]
pub struct ImageBatch {
    /// `[n, C, H, W]` of the images that could be read, in the order of their rows.
    pub pixels: Vec<f32>,
    /// For each row that was asked for, why its image could not be read; none for those in `pixels`.
    pub errors: Vec<Option<RowError>>,
}

/// Nanoseconds that threads add to.
#[derive(Debug, Default)]
struct Clock(AtomicU64);

impl Clock {
    fn time<R>(&self, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.0
            .fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    fn total(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl BatchReader {
    /// A reader that decodes with `decode` and prepares with `preprocess`.
    ///
    /// # Errors
    /// A preprocessing that is out of range, or leaves images of several sizes: one without a crop.
    pub fn new(preprocess: &Preprocess, decode: &DecodeOptions) -> Result<Self> {
        preprocess.validate()?;
        let (height, width) = preprocess
            .output_size()
            .ok_or_else(|| Error::setting("crop", "expected a size above 0, found none"))?;
        Ok(Self {
            preprocess: preprocess.clone(),
            decode: preprocess.decode_options(decode),
            height,
            width,
            decoding: Clock::default(),
            preparing: Clock::default(),
        })
    }

    /// Height and width of an image, in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.height, self.width)
    }

    /// Channels C of an image: 3, or its bands.
    pub fn channels(&self) -> usize {
        self.preprocess.channels()
    }

    /// Values of one image: C * H * W.
    pub fn image_len(&self) -> usize {
        self.channels() * self.height * self.width
    }

    /// Writes the network input of one row over all of `out` (`[C, H, W]`), and gives the decoded image.
    ///
    /// # Errors
    /// Names the image that cannot be decoded or prepared.
    pub fn read_one(
        &self,
        source: &dyn Source,
        row: u64,
        out: &mut [f32],
    ) -> std::result::Result<Image, RowError> {
        let image = self.decoding.time(|| source.load_image(row, &self.decode))?;
        let written = self.preparing.time(|| self.preprocess.write_image(&image, out));
        written.map_err(|error| RowError {
            path: source.record(row).path,
            reason: error.to_string(),
        })?;
        Ok(image)
    }

    /// Reads `rows` on all cores; a row that cannot be read changes nothing about the others.
    pub fn read(&self, source: &dyn Source, rows: &[u64]) -> ImageBatch {
        let len = self.image_len();
        let mut pixels = vec![0.0; rows.len() * len]; // [n, C, H, W]
        let errors: Vec<Option<RowError>> = pixels
            .par_chunks_exact_mut(len)
            .zip(rows)
            .map(|(out, &row)| self.read_one(source, row, out).err())
            .collect();
        let mut kept = 0;
        for (place, error) in errors.iter().enumerate() {
            if error.is_none() {
                pixels.copy_within(place * len..(place + 1) * len, kept * len);
                kept += 1;
            }
        }
        pixels.truncate(kept * len);
        ImageBatch { pixels, errors }
    }

    /// Reads `rows`, all of them: `[n, C, H, W]`.
    ///
    /// # Errors
    /// The first row that cannot be read.
    pub fn read_all(&self, source: &dyn Source, rows: &[u64]) -> Result<Vec<f32>> {
        let batch = self.read(source, rows);
        match batch.errors.into_iter().flatten().next() {
            Some(error) => Err(error.into()),
            None => Ok(batch.pixels),
        }
    }

    /// Time spent reading and decoding so far, over all threads.
    pub fn decode_time(&self) -> Duration {
        self.decoding.total()
    }

    /// Time spent resizing, cropping and normalising so far, over all threads.
    pub fn prepare_time(&self) -> Duration {
        self.preparing.total()
    }
}

impl ImageBatch {
    /// Which of the rows were read, ascending.
    pub fn places(&self) -> Vec<usize> {
        let all = self.errors.iter().enumerate();
        all.filter(|(_, error)| error.is_none())
            .map(|(place, _)| place)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{self, RgbImage};

    /// The bundled sample with one damaged row.
    struct Damaged(Box<dyn Source>, u64);

    impl Source for Damaged {
        fn len(&self) -> u64 {
            self.0.len()
        }

        fn record(&self, row: u64) -> data::Record {
            self.0.record(row)
        }

        fn load(&self, row: u64, options: &DecodeOptions) -> std::result::Result<RgbImage, RowError> {
            match row == self.1 {
                true => Err(RowError {
                    path: self.record(row).path,
                    reason: "damaged".to_owned(),
                }),
                false => self.0.load(row, options),
            }
        }

        fn describe(&self) -> serde_json::Value {
            self.0.describe()
        }
    }

    #[test]
    fn a_damaged_row_leaves_the_others_as_they_are_alone() {
        let source = Damaged(data::open("sample:test").unwrap(), 4);
        let reader = BatchReader::new(&Preprocess::imagenet(28, 28), &DecodeOptions::default()).unwrap();
        assert_eq!((reader.size(), reader.image_len()), ((28, 28), 3 * 28 * 28));
        let batch = reader.read(&source, &[7, 4, 2]);
        assert_eq!(batch.places(), [0, 2]);
        assert_eq!(batch.errors[1].as_ref().unwrap().reason, "damaged");
        let alone = |row| reader.read_all(&source, &[row]);
        assert_eq!(batch.pixels, [alone(7).unwrap(), alone(2).unwrap()].concat());
        assert!(alone(4).unwrap_err().to_string().ends_with(": damaged"));
        let error = BatchReader::new(
            &Preprocess {
                crop: None,
                ..Preprocess::imagenet(28, 28)
            },
            &DecodeOptions::default(),
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "crop: expected a size above 0, found none"
        );
    }
}
