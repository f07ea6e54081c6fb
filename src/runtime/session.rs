//! A model opened with ONNX Runtime: what it takes and gives, and running it on a batch of images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ort::session::builder::GraphOptimizationLevel;
use ort::session::{OutputSelector, RunOptions, Session};

use super::environment::Runtime;
use super::fastest::fastest;
use super::inputs::Inputs;
use super::messages::short_reason;
use super::providers::{Provider, choose};
use super::tensors::{Dim, OutputTensor, OutputView, TensorInfo, as_f32};
use crate::device::{Device, Dtype};
use crate::{Error, Result};

/// How a model is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct SessionOptions {
    /// Where it runs.
    pub device: Device,
    /// Threads on the processor; 0 for as many as there are cores.
    pub threads: usize,
    /// What matrix products are computed in.
    pub compute: Dtype,
}

/// An ONNX file that takes images, ready to run. It is given batches `[B, C, H, W]` of f32, whatever order of axes and type the
/// graph wants them in; inputs beside the images get constants.
///
/// The same file, library, provider, number of threads and batch give the same bytes.
#[derive(Debug)]
pub struct OnnxModel {
    session: Session,
    path: PathBuf,
    inputs: Inputs,
    outputs: Vec<TensorInfo>,
    metadata: BTreeMap<String, String>,
    producer: String,
    provider: Provider,
    notice: Option<String>,
}

