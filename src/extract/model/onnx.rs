//! An ONNX file run by ONNX Runtime: macula's own, or any that takes images.

use std::panic::resume_unwind;
use std::path::Path;

use serde_json::json;

use super::preprocess::{Size, check_size, of_file};
use super::tokens::{Part, Tokens};
use super::{FeatureModel, ModelOptions, OpenModel, OutputChoice, PreprocessOverrides};
use crate::data::Preprocess;
use crate::extract::OutputSpec;
use crate::identity::OnnxFiles;
use crate::runtime::{Flavor, OnnxModel, Runtime, RuntimeOptions, SessionOptions, TensorInfo};
use crate::{Error, Result};

/// Output that is the class token.
const CLS: &str = "cls";
/// Outputs whose first token is the class token where a file has no output `cls` (transformers' name).
const TOKENS: &str = "last_hidden_state";
/// What stands for an image where a file has no class token, the first that it has; else [`PATCH_MEAN`] of [`TOKENS`].
const INSTEAD_OF_CLS: [&str; 2] = ["image_embeds", "pooler_output"];
const PATCH_MEAN: &str = "patch_mean";

/// Features from an ONNX file.
pub struct OnnxFeatures {
    session: OnnxModel,
    /// The outputs of the graph that are computed.
    names: Vec<String>,
    /// The features that are made of them.
    taken: Vec<Taken>,
    outputs: Vec<OutputSpec>,
    description: serde_json::Value,
    channels: usize,
    height: usize,
    width: usize,
    /// Batch size that the file fixes, if it does.
    fixed_batch: Option<usize>,
}

/// One output as features are asked for: a part of one of the graph's.
struct Taken {
    name: String,
    /// Place in `names`.
    from: usize,
    part: Part,
}

/// The library, and a session of the file at `path`.
fn session_of(path: &Path, options: &ModelOptions) -> Result<(&'static Runtime, OnnxModel)> {
    let runtime = Runtime::open(&RuntimeOptions {
        ort_lib: options.ort_lib.clone(),
        flavor: Flavor::of_device(options.device),
        ..RuntimeOptions::default()
    })?;
    let session_options = SessionOptions {
        device: options.device,
        threads: options.threads,
        compute: options.compute,
    };
    Ok((runtime, OnnxModel::open(runtime, path, &session_options)?))
}

pub(super) fn open(path: &Path, options: &ModelOptions) -> Result<OpenModel> {
    let file = path.display().to_string();
    // First: a missing file of external data is named here, whatever the runtime would say.
    let files = OnnxFiles::of(path)?;
    // Both read all values, and neither needs the other.
    let (sha256, opened) = std::thread::scope(|scope| {
        let hashing = scope.spawn(|| files.sha256());
        let opened = session_of(path, options);
        let sha256 = hashing.join().unwrap_or_else(|panic| resume_unwind(panic));
        (sha256, opened)
    });
    let (sha256, (runtime, session)) = (sha256?, opened?);
    if let Some(notice) = session.notice() {
        tracing::info!("{notice}");
    }
    let [batch, channels, height, width] = session.image_dims();
    let preprocess = preprocess_of(path, &session, options, [channels, height, width])?;
    check_size(&file, &preprocess, (height, width))?;
    let (height, width) = preprocess.crop.unwrap_or((1, 1));
    let mut model = OnnxFeatures {
        description: json!({
            "kind": "onnx",
            "file": path.file_name().map(|name| name.to_string_lossy()),
            "sha256": sha256,
            "metadata": session.metadata(),
            "runtime": runtime.library().version,
            "providers": session.providers(),
            "compute": options.compute,
        }),
        fixed_batch: batch,
        session,
        names: Vec::new(),
        taken: Vec::new(),
        outputs: Vec::new(),
        channels: preprocess.channels(),
        height: height as usize,
        width: width as usize,
    };
    model.choose(&file, &options.outputs)?;
    model.probe(&file)?;
    Ok(OpenModel {
        model: Box::new(model),
        preprocess,
    })
}

/// Names of the outputs that can be features.
fn float_outputs(session: &OnnxModel) -> Vec<String> {
    let floats = session.outputs().iter().filter(|output| output.is_float());
    floats.map(|output: &TensorInfo| output.name.clone()).collect()
}

/// Key of an ONNX file's metadata, for messages.
const OWN: &str = "metadata macula.preprocess";

