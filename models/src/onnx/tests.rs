//! What an exported file holds, read back with prost. Its numbers are checked by `benchmarks/check_onnx.py`, which runs
//! the files that `writes_the_files_that_check_onnx_reads` leaves behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use prost::Message;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest as _, Sha256};

use super::proto::{DataLocation, DimensionValue, ModelProto, TensorProto, TypeValue, ValueInfoProto};
use super::{ExportOptions, ImageShape, OutputKind, describe, export, move_into_place};
use crate::vit::{FeedForwardKind, PositionRule, VisionTransformer, VitConfig, initialise, swiglu_hidden};
use crate::weights::Tensors;

/// The network of the golden files, by the kind in their names.
fn golden_config(kind: &str) -> VitConfig {
    let swiglu = kind == "swiglu";
    VitConfig {
        embed_dim: 48,
        depth: 3,
        num_heads: 3,
        patch_size: 14,
        image_size: 70,
        in_channels: 3,
        num_registers: if kind == "reg4" { 4 } else { 0 },
        feed_forward: if swiglu {
            FeedForwardKind::Swiglu
        } else {
            FeedForwardKind::Mlp
        },
        ffn_hidden: if swiglu { swiglu_hidden(48) } else { 192 },
        layer_scale: Some(1.0),
        mask_token: true,
        layer_norm_eps: 1e-6,
        position_rule: if kind == "reg4" {
            PositionRule::Registers
        } else {
            PositionRule::Official
        },
        ..VitConfig::named("vit-tiny/14", 70).expect("a known name")
    }
}

fn golden(kind: &str) -> (VitConfig, Tensors) {
    let path = fixture(&format!("official_{kind}.safetensors"));
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).expect("a fixture");
    (golden_config(kind), tensors.into_iter().collect())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn fixed(height: usize, width: usize) -> ExportOptions {
    ExportOptions::new(ImageShape::Fixed { height, width })
}

fn read(path: &Path) -> ModelProto {
    ModelProto::decode(std::fs::read(path).expect("a file").as_slice()).expect("an ONNX model")
}

/// Name and shape, `batch x 3 x 70 x 70`.
fn described(info: &ValueInfoProto) -> String {
    let Some(TypeValue::TensorType(tensor)) = info.r#type.clone().and_then(|t| t.value) else {
        panic!("{} has no type", info.name);
    };
    let sides: Vec<String> = tensor
        .shape
        .expect("a shape")
        .dim
        .into_iter()
        .map(|dim| match dim.value.expect("a known side") {
            DimensionValue::DimValue(size) => size.to_string(),
            DimensionValue::DimParam(symbol) => symbol,
        })
        .collect();
    format!("{} {}", info.name, sides.join("x"))
}

