//! Dense tasks from images to results: pairs of image and mask or depth ([`targets`]) are read and cut into windows
//! ([`images`], [`windows`]), a frozen model gives their patch features ([`model`]), and `macula_eval::protocols::dense`
//! trains and scores on those. The features of the training windows are held in memory, within a limit; test images are
//! scored as they come.

mod crop;
mod depth;
mod images;
mod model;
mod per_image;
mod segment;
mod targets;
mod windows;

pub use crop::DepthCrop;
pub use depth::depth;
pub use per_image::{PER_IMAGE_FILE, PerImage};
pub use segment::{Classes, segment};
pub use targets::{Depths, Masks};

use macula_eval::protocols::dense::PatchFeatures;
use macula_eval::table::EvalResult;
use serde_json::{Value, json};

use self::images::{Pixels, Reader};
use self::model::DenseModel;
use self::targets::{Target, check_files};
use crate::data::{self, DecodeOptions, Source, SourceIdentity};
use crate::extract::ErrorPolicy;
use crate::extract::model::{ModelOptions, PatchLayers};
use crate::identity::Fingerprint;
use crate::{Error, Result};

/// What both dense tasks are asked for.
#[derive(Debug, Clone)]
pub struct DenseRequest {
    /// The model: an ONNX file, a checkpoint, or `pixels`.
    pub model: String,
    /// Source of the training images, with masks or depths.
    pub train_data: String,
    /// Source of the test images, with masks or depths.
    pub test_data: String,
    /// How to open the model; its outputs are chosen here.
    pub options: ModelOptions,
    /// Blocks whose patch tokens are used.
    pub layers: PatchLayers,
    /// Side of the cells that the pixel model averages over; 1 for any other model.
    pub cell: u32,
    /// Pixels from one window to the next; two thirds of a window where not given.
    pub stride: Option<u32>,
    /// Images, and windows, that are worked on at a time.
    pub batch: usize,
    /// What happens when an image or its target cannot be read; everything but `Fail` leaves it out.
    pub on_error: ErrorPolicy,
    /// Decoding of images.
    pub decode: DecodeOptions,
    /// Most bytes of training features and targets.
    pub memory: u64,
}

impl DenseRequest {
    fn validate(&self) -> Result<()> {
        if self.batch == 0 {
            return Err(request_error("batch", "expected at least 1, found 0".to_owned()));
        }
        if self.stride == Some(0) {
            return Err(request_error(
                "stride",
                "expected at least 1 pixel, found 0".to_owned(),
            ));
        }
        Ok(())
    }

    /// Rows and columns from one window to the next: at most a window, as what lies between two would not be seen.
    fn stride_of(&self, window: (usize, usize)) -> (usize, usize) {
        let stride = |side: usize| match self.stride {
            Some(stride) => (stride as usize).min(side),
            None => (2 * side).div_ceil(3),
        };
        (stride(window.0), stride(window.1))
    }
}

fn request_error(field: &str, reason: String) -> Error {
    Error::setting(field, reason)
}

/// Model and sources of one evaluation.
struct Opened {
    train: Box<dyn Source>,
    test: Box<dyn Source>,
    model: DenseModel,
}

impl Opened {
    /// Opens everything, and checks that every image has its target before any work is done.
    fn new<T: Target>(request: &DenseRequest, cls: bool) -> Result<Self> {
        request.validate()?;
        let train = data::open(&request.train_data)?;
        let test = data::open(&request.test_data)?;
        check_files::<T>(&request.train_data, train.as_ref())?;
        check_files::<T>(&request.test_data, test.as_ref())?;
        let model = DenseModel::open(request, train.as_ref(), cls)?;
        Ok(Self { train, test, model })
    }

    /// Says in `result` what it was made from.
    fn describe_into(&self, result: &mut EvalResult, request: &DenseRequest) -> Result<()> {
        let stride = request.stride_of(self.model.window);
        let mut all = self.model.describe(request);
        all["stride"] = json!([stride.0, stride.1]);
        all["train"] = json!(request.train_data);
        all["test"] = json!(request.test_data);
        all["train_source"] = self.train.describe();
        all["test_source"] = self.test.describe();
        for (role, source) in [("train", &self.train), ("test", &self.test)] {
            let identity = SourceIdentity::from_source(source.as_ref());
            let made = Fingerprint::new(&all["model"], &self.model.preprocess, &request.decode, identity)?;
            all[format!("{role}_fingerprint")] = json!(made);
        }
        all["tool_version"] = json!(env!("CARGO_PKG_VERSION"));
        if let (Value::Object(settings), Value::Object(all)) = (&mut result.settings, all) {
            settings.extend(all);
        }
        Ok(())
    }
}

/// Training windows in memory.
struct TrainWindows<V> {
    features: PatchFeatures,
    /// Target of every window's pixels, `[n, H, W]`.
    targets: Vec<V>,
    /// The image of each window.
    image_of: Vec<usize>,
    /// What the targets hold.
    pixels: Pixels,
}

/// Reads all training images.
fn train_windows<T: Target>(
    request: &DenseRequest,
    source: &dyn Source,
    target: &T,
    model: &mut DenseModel,
) -> Result<TrainWindows<T::Value>> {
    let reader = Reader {
        source,
        target,
        request,
        doing: "train",
    };
    let (window, per_window) = (model.window, model.window_len());
    let (mut features, mut targets, mut image_of) = (Vec::new(), Vec::new(), Vec::new());
    let mut images = 0;
    let pixels = reader.run(model, |image, own| {
        features.extend_from_slice(own);
        image.window_targets(window, T::VOID, &mut targets);
        image_of.resize(image_of.len() + image.places.len(), images);
        images += 1;
        let bytes = 4 * features.len() as u64 + (size_of::<T::Value>() * targets.len()) as u64;
        check_memory(bytes, images as u64, source.len(), request.memory)
    })?;
    let features = PatchFeatures::new(features, model.grid, model.dim)?;
    let bytes = 4 * features.len() * per_window + size_of::<T::Value>() * targets.len();
    tracing::info!(
        "train: {images} images, {} windows of {}x{} patches with {} channels, {:.0} MiB in memory",
        features.len(),
        model.grid.0,
        model.grid.1,
        model.dim,
        bytes as f64 / f64::from(1 << 20)
    );
    Ok(TrainWindows {
        features,
        targets,
        image_of,
        pixels,
    })
}

/// Refuses more than `limit` bytes, and says how much all images would take.
fn check_memory(bytes: u64, images: u64, of: u64, limit: u64) -> Result<()> {
    if bytes <= limit {
        return Ok(());
    }
    let gigabytes = |bytes: f64| bytes / f64::from(1 << 30);
    Err(Error::setting(
        "memory_gb",
        format!(
            "expected training features within {:.1} GiB, found about {:.1} GiB for {of} images; give fewer images or a higher limit",
            gigabytes(limit as f64),
            gigabytes(bytes as f64 / images as f64 * of as f64)
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_names_what_all_images_would_take() {
        assert!(check_memory(1 << 30, 10, 100, 1 << 30).is_ok());
        let error = check_memory(2 << 30, 10, 100, 1 << 30).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let error = error.to_string();
        assert!(
            error.contains("within 1.0 GiB, found about 20.0 GiB for 100 images"),
            "{error}"
        );
    }
}
