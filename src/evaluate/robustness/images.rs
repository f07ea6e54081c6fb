//! Some rows of a source as the model is about to see them, clean or corrupted.

use std::borrow::Cow;

use serde_json::{Value, json};

use crate::data::corrupt::{Corruption, Severity};
use crate::data::{DecodeOptions, Preprocess, Record, RgbImage, RowError, Source};

/// Test images after resize and crop, before normalisation. Each keeps the number of its row in the source, which decides
/// its random numbers.
pub(super) struct TestImages<'a> {
    source: &'a dyn Source,
    rows: &'a [u64],
    preprocess: &'a Preprocess,
    /// What is left to do: normalisation.
    rest: Cow<'a, Preprocess>,
    corrupted: Option<(Corruption, Severity, u64)>,
}

impl<'a> TestImages<'a> {
    /// `rows` of `source`, clean, resized and cropped as `preprocess` says.
    pub fn new(source: &'a dyn Source, rows: &'a [u64], preprocess: &'a Preprocess) -> Self {
        Self {
            source,
            rows,
            preprocess,
            // A crop to the size that an image has leaves it as it is.
            rest: Cow::Owned(Preprocess {
                resize: None,
                ..preprocess.clone()
            }),
            corrupted: None,
        }
    }

    /// The same images under a corruption.
    pub fn corrupted(&'a self, corruption: Corruption, severity: Severity, seed: u64) -> Self {
        Self {
            rest: Cow::Borrowed(&self.rest),
            corrupted: Some((corruption, severity, seed)),
            ..*self
        }
    }

    /// What turns these images into network input.
    pub fn preprocess(&self) -> &Preprocess {
        &self.rest
    }

    fn row(&self, place: u64) -> u64 {
        self.rows[place as usize]
    }
}

impl Source for TestImages<'_> {
    fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    fn record(&self, place: u64) -> Record {
        self.source.record(self.row(place))
    }

    fn load(&self, place: u64, options: &DecodeOptions) -> Result<RgbImage, RowError> {
        let row = self.row(place);
        let error = |error: crate::Error| RowError {
            path: self.source.record(row).path,
            reason: error.to_string(),
        };
        let image = self
            .preprocess
            .pixels(&self.source.load(row, options)?)
            .map_err(error)?;
        match self.corrupted {
            None => Ok(image),
            Some((corruption, severity, seed)) => {
                corruption.apply(&image, severity, seed, row).map_err(error)
            }
        }
    }

    fn describe(&self) -> Value {
        let corruption = self.corrupted.map(
            |(corruption, severity, _)| json!({ "name": corruption.name(), "severity": severity.get() }),
        );
        json!({ "kind": "corrupted", "source": self.source.describe(), "rows": self.rows.len(), "corruption": corruption })
    }

    fn is_grey(&self) -> bool {
        self.source.is_grey()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;

    #[test]
    fn rows_keep_their_numbers_and_their_random_numbers() {
        let source = data::open("sample:test").unwrap();
        let preprocess = Preprocess {
            crop: Some((20, 24)),
            ..Preprocess::imagenet(30, 24)
        };
        let decode = DecodeOptions::default();
        let severity = Severity::new(4).unwrap();
        let load = |rows: &[u64], place: u64| {
            let images = TestImages::new(source.as_ref(), rows, &preprocess);
            let corrupted = images.corrupted(Corruption::GaussianNoise, severity, 3);
            assert_eq!(corrupted.record(place).row, rows[place as usize]);
            corrupted.load(place, &decode).unwrap()
        };
        assert_eq!(load(&[5, 9], 1), load(&[9], 0));
        assert_ne!(load(&[5, 9], 0), load(&[5, 9], 1));

        // Clean images become the tensors of the preprocessing itself.
        let rows = [9];
        let images = TestImages::new(source.as_ref(), &rows, &preprocess);
        let mut tensors = [vec![0.0; 3 * 20 * 24], vec![0.0; 3 * 20 * 24]];
        let clean = images.load(0, &decode).unwrap();
        images.preprocess().write_tensor(&clean, &mut tensors[0]).unwrap();
        preprocess
            .write_tensor(&source.load(9, &decode).unwrap(), &mut tensors[1])
            .unwrap();
        assert_eq!(tensors[0], tensors[1]);
    }
}