fn initializer<'m>(model: &'m ModelProto, name: &str) -> &'m TensorProto {
    let graph = model.graph.as_ref().expect("a graph");
    graph
        .initializer
        .iter()
        .find(|tensor| tensor.name == name)
        .unwrap_or_else(|| panic!("no constant {name}"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
        .collect()
}

/// The values of `blocks.1.mlp.fc1.weight`, transposed as the file has them.
fn expected_fc1(backbone: &Tensors) -> Vec<f32> {
    let weight = backbone["blocks.1.mlp.fc1.weight"].t().expect("a matrix");
    let flat = weight.flatten_all().expect("a vector");
    flat.to_vec1().expect("f32 values")
}

/// Every node reads what exists before it, and no name is given twice.
fn assert_topological(model: &ModelProto) {
    let graph = model.graph.as_ref().expect("a graph");
    let mut known: std::collections::BTreeSet<&str> = std::collections::BTreeSet::new();
    let given = graph.input.iter().map(|info| info.name.as_str());
    for name in given.chain(graph.initializer.iter().map(|tensor| tensor.name.as_str())) {
        assert!(known.insert(name), "{name} is given twice");
    }
    for node in &graph.node {
        for input in &node.input {
            assert!(
                known.contains(input.as_str()),
                "{} reads {input} too early",
                node.name
            );
        }
        for output in &node.output {
            assert!(known.insert(output), "{output} is given twice");
        }
    }
    for output in &graph.output {
        assert!(
            known.contains(output.name.as_str()),
            "{} is never computed",
            output.name
        );
    }
}

#[test]
fn a_fixed_file_holds_names_shapes_and_metadata() {
    let (config, backbone) = golden("plain");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    let mut options = fixed(98, 56);
    options.metadata = BTreeMap::from([
        ("macula.arch".to_owned(), "test".to_owned()),
        ("macula.patch_size".to_owned(), "14".to_owned()),
    ]);
    let report = export(&config, &backbone, &options, &path).expect("an export");
    assert_eq!(report.external_data, None);
    assert_eq!(report.outputs, ["cls", "patch", "patch_mean"]);

    let model = read(&path);
    assert_topological(&model);
    assert_eq!(
        (model.ir_version, model.opset_import.len()),
        (super::IR_VERSION, 1)
    );
    assert_eq!(model.opset_import[0].version, super::OPSET);
    let metadata: Vec<(&str, &str)> = model
        .metadata_props
        .iter()
        .map(|e| (e.key.as_str(), e.value.as_str()))
        .collect();
    assert_eq!(metadata, [("macula.arch", "test"), ("macula.patch_size", "14")]);

    let graph = model.graph.as_ref().expect("a graph");
    assert_eq!(graph.node.len(), report.nodes);
    assert!(graph.node.iter().all(|node| node.domain.is_empty()));
    assert_eq!(
        graph.input.iter().map(described).collect::<Vec<_>>(),
        ["pixel_values batchx3x98x56"]
    );
    assert_eq!(
        graph.output.iter().map(described).collect::<Vec<_>>(),
        ["cls batchx48", "patch batchx28x48", "patch_mean batchx48"]
    );
    assert_eq!(initializer(&model, "token_table").dims, [1, 29, 48]);
    let fc1 = initializer(&model, "blocks.1.mlp.fc1.weight.transposed");
    assert_eq!(fc1.dims, [48, 192]);
    assert_eq!(floats(&fc1.raw_data), expected_fc1(&backbone));
    assert!(graph.initializer.iter().all(|t| !t.name.contains("mask_token")));
}

#[test]
fn a_dynamic_file_has_symbols_and_no_table_of_one_size() {
    let (config, backbone) = golden("reg4");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    let options = ExportOptions::new(ImageShape::Dynamic);
    let report = export(&config, &backbone, &options, &path).expect("an export");
    assert_eq!(report.outputs, ["cls", "patch", "patch_mean", "reg"]);
    let model = read(&path);
    assert_topological(&model);
    let graph = model.graph.as_ref().expect("a graph");
    assert_eq!(described(&graph.input[0]), "pixel_values batchx3xheightxwidth");
    assert_eq!(described(&graph.output[1]), "patch batchxpatchesx48");
    assert_eq!(described(&graph.output[3]), "reg batchx4x48");
    assert_eq!(initializer(&model, "pos_embed.grid").dims, [5, 240]);
    assert_eq!(initializer(&model, "prefix_tokens").dims, [1, 5, 48]);
}

#[test]
fn intermediate_layers_are_outputs_and_later_blocks_are_left_out() {
    let (config, backbone) = golden("swiglu");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    let mut options = fixed(70, 70);
    options.outputs = vec![
        OutputKind::LayerPatch(1),
        OutputKind::LayerCls(0),
        OutputKind::LayerCls(1),
    ];
    export(&config, &backbone, &options, &path).expect("an export");
    let model = read(&path);
    assert_topological(&model);
    let graph = model.graph.as_ref().expect("a graph");
    assert_eq!(
        graph.output.iter().map(described).collect::<Vec<_>>(),
        [
            "layer:1.patch batchx25x48",
            "layer:0.cls batchx48",
            "layer:1.cls batchx48"
        ]
    );
    assert!(graph.node.iter().any(|node| node.name.starts_with("blocks.1.")));
    assert!(!graph.node.iter().any(|node| node.name.starts_with("blocks.2.")));

    // The last block asked for by two names is one value under two names.
    options.outputs = vec![OutputKind::Cls, OutputKind::LayerCls(2)];
    export(&config, &backbone, &options, &path).expect("an export");
    let model = read(&path);
    assert_topological(&model);
    let graph = model.graph.as_ref().expect("a graph");
    let identities = graph.node.iter().filter(|node| node.op_type == "Identity");
    assert_eq!(identities.count(), 1);
    // Its queries are CLS's alone, so it has them apart from the keys and values.
    assert_eq!(
        initializer(&model, "blocks.2.attn.qkv.q.weight.transposed").dims,
        [48, 48]
    );
    assert_eq!(
        initializer(&model, "blocks.2.attn.qkv.kv.weight.transposed").dims,
        [48, 96]
    );
}

#[test]
fn external_data_lies_at_aligned_offsets_beside_the_model() {
    let (config, backbone) = golden("plain");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    let inside = export(&config, &backbone, &fixed(70, 70), &path).expect("an export");
    let whole = read(&path);

    let options = ExportOptions {
        external_data_over: inside.constant_bytes - 1,
        ..fixed(70, 70)
    };
    let report = export(&config, &backbone, &options, &path).expect("an export");
    let data_path = report.external_data.expect("a data file");
    let data = std::fs::read(&data_path).expect("the data file");
    let checksum: String = Sha256::digest(&data)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let data_name = format!("m.onnx.{}.data", &checksum[..16]);
    assert_eq!(data_path, folder.path().join(&data_name));
    let model = read(&path);
    assert_topological(&model);
    let mut end = 0;
    let graph = model.graph.expect("a graph");
    assert_eq!(
        graph.initializer.len(),
        whole.graph.as_ref().map_or(0, |g| g.initializer.len())
    );
    for tensor in &graph.initializer {
        let expected = &initializer(&whole, &tensor.name).raw_data;
        if tensor.data_location != DataLocation::External as i32 {
            assert_eq!(&tensor.raw_data, expected, "{}", tensor.name);
            continue;
        }
        assert!(tensor.raw_data.is_empty());
        let entry = |key: &str| {
            let found = tensor.external_data.iter().find(|e| e.key == key);
            found.map(|e| e.value.as_str()).expect("an entry")
        };
        assert_eq!(entry("location"), data_name);
        let offset: usize = entry("offset").parse().expect("a number");
        let length: usize = entry("length").parse().expect("a number");
        assert!(offset.is_multiple_of(4096) && offset >= end, "{}", tensor.name);
        assert_eq!(&data[offset..offset + length], expected, "{}", tensor.name);
        end = offset + length;
    }
    assert_eq!(end, data.len());
    assert!(end > 100_000, "only {end} bytes are outside");

    assert_eq!(names(folder.path()), ["m.onnx", data_name.as_str()]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("the folder");
    let mut names: Vec<String> = entries
        .map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_and_its_data_are_replaced_as_one() {
    let (config, backbone) = golden("plain");
    let mut changed = backbone.clone();
    // Large enough to lie outside the model.
    let weight = changed.get_mut("blocks.0.mlp.fc1.weight").expect("a weight");
    *weight = (weight.ones_like().expect("ones") * 3.).expect("threes");
    let folder = tempfile::tempdir().expect("a folder");
    let options = ExportOptions {
        external_data_over: 1000,
        ..fixed(70, 70)
    };
    let path = folder.path().join("m.onnx");
    let workshop = folder.path().join("workshop");
    std::fs::create_dir(&workshop).expect("made");
    let draft = workshop.join("m.onnx");
    // Much else of that name is not ours to remove.
    let bystanders = [
        "m.onnx.data",
        "m.onnx.0123456789abcdeg.data",
        "n.onnx.0123456789abcdef.data",
    ];
    for name in bystanders {
        std::fs::write(folder.path().join(name), "kept").expect("written");
    }
    let data_of = |model: &Path| describe(model).expect("described").external_files;

    export(&config, &backbone, &options, &path).expect("an export");
    let (old_model, old_data) = (std::fs::read(&path).expect("read"), data_of(&path));
    let old_weights = std::fs::read(folder.path().join(&old_data[0])).expect("read");
    export(&config, &changed, &options, &draft).expect("an export");
    let new_data = data_of(&draft);
    assert_ne!(old_data, new_data);

    // As a kill between the two renames leaves it: the old model still has its own weights.
    std::fs::copy(workshop.join(&new_data[0]), folder.path().join(&new_data[0])).expect("copied");
    assert!(std::fs::read(&path).expect("read") == old_model);
    assert!(std::fs::read(folder.path().join(&old_data[0])).expect("there") == old_weights);

    move_into_place(&draft, &path).expect("moved");
    assert_eq!(data_of(&path), new_data);
    let left = names(folder.path());
    assert!(
        left.contains(&new_data[0]) && !left.contains(&old_data[0]),
        "{left:?}"
    );
    assert!(
        bystanders.iter().all(|&name| left.iter().any(|l| l == name)),
        "{left:?}"
    );
    // One with its weights inside has no data file.
    export(&config, &backbone, &fixed(70, 70), &path).expect("an export");
    assert!(!names(folder.path()).contains(&new_data[0]));
}

#[test]
fn what_the_network_does_not_have_is_refused_and_nothing_written() {
    let (config, backbone) = golden("plain");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    let with = |outputs: &[OutputKind]| ExportOptions {
        outputs: outputs.to_vec(),
        ..fixed(70, 70)
    };
    for (options, expected) in [
        (
            with(&[OutputKind::Reg]),
            "outputs: expected a network with registers for `reg`, found one without",
        ),
        (
            with(&[OutputKind::LayerCls(3)]),
            "outputs: expected a block from 0 to 2, found `layer:3.cls`",
        ),
        (
            with(&[OutputKind::Cls, OutputKind::Cls]),
            "outputs: expected each output once, found `cls` twice",
        ),
        (
            fixed(71, 70),
            "image height: expected a positive multiple of the patch size 14, found 71",
        ),
    ] {
        let error = export(&config, &backbone, &options, &path).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
    let mut missing = backbone.clone();
    missing.remove("blocks.2.ls1.gamma");
    let error = export(&config, &missing, &fixed(70, 70), &path).expect_err("a missing tensor");
    assert_eq!(
        error.to_string(),
        "blocks.2.ls1.gamma: expected a tensor of shape [48], found none"
    );
    let nowhere = folder.path().join("absent/m.onnx");
    let error = export(&config, &backbone, &fixed(70, 70), &nowhere).expect_err("no such folder");
    assert!(error.to_string().contains("absent/m.onnx"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

/// A network whose position table matters: random weights, position codes of the size of the patches' own.
fn random_network(rule: PositionRule, image_size: usize) -> (VitConfig, Tensors) {
    let config = VitConfig {
        image_size,
        depth: 2,
        position_rule: rule,
        num_registers: 2,
        layer_scale: None,
        ..golden_config("plain")
    };
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut tensors = initialise(&config, &mut rng).expect("weights");
    let table = (&tensors["pos_embed"] * 20.0).expect("a product");
    tensors.insert("pos_embed".into(), table);
    (config, tensors)
}

/// Writes `NAME.expected.safetensors`: pixels and the candle network's outputs at every size, under `HxW.` names.
fn write_expected(
    config: &VitConfig,
    backbone: &Tensors,
    sizes: &[(usize, usize)],
    path: &Path,
) -> crate::Result<()> {
    let network = VisionTransformer::from_tensors(config, backbone, &Device::Cpu)?;
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut expected = std::collections::HashMap::new();
    for &(height, width) in sizes {
        let pixels: Vec<f32> = (0..2 * 3 * height * width)
            .map(|_| rng.random_range(-2.0..2.0))
            .collect();
        let pixels = Tensor::from_vec(pixels, (2, 3, height, width), &Device::Cpu)?;
        let out = network.forward(&pixels, None)?;
        let mean = out.patch_mean()?;
        for (name, tensor) in [
            ("pixels", pixels),
            ("cls", out.cls),
            ("patch", out.patch),
            ("patch_mean", mean),
            ("reg", out.reg),
        ] {
            expected.insert(format!("{height}x{width}.{name}"), tensor.contiguous()?);
        }
    }
    Ok(candle_core::safetensors::save(&expected, path)?)
}

/// Exports the golden networks and random ones with every position rule, each at fixed sizes, for any size and without
/// patch outputs, to the folder of the environment variable `MACULA_EXPORT_DIR` (a temporary one without it).
#[test]
fn writes_the_files_that_check_onnx_reads() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = std::env::var_os("MACULA_EXPORT_DIR").map_or(temporary.path().into(), PathBuf::from);
    std::fs::create_dir_all(&folder).expect("the folder");
    let write = |name: &str, config: &VitConfig, backbone: &Tensors, fixed_sizes: &[(usize, usize)]| {
        let mut options = ExportOptions::new(ImageShape::Dynamic);
        options.outputs = OutputKind::defaults(config);
        options
            .outputs
            .extend([OutputKind::LayerCls(1), OutputKind::LayerPatch(1)]);
        let path = folder.join(format!("{name}-dynamic.onnx"));
        export(config, backbone, &options, &path).expect(name);
        // Without patch tokens, most of the last block is left out.
        let mut short = options.clone();
        short.outputs.retain(|output| {
            matches!(
                output,
                OutputKind::Cls | OutputKind::Reg | OutputKind::LayerCls(_)
            )
        });
        let path = folder.join(format!("{name}-cls.onnx"));
        export(config, backbone, &short, &path).expect(name);
        for &(height, width) in fixed_sizes {
            options.image = ImageShape::Fixed { height, width };
            // One of the files keeps its weights outside.
            options.external_data_over = if height == width { u64::MAX } else { 1000 };
            let path = folder.join(format!("{name}-{height}x{width}.onnx"));
            let report = export(config, backbone, &options, &path).expect(name);
            assert_eq!(report.external_data.is_some(), height != width);
        }
    };
    for kind in ["plain", "reg4", "swiglu"] {
        let (config, backbone) = golden(kind);
        write(kind, &config, &backbone, &[(70, 70), (98, 56)]);
        let path = fixture(&format!("official_{kind}.expected.safetensors"));
        let mut expected = candle_core::safetensors::load(path, &Device::Cpu).expect("a fixture");
        for size in ["70x70", "98x56"] {
            // The first of the last two layers of three.
            for part in ["cls", "patch"] {
                let value = expected[&format!("{size}.last2.0.{part}")].clone();
                expected.insert(format!("{size}.layer:1.{part}"), value);
            }
        }
        let path = folder.join(format!("{kind}.expected.safetensors"));
        candle_core::safetensors::save(&expected, path).expect("a copy");
    }
    for (name, rule) in [
        ("official", PositionRule::Official),
        ("registers", PositionRule::Registers),
        ("hugging-face", PositionRule::HuggingFace),
    ] {
        for side in [5, 37] {
            let (config, backbone) = random_network(rule, side * 14);
            let patches = |rows: usize, columns: usize| (14 * rows, 14 * columns);
            // Smaller, native, larger, and grids that are native on one side only or have its number of patches.
            let sizes = [
                patches(2, 2),
                patches(1, 1),
                patches(side, side),
                patches(side, side + 3),
                patches(side - 4, side),
                patches(1, side * side),
                patches(16, 16),
                patches(19, 9),
            ];
            let name = format!("{name}{side}");
            write(&name, &config, &backbone, &[sizes[2], sizes[3], sizes[6]]);
            let expected = folder.join(format!("{name}.expected.safetensors"));
            write_expected(&config, &backbone, &sizes, &expected).expect("the network's outputs");
        }
    }
}
