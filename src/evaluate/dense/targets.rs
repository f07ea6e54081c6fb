//! What lies beside an image: a mask of classes or a map of depths, from PNG files of one channel.

use std::path::Path;

use macula_eval::metrics::iou::VOID;

use super::crop::DepthCrop;
use crate::data::samples::{Samples, read_samples};
use crate::data::{DecodeOptions, Record, Source};
use crate::{Error, Result};

/// One value a pixel, `[height, width]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plane<V> {
    pub height: usize,
    pub width: usize,
    pub values: Vec<V>,
}

/// A kind of target: where its files are, and how their samples read.
pub(super) trait Target: Sync {
    /// What a pixel has.
    type Value: Copy + PartialEq + Send + Sync;
    /// The source's column.
    const NAME: &'static str;
    /// The value of a pixel that is left out.
    const VOID: Self::Value;

    /// The file that a source names.
    fn file(record: &Record) -> Option<&Path>;

    /// The value of one sample.
    ///
    /// # Errors
    /// What was expected and what was found.
    fn value(&self, sample: u16) -> std::result::Result<Self::Value, String>;

    /// Reads a file whose image has `height` and `width`.
    ///
    /// # Errors
    /// Names the file: missing, not of one channel, of another size than its image, or with a value out of range.
    fn read(
        &self,
        file: &Path,
        (height, width): (u32, u32),
        decode: &DecodeOptions,
    ) -> Result<Plane<Self::Value>> {
        let name = || file.display().to_string();
        let bytes = std::fs::read(file).map_err(|error| Error::io(file, error))?;
        let samples =
            read_samples(&bytes, decode.max_pixels).map_err(|reason| Error::input(name(), reason))?;
        if (samples.height, samples.width) != (height, width) {
            let reason = format!(
                "expected {width}x{height} pixels (width x height) like its image, found {}x{}",
                samples.width, samples.height
            );
            return Err(Error::input(name(), reason));
        }
        self.plane(&samples)
            .map_err(|reason| Error::input(name(), reason))
    }

    /// Leaves out of a map what does not count.
    ///
    /// # Errors
    /// A size that it cannot be done at.
    fn restrict(&self, _plane: &mut Plane<Self::Value>) -> std::result::Result<(), String> {
        Ok(())
    }

    /// The values of all samples.
    fn plane(&self, samples: &Samples) -> std::result::Result<Plane<Self::Value>, String> {
        let width = samples.width as usize;
        let values = samples.values.iter().enumerate().map(|(place, &sample)| {
            let failed =
                |reason: String| format!("{reason} in column {}, row {}", place % width, place / width);
            self.value(sample).map_err(failed)
        });
        let mut plane = Plane {
            height: samples.height as usize,
            width,
            values: values.collect::<std::result::Result<_, String>>()?,
        };
        self.restrict(&mut plane)?;
        Ok(plane)
    }
}

/// Refuses a source that does not name an existing file for every row.
pub(super) fn check_files<T: Target>(spec: &str, source: &dyn Source) -> Result<()> {
    for row in 0..source.len() {
        let record = source.record(row);
        let Some(file) = T::file(&record) else {
            return Err(Error::input(
                spec,
                format!(
                    "expected a `{}` for every image, found none for {} (row {row})",
                    T::NAME,
                    record.path
                ),
            ));
        };
        if !file.is_file() {
            return Err(Error::input(
                file.display().to_string(),
                format!(
                    "no such file; it is the {} of {} (row {row}) in {spec}",
                    T::NAME,
                    record.path
                ),
            ));
        }
    }
    Ok(())
}

/// How a mask's samples become classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masks {
    /// Number of classes, where it is known: greater labels are errors.
    pub classes: Option<usize>,
    /// The label that is left out of everything.
    pub ignore: u8,
    /// Whether label 0 is left out too and the others count from 1, as ADE20K has it (mmseg `reduce_zero_label`).
    pub reduce_zero: bool,
}

impl Target for Masks {
    type Value = u8;
    const NAME: &'static str = "mask";
    const VOID: u8 = VOID;

    fn file(record: &Record) -> Option<&Path> {
        record.mask.as_deref()
    }

    fn value(&self, sample: u16) -> std::result::Result<u8, String> {
        if sample == u16::from(self.ignore) || (self.reduce_zero && sample == 0) {
            return Ok(VOID);
        }
        let class = sample - u16::from(self.reduce_zero);
        let classes = self.classes.unwrap_or(usize::from(VOID));
        if usize::from(class) < classes {
            return Ok(class as u8);
        }
        let first = u16::from(self.reduce_zero);
        Err(format!(
            "expected labels from {first} to {} or {} (left out), found {sample}",
            classes as u64 - 1 + u64::from(first),
            self.ignore
        ))
    }
}

/// How a depth map's samples become depths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Depths {
    /// Samples in one unit of depth: 1,000 for millimetres where depth is in metres, 256 for KITTI.
    pub scale: f32,
    /// Which pixels count.
    pub crop: DepthCrop,
}

impl Target for Depths {
    type Value = f32;
    const NAME: &'static str = "depth";
    const VOID: f32 = 0.0;

    fn file(record: &Record) -> Option<&Path> {
        record.depth.as_deref()
    }

    fn value(&self, sample: u16) -> std::result::Result<f32, String> {
        Ok(f32::from(sample) / self.scale)
    }

    fn restrict(&self, plane: &mut Plane<f32>) -> std::result::Result<(), String> {
        let (height, width) = (plane.height, plane.width);
        self.crop.cut(&mut plane.values, height, width, Self::VOID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: Vec<u16>) -> Samples {
        Samples {
            width: values.len() as u32 / 2,
            height: 2,
            values,
        }
    }

    #[test]
    fn labels_are_checked_and_shifted() {
        let plain = Masks {
            classes: Some(3),
            ignore: 255,
            reduce_zero: false,
        };
        assert_eq!(
            plain.plane(&samples(vec![0, 2, 255, 1])).unwrap().values,
            [0, 2, VOID, 1]
        );
        let error = plain.plane(&samples(vec![0, 2, 255, 3])).unwrap_err();
        assert_eq!(
            error,
            "expected labels from 0 to 2 or 255 (left out), found 3 in column 1, row 1"
        );
        let ade = Masks {
            reduce_zero: true,
            ..plain
        };
        assert_eq!(
            ade.plane(&samples(vec![0, 1, 255, 3])).unwrap().values,
            [VOID, 0, VOID, 2]
        );
        assert!(
            ade.plane(&samples(vec![0, 4]))
                .unwrap_err()
                .contains("from 1 to 3 or 255")
        );
        let open = Masks {
            classes: None,
            ignore: 7,
            reduce_zero: false,
        };
        assert_eq!(open.plane(&samples(vec![7, 254])).unwrap().values, [VOID, 254]);
        assert!(
            open.plane(&samples(vec![255, 0]))
                .unwrap_err()
                .contains("from 0 to 254 or 7")
        );
    }

    #[test]
    fn depths_have_a_unit_and_zero_is_nothing() {
        let millimetres = Depths {
            scale: 1000.0,
            crop: DepthCrop::None,
        };
        let plane = millimetres.plane(&samples(vec![0, 1500, 65535, 1])).unwrap();
        assert_eq!((plane.height, plane.width), (2, 2));
        assert_eq!(plane.values, [Depths::VOID, 1.5, 65.535, 0.001]);
    }
}