fn preprocess_of(
    path: &Path,
    session: &OnnxModel,
    options: &ModelOptions,
    [channels, height, width]: [Option<usize>; 3],
) -> Result<Preprocess> {
    let file = path.display().to_string();
    let own = session.metadata().get("macula.preprocess");
    let what = format!("{file}: {OWN}");
    let own = own.map(|json| (what.as_str(), json.as_str()));
    let side = |side: Option<usize>| side.unwrap_or(224) as u32;
    let size = Size::Stated(side(height), side(width));
    if !session.takes_levels() {
        return of_file(path, own, channels, size, &options.preprocess);
    }
    if let Some(channels) = channels.filter(|channels| *channels != 3) {
        let reason = format!("expected levels (uint8) of 3 channels, found {channels}");
        return Err(Error::input(file, reason));
    }
    let (mean, std) = levels(&file, (&options.preprocess.mean, &options.preprocess.std))?;
    let flags = PreprocessOverrides {
        mean: Some(mean.to_vec()),
        std: Some(std.to_vec()),
        ..options.preprocess.clone()
    };
    of_file(path, own, channels, size, &flags)
}

/// Mean and deviation that leave levels from 0 to 255 as they are, for a graph of bytes, which normalises by itself.
///
/// # Errors
/// A mean or deviation that flags give.
pub fn levels<T>(file: &str, given: (&Option<T>, &Option<T>)) -> Result<([f32; 3], [f32; 3])> {
    if given.0.is_some() || given.1.is_some() {
        let reason =
            "takes levels from 0 to 255 (uint8) and normalises them itself: expected no mean or deviation";
        return Err(Error::input(file, reason));
    }
    tracing::info!("{file} takes levels from 0 to 255 (uint8): nothing is normalised before it");
    Ok(([0.0; 3], [1.0 / 255.0; 3]))
}

impl OnnxFeatures {
    /// Decides which features are made of which outputs of the graph, and says what has another name than was asked for.
    fn choose(&mut self, file: &str, choice: &OutputChoice) -> Result<()> {
        let own = float_outputs(&self.session);
        let tokens = match own.iter().any(|name| name == CLS) || !own.iter().any(|name| name == TOKENS) {
            true => None,
            false => Some(self.tokens(file)?),
        };
        let parts: Vec<(&str, Part)> = tokens.as_ref().map(Tokens::parts).unwrap_or_default();
        let derived = parts.iter().map(|(name, _)| (*name).to_owned());
        let derived: Vec<String> = derived.filter(|name| !own.contains(name)).collect();
        let mut available = own.clone();
        available.extend(derived.iter().cloned());
        let names = match choice {
            OutputChoice::Default if !available.iter().any(|name| name == CLS) => {
                let own = INSTEAD_OF_CLS
                    .iter()
                    .find(|name| own.iter().any(|have| have == *name));
                let mean = derived.iter().find(|name| *name == PATCH_MEAN);
                match own.map(|name| (*name).to_owned()).or(mean.cloned()) {
                    Some(name) => vec![name],
                    None => choice.choose(file, &available)?,
                }
            }
            _ => choice.choose(file, &available)?,
        };
        for name in &names {
            let (from, part) = match parts.iter().find(|(part, _)| part == name) {
                Some((_, part)) if derived.contains(name) => (TOKENS, *part),
                _ => (name.as_str(), Part::Whole),
            };
            let place = self.names.iter().position(|known| known == from);
            let place = place.unwrap_or_else(|| {
                self.names.push(from.to_owned());
                self.names.len() - 1
            });
            self.taken.push(Taken {
                name: name.clone(),
                from: place,
                part,
            });
        }
        self.say(file, choice, &own, tokens.as_ref());
        Ok(())
    }

    /// The layout of the tokens: its shape on a black image.
    fn tokens(&mut self, file: &str) -> Result<Tokens> {
        let n = self.fixed_batch.unwrap_or(1);
        let results = self.run_black(n, &[TOKENS.to_owned()])?;
        let shape = results.into_iter().next().map(|result| result.shape);
        match shape.as_deref() {
            Some(&[batch, count, width]) if batch == n && count > 0 && width > 0 => {
                Ok(Tokens::new(count, (self.height, self.width)))
            }
            shape => Err(Error::input(
                file,
                format!(
                    "output `{TOKENS}`: expected [batch, tokens, width], found {:?}",
                    shape.unwrap_or_default()
                ),
            )),
        }
    }

