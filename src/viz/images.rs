//! Which rows are shown, and how the model sees them.

use macula_eval::Matrix;
use rand::seq::SliceRandom as _;

use crate::data::{BatchReader, DecodeOptions, Image, Preprocess, RgbImage, Source};
use crate::extract::model::FeatureModel;
use crate::{Error, Result, rng};

/// Images in one run of a model.
const BATCH: usize = 8;
/// More pictures than this are not looked at, and would not fit one sheet.
const MOST: usize = 1000;

/// Which rows of a source to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// These, in this order; drawn at random where there are none.
    pub rows: Vec<u64>,
    /// How many are drawn, 1 to 1,000; all where there are fewer.
    pub count: usize,
    /// Seed of the draw.
    pub seed: u64,
}

impl Choice {
    /// The rows of a source of `len` rows, ascending where they are drawn; `what` names the source.
    ///
    /// # Errors
    /// A row that is not there, or a count out of range.
    pub fn rows_in(&self, len: u64, what: &str) -> Result<Vec<u64>> {
        if let Some(row) = self.rows.iter().find(|&&row| row >= len) {
            return Err(Error::setting(
                "rows",
                format!("expected rows below {len} (the rows of {what}), found {row}"),
            ));
        }
        let count = if self.rows.is_empty() {
            self.count
        } else {
            self.rows.len()
        };
        if !(1..=MOST).contains(&count) {
            return Err(Error::setting(
                "n",
                format!("expected 1 to {MOST} pictures, found {count}"),
            ));
        }
        if !self.rows.is_empty() {
            return Ok(self.rows.clone());
        }
        let mut all: Vec<u64> = (0..len).collect();
        let (drawn, _) = all.partial_shuffle(&mut rng::stream(self.seed, "viz", 0), count);
        drawn.sort_unstable();
        Ok(drawn.to_vec())
    }
}

/// Images as a model sees them: resized and cropped.
#[derive(Debug)]
pub struct ModelInputs {
    /// The pictures, all of one size.
    pub pictures: Vec<RgbImage>,
    /// Their labels, or their names where they have none.
    pub captions: Vec<String>,
    /// Network input, `[n, 3, H, W]`.
    pub pixels: Vec<f32>,
    /// Height and width in pixels.
    pub size: (usize, usize),
}

impl ModelInputs {
    /// Reads `rows` of `source`.
    ///
    /// # Errors
    /// An image that cannot be read (named), or a preprocessing that leaves images of several sizes.
    pub fn read(
        source: &dyn Source,
        rows: &[u64],
        preprocess: &Preprocess,
        decode: &DecodeOptions,
    ) -> Result<Self> {
        preprocess.need_rgb("viz")?;
        let reader = BatchReader::new(preprocess, decode)?;
        let len = reader.image_len();
        let mut inputs = Self {
            pictures: Vec::with_capacity(rows.len()),
            captions: Vec::with_capacity(rows.len()),
            pixels: vec![0.0; rows.len() * len],
            size: reader.size(),
        };
        for (&row, out) in rows.iter().zip(inputs.pixels.chunks_exact_mut(len)) {
            if let Image::Rgb(image) = reader.read_one(source, row, out)? {
                inputs.pictures.push(preprocess.pixels(&image)?);
            }
            let record = source.record(row);
            inputs.captions.push(record.label.unwrap_or(record.path));
        }
        Ok(inputs)
    }

    /// Values of one image.
    pub fn image_len(&self) -> usize {
        3 * self.size.0 * self.size.1
    }

    /// The first output of `model` for all images, `[n, width]`.
    ///
    /// # Errors
    /// What the model says.
    pub fn first_output(&self, model: &mut dyn FeatureModel) -> Result<Matrix> {
        let widths: Vec<usize> = model.outputs().iter().map(|output| output.width()).collect();
        let mut outputs = vec![Vec::new(); widths.len()];
        for batch in self.pixels.chunks(BATCH * self.image_len()) {
            model.run(batch, batch.len() / self.image_len(), &mut outputs)?;
        }
        let first = outputs.swap_remove(0);
        Ok(Matrix::new(first, self.pictures.len(), widths[0])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named_or_drawn() {
        let choice = |rows: &[u64], count| Choice {
            rows: rows.to_vec(),
            count,
            seed: 3,
        };
        assert_eq!(choice(&[4, 1], 9).rows_in(5, "data").unwrap(), [4, 1]);
        assert_eq!(choice(&[], 9).rows_in(3, "data").unwrap(), [0, 1, 2]);
        let drawn = choice(&[], 5).rows_in(100, "data").unwrap();
        assert_eq!(drawn, choice(&[], 5).rows_in(100, "data").unwrap());
        assert!(drawn.len() == 5 && drawn.windows(2).all(|pair| pair[0] < pair[1]));
        let error = |choice: Choice| choice.rows_in(5, "photos").unwrap_err().to_string();
        assert_eq!(
            error(choice(&[5], 1)),
            "rows: expected rows below 5 (the rows of photos), found 5"
        );
        assert!(error(choice(&[], 0)).contains("found 0"));
    }
}
