//! That a wrong file does not reach its name: files are damaged between writing and proving.

use std::path::Path;

use macula_models::onnx::proto::{ModelProto, NodeProto, TensorProto};
use macula_models::weights::{self, LoadOptions};
use prost::Message as _;

use super::*;

/// `DataType` of onnx.proto.
const FLOAT: i32 = 1;
const FLOAT16: i32 = 10;

fn golden() -> Checkpoint {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/fixtures/official_plain.safetensors");
    let options = LoadOptions {
        num_heads: Some(3),
        ..LoadOptions::default()
    };
    weights::load(&file, &options).unwrap()
}

fn request(dtype: Dtype) -> ExportRequest {
    ExportRequest {
        image: ImageShape::Fixed {
            height: 28,
            width: 28,
        },
        outputs: Vec::new(),
        preprocess: Preprocess::imagenet(28, 28),
        dtype,
        quantize: (dtype != Dtype::F32).then(|| QuantizeRequest {
            data: "sample:train".to_owned(),
            calibration_images: 8,
            compared_images: 16,
            float_layers: 0.1,
            max_drift: if dtype == Dtype::Int8 {
                1.
            } else {
                default_max_drift(dtype)
            },
        }),
        tolerance: 1e-4,
        seed: 0,
        force: false,
        external_data_over: None,
        runtime: RuntimeOptions::default(),
        threads: 1,
    }
}

/// Whether a file of these numbers is damaged.
type Which = fn(&Numbers) -> bool;
type Damage = fn(&mut ModelProto);

/// Exports as `dtype` and damages the files that `which` says before they are looked at.
fn exported(dtype: Dtype, which: Which, damage: Damage, path: &Path) -> Result<ExportSummary> {
    let checkpoint = golden();
    let write = |options: &ExportOptions, file: &Path| {
        onnx::export(&checkpoint.config, &checkpoint.backbone, options, file)?;
        if which(&options.numbers) {
            let mut model = ModelProto::decode(fs::read(file).unwrap().as_slice()).unwrap();
            let before = model.encode_to_vec();
            damage(&mut model);
            let after = model.encode_to_vec();
            assert!(before != after, "nothing was damaged");
            fs::write(file, after).unwrap();
        }
        Ok(())
    };
    export_with(&checkpoint, &request(dtype), path, &write)
}

fn initializer<'a>(model: &'a mut ModelProto, name: &str) -> &'a mut TensorProto {
    let tensors = &mut model.graph.as_mut().unwrap().initializer;
    let names: Vec<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
    let found = tensors.iter_mut().find(|tensor| tensor.name.starts_with(name));
    found.unwrap_or_else(|| panic!("no {name} in {names:?}"))
}

/// Adds `by` to every value.
fn shift(tensor: &mut TensorProto, by: f32) {
    match tensor.data_type {
        FLOAT => {
            for value in tensor.raw_data.chunks_exact_mut(4) {
                let old = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
                value.copy_from_slice(&(old + by).to_le_bytes());
            }
        }
        FLOAT16 => {
            for value in tensor.raw_data.chunks_exact_mut(2) {
                let old = half::f16::from_le_bytes([value[0], value[1]]);
                value.copy_from_slice(&half::f16::from_f32(old.to_f32() + by).to_le_bytes());
            }
        }
        other => panic!("numbers of type {other}"),
    }
}

fn bias(model: &mut ModelProto) {
    shift(initializer(model, "blocks.1.mlp.fc1.bias"), 0.3);
}

fn weight(model: &mut ModelProto) {
    shift(initializer(model, "blocks.0.attn.proj.weight"), 0.02);
}

/// A few times what is allowed at one value of each vector, and far less on average or by the angle.
fn slight(model: &mut ModelProto) {
    let bias = initializer(model, "norm.bias");
    assert_eq!(bias.data_type, FLOAT);
    let first = f32::from_le_bytes(*bias.raw_data.first_chunk().unwrap());
    bias.raw_data[..4].copy_from_slice(&(first + 1e-3).to_le_bytes());
}