    /// Says which output was taken where the user did not name it, and of what a part was made.
    fn say(&mut self, file: &str, choice: &OutputChoice, own: &[String], tokens: Option<&Tokens>) {
        for taken in &self.taken {
            let from = &self.names[taken.from];
            let Some(tokens) = tokens.filter(|_| taken.part != Part::Whole) else {
                continue;
            };
            tracing::info!(
                "{file}: {} is {} of {from}",
                taken.name,
                tokens.describe(taken.part)
            );
            self.description["taken"][&taken.name] =
                json!(format!("{} of {from}", tokens.describe(taken.part)));
        }
        let [taken] = self.taken.as_slice() else { return };
        let others: Vec<&str> = own
            .iter()
            .map(String::as_str)
            .filter(|name| *name != taken.name)
            .collect();
        if *choice == OutputChoice::Default && taken.name != CLS
            || !others.is_empty() && taken.part != Part::Whole
        {
            let others = match others.is_empty() {
                true => "no other".to_owned(),
                false => others.join(", "),
            };
            tracing::info!(
                "{file}: taking output {}; there is {others}, which --output names",
                taken.name
            );
        }
    }

    /// Of `n` images.
    fn shape(&self, n: usize) -> [usize; 4] {
        [n, self.channels, self.height, self.width]
    }

    /// Values of an image.
    fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    fn run_black(&mut self, n: usize, names: &[String]) -> Result<Vec<crate::runtime::OutputTensor>> {
        let pixels = vec![0f32; n * self.image_len()];
        self.session.run(&pixels, self.shape(n), names)
    }

    /// Runs one black image to learn the outputs' shapes: a file need not state them, and a dynamic one cannot.
    fn probe(&mut self, file: &str) -> Result<()> {
        let n = self.fixed_batch.unwrap_or(1);
        let results = self.run_black(n, &self.names.clone())?;
        for output in &results {
            if output.shape.first() != Some(&n) || output.data.len() % n != 0 || output.data.is_empty() {
                return Err(Error::input(
                    file,
                    format!(
                        "output `{}`: expected one row an image ([{n}, ..]), found shape {:?}",
                        output.name, output.shape
                    ),
                ));
            }
        }
        for taken in &self.taken {
            let shape = match &results[taken.from].shape[1..] {
                [] => vec![1],
                rest => taken.part.shape(rest),
            };
            self.outputs.push(OutputSpec {
                name: taken.name.clone(),
                shape,
            });
        }
        Ok(())
    }