impl OnnxModel {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// When the file is missing, no ONNX file, damaged or without its external data; when it takes no images, or something
    /// beside them that has no value; and when the device cannot be had.
    pub fn open(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Self> {
        check_file(path)?;
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let choices = choose(runtime, options.device, options.compute)?;
        let mut candidates = Vec::with_capacity(choices.len());
        let mut refusals = Vec::new();
        for &provider in &choices {
            match build(runtime, path, provider, threads) {
                Ok(session) => candidates.push(Self::from_session(path, session, provider)?),
                Err(reason) => refusals.push((provider, reason)),
            }
        }
        let (mut model, mut notices) = match candidates.len() {
            0 => return Err(refused(path, refusals.pop())),
            1 => (candidates.swap_remove(0), Vec::new()),
            _ => fastest(candidates),
        };
        for (provider, reason) in refusals {
            notices.push(format!("{provider} was not usable: {reason}"));
        }
        if options.device == Device::Auto {
            notices.insert(0, format!("device auto: {}", model.provider));
        }
        notices.extend(model.provider.caution());
        model.notice = (!notices.is_empty()).then(|| notices.join("; "));
        Ok(model)
    }

    fn from_session(path: &Path, session: Session, provider: Provider) -> Result<Self> {
        let inputs = Inputs::new(session.inputs().iter().map(TensorInfo::new).collect())
            .map_err(|reason| Error::input(path.display().to_string(), reason))?;
        let outputs = session.outputs().iter().map(TensorInfo::new).collect();
        let (metadata, producer) = metadata_of(path, &session)?;
        Ok(Self {
            session,
            path: path.to_path_buf(),
            inputs,
            outputs,
            metadata,
            producer,
            provider,
            notice: None,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The input of images, as the file describes it.
    pub fn input(&self) -> &TensorInfo {
        self.inputs.image()
    }

    /// Batch, channels, height and width of the images, in this order, as far as the file fixes them.
    pub fn image_dims(&self) -> [Option<usize>; 4] {
        self.inputs.dims().map(Dim::fixed)
    }

    /// Whether the graph takes levels from 0 to 255 as bytes, and normalises them itself.
    pub fn takes_levels(&self) -> bool {
        self.inputs.takes_levels()
    }

    /// All outputs, in the file's order.
    pub fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    /// The file's `metadata_props`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The program that made the file; empty when it does not say.
    pub fn producer(&self) -> &str {
        &self.producer
    }

    /// What runs it.
    pub(super) fn provider(&self) -> Provider {
        self.provider
    }

    /// ONNX Runtime's names of the providers that may run the model's operators, the preferred one first.
    pub fn providers(&self) -> Vec<&'static str> {
        let all = [Some(self.provider), self.provider.beside(), Some(Provider::Cpu)];
        let mut names: Vec<&'static str> = all.into_iter().flatten().map(Provider::name).collect();
        names.dedup();
        names
    }

    /// What the user should know, for stderr: what `--device auto` chose, and what the processor lacks for the
    /// precision asked for.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// The description of the output `name`.
    ///
    /// # Errors
    /// When there is none; the error lists those there are.
    pub fn output(&self, name: &str) -> Result<&TensorInfo> {
        self.outputs
            .iter()
            .find(|output| output.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self.outputs.iter().map(|output| output.name.as_str()).collect();
                self.bad(format!("no output `{name}`; it has {}", names.join(", ")))
            })
    }

    /// Runs the model on `batch`, row-major `shape` = `[B, C, H, W]`, and returns the named `outputs` in the order
    /// asked; all floating-point ones when none is named.
    ///
    /// # Errors
    /// As [`run_with`](Self::run_with).
    pub fn run(&mut self, batch: &[f32], shape: [usize; 4], outputs: &[String]) -> Result<Vec<OutputTensor>> {
        let mut tensors = Vec::with_capacity(outputs.len());
        self.run_with(batch, shape, outputs, |view| {
            tensors.push(OutputTensor::from(view));
            Ok(())
        })?;
        Ok(tensors)
    }

    /// [`run`](Self::run) without a copy: `each` sees every output where ONNX Runtime holds it.
    ///
    /// # Errors
    /// When the shape is not what the model declares or the batch does not fill it, when an output does not exist or
    /// holds no floating-point numbers, when the model fails, and when `each` does.
    pub fn run_with(
        &mut self,
        batch: &[f32],
        shape: [usize; 4],
        outputs: &[String],
        mut each: impl FnMut(OutputView<'_>) -> Result<()>,
    ) -> Result<()> {
        self.check_batch(batch, shape)?;
        let names = self.output_names(outputs)?;
        let (path, session) = (&self.path, &mut self.session);
        let failed = |e: ort::Error| Error::failed(path.display().to_string(), short_reason(e.message()));
        self.inputs
            .check_range(batch)
            .map_err(|reason| Error::failed(path.display().to_string(), reason))?;
        let inputs = self.inputs.values(batch, shape).map_err(failed)?;
        let selected = names
            .iter()
            .fold(OutputSelector::no_default(), |all, name| all.with(name.as_str()));
        let options = RunOptions::new().map_err(failed)?.with_outputs(selected);
        let results = session.run_with_options(inputs, &options).map_err(failed)?;
        for name in &names {
            let gone = || Error::failed(path.display().to_string(), format!("gave no output `{name}`"));
            let value = results.get(name).ok_or_else(gone)?;
            each(as_f32(name, value).map_err(|reason| Error::input(path.display().to_string(), reason))?)?;
        }
        Ok(())
    }

    /// The outputs to compute: those asked for, each known and of floats; all of floats when none is.
    fn output_names(&self, requested: &[String]) -> Result<Vec<String>> {
        if requested.is_empty() {
            let floats = self.outputs.iter().filter(|output| output.is_float());
            return Ok(floats.map(|output| output.name.clone()).collect());
        }
        for name in requested {
            let output = self.output(name)?;
            if !output.is_float() {
                return Err(self.bad(format!(
                    "output `{name}`: expected floating-point numbers, found {}",
                    output.element
                )));
            }
        }
        Ok(requested.to_vec())
    }

    fn check_batch(&self, batch: &[f32], shape: [usize; 4]) -> Result<()> {
        let fits = |(size, dim): (&usize, &Dim)| {
            *size > 0 && matches!(dim, Dim::Dynamic(_)) || *dim == Dim::Fixed(*size)
        };
        if !shape.iter().zip(self.inputs.dims()).all(fits) {
            return Err(self.bad(format!("expected a batch for {}, found {shape:?}", self.inputs)));
        }
        let values = shape
            .iter()
            .try_fold(1_usize, |product, &size| product.checked_mul(size));
        if values != Some(batch.len()) {
            return Err(self.bad(format!(
                "expected a batch of {shape:?}, found {} values",
                batch.len()
            )));
        }
        Ok(())
    }

    fn bad(&self, reason: String) -> Error {
        Error::input(self.path.display().to_string(), reason)
    }
}

/// Refuses what ONNX Runtime would describe less clearly.
fn check_file(path: &Path) -> Result<()> {
    let found = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    let bad = |found: &str| {
        Err(Error::input(
            path.display().to_string(),
            format!("expected an ONNX file, found {found}"),
        ))
    };
    match found {
        found if found.is_dir() => bad("a folder"),
        found if found.len() == 0 => bad("an empty file"),
        _ => Ok(()),
    }
}

/// Why no provider runs the file: the reason of the last one tried.
fn refused(path: &Path, last: Option<(Provider, String)>) -> Error {
    let reason = match last {
        Some((Provider::Cpu, reason)) => reason,
        Some((other, reason)) => format!("{other} cannot run it: {reason}{}", other.hint(&reason)),
        None => "no execution provider can run it".to_owned(),
    };
    Error::input(path.display().to_string(), reason)
}

fn build(
    runtime: &Runtime,
    path: &Path,
    provider: Provider,
    threads: usize,
) -> std::result::Result<Session, String> {
    let reason = |e: ort::Error| short_reason(e.message());
    let providers = [Some(provider), provider.beside()].into_iter().flatten();
    let providers: Vec<_> = providers.map(|provider| provider.dispatch(threads)).collect();
    let configured = || -> ort::Result<_> {
        Ok(Session::builder(runtime.environment())?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            // Waiting threads would otherwise take the cores from those that decode images.
            .with_intra_op_spinning(false)?
            .with_memory_pattern(true)?
            .with_deterministic_compute(true)?
            .with_execution_providers(&providers)?)
    };
    configured()
        .map_err(reason)?
        .commit_from_file(path)
        .map_err(reason)
}

fn metadata_of(path: &Path, session: &Session) -> Result<(BTreeMap<String, String>, String)> {
    let failed = |e: ort::Error| Error::failed(path.display().to_string(), short_reason(e.message()));
    let metadata = session.metadata().map_err(failed)?;
    let keys = metadata.custom_keys().map_err(failed)?;
    let with_value = |key: String| metadata.custom(&key).map(|value| (key, value));
    Ok((
        keys.into_iter().filter_map(with_value).collect(),
        metadata.producer().unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::environment::runtime_for_tests;
    use super::*;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/onnx")
            .join(name)
    }

    fn open(name: &str) -> Result<OnnxModel> {
        open_file(
            &fixture(name),
            &SessionOptions {
                device: Device::Cpu,
                threads: 2,
                compute: Dtype::F32,
            },
        )
    }

    fn open_file(path: &Path, options: &SessionOptions) -> Result<OnnxModel> {
        OnnxModel::open(runtime_for_tests(), path, options)
    }

    /// The error of opening `path`, without the path; it must be one short line.
    fn refusal(path: &Path) -> String {
        let error = open_file(path, &SessionOptions::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        let text = error.to_string();
        assert!(!text.contains('\n') && text.len() < 500, "{text}");
        text.strip_prefix(&format!("{}: ", path.display()))
            .unwrap_or_else(|| panic!("{text}"))
            .to_owned()
    }

    #[test]
    fn a_model_is_described() {
        let model = open("pool.onnx").unwrap();
        assert_eq!(
            model.input().to_string(),
            "pixel_values f32 [batch, 3, height, width]"
        );
        let outputs: Vec<String> = model.outputs().iter().map(TensorInfo::to_string).collect();
        assert_eq!(
            outputs,
            [
                "cls f32 [batch, 3]",
                "patch f32 [batch, tokens, 3]",
                "brightest i64 [batch]"
            ]
        );
        let metadata: Vec<(&str, &str)> = model
            .metadata()
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(metadata, [("macula.arch", "pool"), ("macula.patch_size", "1")]);
        assert_eq!(model.producer(), "macula-tests");
        assert_eq!(model.providers(), ["CPUExecutionProvider"]);
        assert_eq!(model.notice(), None);
        let auto = open_file(&fixture("pool.onnx"), &SessionOptions::default()).unwrap();
        assert!(
            auto.notice().unwrap().starts_with("device auto: c"),
            "{:?}",
            auto.notice()
        );
        let json = serde_json::to_string(model.input()).unwrap();
        assert_eq!(
            json,
            r#"{"name":"pixel_values","element":"f32","dims":["batch",3,"height","width"]}"#
        );
    }

    #[test]
    fn outputs_come_by_name_in_the_order_requested() {
        let mut model = open("pool.onnx").unwrap();
        let batch: Vec<f32> = (0..2 * 3 * 2 * 2).map(|x| x as f32).collect();
        let shape = [2, 3, 2, 2];
        let all = model.run(&batch, shape, &[]).unwrap();
        assert_eq!(
            all.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(),
            ["cls", "patch"]
        );
        assert_eq!(all[0].shape, [2, 3]);
        assert_eq!(all[0].data, [1.5, 5.5, 9.5, 13.5, 17.5, 21.5]);
        assert_eq!(all[1].shape, [2, 4, 3]);
        assert_eq!(all[1].data[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
        let requested = model
            .run(&batch, shape, &["patch".to_owned(), "cls".to_owned()])
            .unwrap();
        assert_eq!([&requested[0], &requested[1]], [&all[1], &all[0]]);
        let mut borrowed = false;
        model
            .run_with(&batch, shape, &["cls".to_owned()], |view| {
                borrowed = matches!(view.data, std::borrow::Cow::Borrowed(_));
                Ok(())
            })
            .unwrap();
        assert!(borrowed, "an f32 output is not copied");
    }

    #[test]
    fn half_precision_and_doubles_are_converted() {
        let mut model = open("pool_f16.onnx").unwrap();
        assert_eq!(model.input().to_string(), "pixel_values f16 [batch, 3, 4, 4]");
        let batch: Vec<f32> = (0..48).map(|x| x as f32 / 8.0).collect();
        let outputs = model
            .run(&batch, [1, 3, 4, 4], &["cls_f64".to_owned(), "cls".to_owned()])
            .unwrap();
        assert_eq!(outputs[0].data, [0.9375, 2.9375, 4.9375]);
        assert_eq!(outputs[1].data, outputs[0].data);
    }

    #[test]
    fn the_same_batch_gives_the_same_bytes() {
        let batch: Vec<f32> = (0..4 * 3 * 32 * 32)
            .map(|x| ((x * 7919) % 1000) as f32 / 500.0 - 1.0)
            .collect();
        let once = || {
            let mut model = open("products.onnx").unwrap();
            let mut runs = (0..3).map(|_| model.run(&batch, [4, 3, 32, 32], &[]).unwrap().remove(0).data);
            let first = runs.next().unwrap();
            assert!(runs.all(|run| run.iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits())));
            first
        };
        let first = once();
        assert_eq!(first.len(), 4 * 48);
        assert!(first.iter().all(|x| x.is_finite()) && first[0] != first[1]);
        assert!(once().iter().zip(&first).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn batches_and_outputs_that_do_not_fit_are_refused() {
        let mut model = open("pool.onnx").unwrap();
        let name = fixture("pool.onnx").display().to_string();
        let mut refused = |batch: &[f32], shape, outputs: &[&str]| {
            let outputs: Vec<String> = outputs.iter().map(|&name| name.to_owned()).collect();
            let error = model.run(batch, shape, &outputs).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string().replace(&format!("{name}: "), "")
        };
        let declared = "pixel_values f32 [batch, 3, height, width]";
        let expected = format!("expected a batch for {declared}, found [1, 4, 2, 2]");
        assert_eq!(refused(&[0.0; 16], [1, 4, 2, 2], &[]), expected);
        assert_eq!(
            refused(&[], [0, 3, 2, 2], &[]),
            format!("expected a batch for {declared}, found [0, 3, 2, 2]")
        );
        assert_eq!(
            refused(&[0.0; 11], [1, 3, 2, 2], &[]),
            "expected a batch of [1, 3, 2, 2], found 11 values"
        );
        let huge = refused(&[0.0; 12], [usize::MAX, 3, 2, 2], &[]);
        assert!(huge.ends_with("found 12 values"), "{huge}");
        let missing = refused(&[0.0; 12], [1, 3, 2, 2], &["reg"]);
        assert_eq!(missing, "no output `reg`; it has cls, patch, brightest");
        let integers = refused(&[0.0; 12], [1, 3, 2, 2], &["brightest"]);
        assert_eq!(
            integers,
            "output `brightest`: expected floating-point numbers, found i64"
        );
    }

    #[test]
    fn inputs_that_are_no_images_are_refused() {
        let expected = "expected one input of images, float or uint8 [batch, channels, height, width] or \
                        [batch, height, width, channels], found ";
        assert_eq!(
            refusal(&fixture("vector_input.onnx")),
            format!("{expected}x f32 [batch, 8]")
        );
        assert_eq!(
            refusal(&fixture("int64_input.onnx")),
            format!("{expected}x i64 [batch, 3, height, width]")
        );
        let both = "a f32 [batch, 3, height, width] and b f32 [batch, 3, height, width]";
        assert_eq!(refusal(&fixture("two_inputs.onnx")), format!("{expected}{both}"));
    }

    #[test]
    fn types_that_the_bindings_do_not_know_are_no_crash() {
        let reason = refusal(&fixture("nested_sequence.onnx"));
        assert!(reason.contains("seq"), "{reason}");
    }

    #[test]
    fn files_that_are_no_models_are_refused_in_one_line() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.onnx");
        assert!(refusal(&path).contains("No such file") || cfg!(windows));
        assert_eq!(refusal(place.path()), "expected an ONNX file, found a folder");
        std::fs::write(&path, "").unwrap();
        assert_eq!(refusal(&path), "expected an ONNX file, found an empty file");
        let unreadable = "not an ONNX file, or a truncated one (its protobuf cannot be parsed)";
        for bytes in [
            &b"plain text, long enough to be read as something\n"[..],
            b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(refusal(&path), unreadable);
        }
        let whole = std::fs::read(fixture("products.onnx")).unwrap();
        for keep in [whole.len() / 2, whole.len() - 1, 20] {
            std::fs::write(&path, &whole[..keep]).unwrap();
            assert_eq!(refusal(&path), unreadable, "cut after {keep} bytes");
        }
    }

    #[test]
    fn missing_external_data_is_named() {
        let reason = refusal(&fixture("external_data.onnx"));
        assert!(
            reason.starts_with("its weights are in a second file that cannot be read: "),
            "{reason}"
        );
        assert!(
            reason.contains("missing_weights.bin") && !reason.contains(".cc:"),
            "{reason}"
        );
    }
}