/// The additions of two results: those of the residual stream, among others.
fn sums(model: &ModelProto) -> Vec<usize> {
    let graph = model.graph.as_ref().unwrap();
    let computed = |name: &String| graph.node.iter().any(|node| node.output.contains(name));
    let is_sum = |node: &NodeProto| node.op_type == "Add" && node.input.iter().all(computed);
    (0..graph.node.len())
        .filter(|&i| is_sum(&graph.node[i]))
        .collect()
}

/// The last block adds to what an earlier one had: its predecessor's work is lost.
fn node(model: &mut ModelProto) {
    let sums = sums(model);
    assert!(sums.len() >= 4, "{sums:?}");
    let nodes = &mut model.graph.as_mut().unwrap().node;
    let earlier = nodes[sums[sums.len() - 3]].input[0].clone();
    nodes[sums[sums.len() - 1]].input[0] = earlier;
}

/// Another activation of the same shape.
fn activation(model: &mut ModelProto) {
    let nodes = &mut model.graph.as_mut().unwrap().node;
    let gelu = nodes.iter_mut().find(|node| node.op_type == "Gelu");
    gelu.expect("a Gelu node").op_type = "Relu".to_owned();
}

const DAMAGES: [(&str, Damage); 4] = [
    ("bias", bias),
    ("weight", weight),
    ("node", node),
    ("activation", activation),
];

fn is_f32(numbers: &Numbers) -> bool {
    matches!(numbers, Numbers::F32)
}

/// Exports each damage and expects it refused for a reason with `word`, without a file.
fn refused(dtype: Dtype, which: Which, word: &str) {
    for (name, damage) in DAMAGES {
        let place = tempfile::tempdir().unwrap();
        let error = exported(dtype, which, damage, &place.path().join("m.onnx")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("not written") && text.contains(word),
            "{dtype}, {name}: {text}"
        );
        assert_eq!(error.exit_code(), 1);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "{dtype}, {name}");
    }
}

#[test]
fn a_wrong_f32_file_is_refused() {
    refused(Dtype::F32, is_f32, "deviates from the candle network");
}

/// It is the worst value that counts, and against the tolerance as it was given.
#[test]
fn a_slightly_wrong_f32_file_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let error = exported(Dtype::F32, is_f32, slight, &place.path().join("m.onnx")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("deviates from the candle network"), "{text}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn no_smaller_file_is_made_of_a_wrong_f32_one() {
    refused(Dtype::F16, is_f32, "deviates from the candle network");
    refused(Dtype::Int8, is_f32, "deviates from the candle network");
}

#[test]
fn a_wrong_f16_file_of_a_right_f32_one_is_refused() {
    refused(Dtype::F16, |numbers| !is_f32(numbers), "a drift of");
}

#[test]
fn right_files_are_far_from_the_limits() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Int8] {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.onnx");
        let summary = exported(dtype, |_| false, bias, &path).unwrap();
        let worst = summary.comparisons.iter().map(|c| c.max_rel).fold(0., f64::max);
        assert!(worst < 1e-5, "{dtype}: {worst}");
        assert_eq!(fs::metadata(&path).unwrap().len(), summary.bytes);
        let Some(drift) = summary.drift else { continue };
        assert!(!drift.images_shared);
        println!(
            "{dtype}: drift {:.2e}, of one image {:.2e}",
            1. - drift.mean_cosine,
            1. - drift.min_cosine
        );
        if dtype == Dtype::F16 {
            assert!(
                1. - drift.mean_cosine < 0.1 * default_max_drift(dtype),
                "{drift:?}"
            );
        }
    }
}

/// The sample has no more images than are asked for the ranges: those are compared on, and the report says so.
#[test]
fn images_used_twice_are_said_to_be() {
    let checkpoint = golden();
    let mut request = request(Dtype::Int8);
    let quantize = request.quantize.as_mut().unwrap();
    (quantize.data, quantize.calibration_images) = ("sample:test".to_owned(), 1000);
    let place = tempfile::tempdir().unwrap();
    let summary = export(&checkpoint, &request, &place.path().join("m.onnx")).unwrap();
    assert!(summary.drift.unwrap().images_shared);
}