    fn run_chunk(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        let shape = self.shape(n);
        let results = self.session.run(pixels, shape, &self.names)?;
        for ((taken, spec), buffer) in self.taken.iter().zip(&self.outputs).zip(outputs) {
            let result = &results[taken.from];
            let before = buffer.len();
            let fits = result.shape.first() == Some(&n) && result.data.len() % n == 0;
            if fits {
                taken.part.append(&result.data, n, &result.shape, buffer);
            }
            if buffer.len() - before != n * spec.width() {
                return Err(Error::failed(
                    &result.name,
                    format!(
                        "expected {n} x {} values, found shape {:?}",
                        spec.width(),
                        result.shape
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl FeatureModel for OnnxFeatures {
    fn outputs(&self) -> &[OutputSpec] {
        &self.outputs
    }

    fn describe(&self) -> serde_json::Value {
        self.description.clone()
    }

    fn run(&mut self, pixels: &[f32], n: usize, outputs: &mut [Vec<f32>]) -> Result<()> {
        let Some(fixed) = self.fixed_batch.filter(|fixed| *fixed != n) else {
            return self.run_chunk(pixels, n, outputs);
        };
        let image = self.image_len();
        let widths: Vec<usize> = self.outputs.iter().map(OutputSpec::width).collect();
        for chunk in pixels.chunks(fixed * image) {
            let images = chunk.len() / image;
            let mut padded = chunk.to_vec();
            padded.resize(fixed * image, 0.0);
            let starts: Vec<usize> = outputs.iter().map(Vec::len).collect();
            self.run_chunk(&padded, fixed, outputs)?;
            for ((buffer, start), width) in outputs.iter_mut().zip(starts).zip(&widths) {
                buffer.truncate(start + images * width);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;
    use crate::data::transform::Resize;
    use crate::device::{Device, Dtype};

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/onnx")
            .join(name)
    }

    /// Opens a fixture for images of 28 x 28 that are left as they are, from 0 to 1.
    fn open_fixture(name: &str, outputs: &[&str]) -> Result<OpenModel> {
        open(
            &fixture(name),
            &ModelOptions {
                outputs: OutputChoice::named(outputs),
                preprocess: PreprocessOverrides {
                    resize: Some(Resize::Shorter(0)),
                    crop: Some(28),
                    mean: (!name.starts_with("levels")).then_some(vec![0.0; 3]),
                    std: (!name.starts_with("levels")).then_some(vec![1.0; 3]),
                    ..PreprocessOverrides::default()
                },
                device: Device::Cpu,
                compute: Dtype::F32,
                threads: 1,
                ort_lib: None,
                checkpoint: Default::default(),
            },
        )
    }

    /// `n` images: every cell of 14 x 14 of every channel has a level of its own, `cells` `[n, 3, 2, 2]`.
    fn images(n: usize) -> (Vec<f32>, Vec<f32>) {
        let cells: Vec<f32> = (0..n * 12).map(|place| ((place * 5 + 1) % 32) as f32).collect();
        let pixel = |place: usize| {
            let (plane, y, x) = (place / 784, place / 28 % 28, place % 28);
            cells[plane * 4 + (y / 14) * 2 + x / 14]
        };
        ((0..n * 3 * 784).map(pixel).collect(), cells)
    }

    fn run(model: &mut OpenModel, pixels: &[f32], n: usize) -> Vec<Vec<f32>> {
        let mut outputs = vec![Vec::new(); model.model.outputs().len()];
        model.model.run(pixels, n, &mut outputs).unwrap();
        outputs
    }

    /// The mean of each channel, `[n, 3]`, times `factor`.
    fn means(cells: &[f32], factor: f32) -> Vec<f32> {
        cells
            .chunks_exact(4)
            .map(|cells| cells.iter().sum::<f32>() / 4.0 * factor)
            .collect()
    }

    /// `[n, 3, 4]` to tokens `[n, 4, 3]`.
    fn patches(cells: &[f32]) -> Vec<f32> {
        let image = |image: &[f32]| -> Vec<f32> {
            let token = |cell: usize| (0..3).map(move |channel| channel * 4 + cell);
            (0..4).flat_map(token).map(|place| image[place]).collect()
        };
        cells.chunks_exact(12).flat_map(image).collect()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-4, "{found:?} for {expected:?}");
        }
    }

    #[test]
    fn hidden_states_give_class_token_and_patches() {
        let (pixels, cells) = images(3);
        let mut model = open_fixture("hidden_state.onnx", &[]).unwrap();
        assert_eq!(model.model.outputs()[0].name, "cls");
        assert_eq!(model.model.outputs()[0].shape, [3]);
        let taken = model.model.describe()["taken"]["cls"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(taken, "the class token (first of 5) of last_hidden_state");
        close(&run(&mut model, &pixels, 3)[0], &means(&cells, 1.0));
        let requested = [
            "pooler_output",
            "patch",
            "image_embeds",
            "patch_mean",
            "last_hidden_state",
        ];
        let mut model = open_fixture("hidden_state.onnx", &requested).unwrap();
        let shapes: Vec<Vec<usize>> = model.model.outputs().iter().map(|o| o.shape.clone()).collect();
        assert_eq!(shapes, [vec![3], vec![4, 3], vec![3], vec![3], vec![5, 3]]);
        let outputs = run(&mut model, &pixels, 3);
        close(&outputs[0], &means(&cells, 2.0));
        close(&outputs[1], &patches(&cells));
        close(&outputs[2], &means(&cells, 3.0));
        close(&outputs[3], &means(&cells, 1.0));
        assert_eq!(outputs[4].len(), 3 * 15);
    }

    #[test]
    fn registers_are_no_patches_and_a_fixed_batch_is_filled_up() {
        let (pixels, cells) = images(3);
        let mut model = open_fixture("hidden_state_reg4.onnx", &["cls", "reg", "patch"]).unwrap();
        let outputs = run(&mut model, &pixels, 3);
        close(&outputs[0], &means(&cells, 1.0));
        let registers = means(&cells, 1.0);
        let registers = registers
            .chunks_exact(3)
            .flat_map(|mean| (1..=4).flat_map(move |k| mean.iter().map(move |value| -value * k as f32)));
        close(&outputs[1], &registers.collect::<Vec<_>>());
        close(&outputs[2], &patches(&cells));
    }

    #[test]
    fn a_patch_is_never_taken_for_a_class_token() {
        let (pixels, cells) = images(2);
        let mut model = open_fixture("hidden_state_patches.onnx", &[]).unwrap();
        assert_eq!(model.model.outputs()[0].name, "patch_mean");
        close(&run(&mut model, &pixels, 2)[0], &means(&cells, 1.0));
        let Err(error) = open_fixture("hidden_state_patches.onnx", &["cls"]) else {
            panic!("a patch passed for a class token");
        };
        let error = error.to_string();
        assert!(
            error.contains("no output `cls`; it has last_hidden_state, patch, patch_mean"),
            "{error}"
        );
    }

    #[test]
    fn bytes_with_the_channels_last_are_the_images_own_levels() {
        let mut model = open_fixture("levels_nhwc.onnx", &["embedding", "first_pixel"]).unwrap();
        let source = data::open("sample:test").unwrap();
        let image = source.load(3, &data::DecodeOptions::default()).unwrap();
        let mut pixels = vec![0.0; 3 * 28 * 28];
        model.preprocess.write_tensor(&image, &mut pixels).unwrap();
        let outputs = run(&mut model, &pixels, 1);
        let red = image.data().iter().step_by(3);
        let mean = red.map(|&level| f64::from(level)).sum::<f64>() / 784.0;
        assert!(mean > 10.0);
        close(&outputs[0], &[mean as f32; 3]);
        let corner: Vec<f32> = image.data()[..3].iter().map(|&level| f32::from(level)).collect();
        assert_eq!(outputs[1], corner);

        // Every level comes through as itself, and channels are not mixed.
        let all: Vec<u8> = (0..28 * 28 * 3).map(|place| (place % 251) as u8).collect();
        let image = data::RgbImage::new(28, 28, all.clone()).unwrap();
        model.preprocess.write_tensor(&image, &mut pixels).unwrap();
        let sums = |channel: usize| {
            all.iter()
                .skip(channel)
                .step_by(3)
                .map(|&v| f64::from(v))
                .sum::<f64>()
        };
        let expected: Vec<f32> = (0..3).map(|channel| (sums(channel) / 784.0) as f32).collect();
        let outputs = run(&mut model, &pixels, 1);
        close(&outputs[0], &expected);
        assert_eq!(outputs[1], [0.0, 1.0, 2.0]);

        let options = levels("m.onnx", (&Some([0.5_f32; 3]), &None))
            .unwrap_err()
            .to_string();
        assert!(
            options.contains("uint8") && options.contains("no mean"),
            "{options}"
        );
    }

    #[test]
    fn halves_with_the_channels_last_are_turned_too() {
        let error = open_fixture("f16_nhwc.onnx", &[]).err().unwrap().to_string();
        assert!(
            error.contains("expects images of 8x8 (height x width)"),
            "{error}"
        );
        let runtime = crate::runtime::environment::runtime_for_tests();
        let options = SessionOptions {
            device: Device::Cpu,
            ..SessionOptions::default()
        };
        let mut session = OnnxModel::open(runtime, &fixture("f16_nhwc.onnx"), &options).unwrap();
        assert_eq!(session.image_dims(), [Some(1), Some(3), Some(8), Some(8)]);
        let pixels: Vec<f32> = (0..3 * 64).map(|place| (place / 64) as f32 + 0.5).collect();
        let outputs = session.run(&pixels, [1, 3, 8, 8], &[]).unwrap();
        assert_eq!(outputs[0].data, [0.5, 1.5, 2.5]);
    }

    #[test]
    fn inputs_beside_the_images_get_their_constants_or_are_named() {
        let (pixels, cells) = images(2);
        let mut model = open_fixture("more_inputs.onnx", &[]).unwrap();
        // Position table as it is (+ 0), every pixel seen (+ 1), no patch masked (+ 0).
        let expected: Vec<f32> = means(&cells, 1.0).iter().map(|mean| mean + 1.0).collect();
        close(&run(&mut model, &pixels, 2)[0], &expected);
        let error = open_fixture("with_text.onnx", &["image_embeds"])
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("with_text.onnx: input `input_ids i64 [texts, length]`"),
            "{error}"
        );
    }

    #[test]
    fn images_that_share_a_row_are_refused() {
        let (pixels, cells) = images(2);
        let mut model = open_fixture("one_row.onnx", &[]).unwrap();
        close(
            &run(&mut model, &pixels[..3 * 784], 1)[0],
            &means(&cells[..12], 1.0),
        );
        let error = model
            .model
            .run(&pixels, 2, &mut [Vec::new()])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cls: expected 2 x 3 values, found shape [1, 6]"),
            "{error}"
        );
    }
}
