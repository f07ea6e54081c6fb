//! Sound inputs of every kind, a folder each: fixtures of the project, small files written here, and what the binary makes of
//! a few images (features, indexes, results, runs). Nothing is taken from anywhere else, so that a change of a format changes
//! the seeds with it.

use std::fs;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use image::{GrayImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbImage};
use macula::train::distillation::cache::TeacherCache;
use macula_models::onnx::{self, ExportOptions, ImageShape};
use macula_models::vit::VitConfig;
use macula_models::weights::{self, LoadOptions, Tensors};
use polars::prelude::{Column, DataFrame, DataType, NamedFrom as _, ParquetWriter, Series};

use super::kinds::{self, KINDS};
use super::process::{self, Limits};
use super::weights_support::{Object, torch_legacy, torch_zip};

/// Fixtures above this many bytes are left out: they only cost time.
const LARGEST: u64 = 16 << 10;
/// A training run that takes a second.
const RUN: &str = "train --data common/images --out run/0 --set steps=2 --set batch_size=4 --set crops.local.count=2 \
     --set backbone.embed_dim=64 --set backbone.depth=1 --set backbone.num_heads=1 --set backbone.patch_size=7 --set image_size=28 \
     --set local_size=14 --set backbone.ffn_hidden=256 --set backbone.stem=[] --set loss.words.hidden=8 --set loss.words.vocabulary=4 \
     --set loss.head.hidden=16 --set loss.head.bottleneck=8 --set loss.head.prototypes=16 \
     --set monitor.log_every=1 --set checkpoints.every=1";

/// Writes the seeds of every kind below `root`, and what all inputs may use into `root/common`.
pub fn make(root: &Path) {
    let maker = Maker { root };
    maker.common();
    maker.images();
    maker.lists();
    maker.tables_of_images();
    maker.texts();
    maker.tars();
    maker.idx();
    maker.layouts();
    maker.features();
    maker.results_and_curation();
    maker.settings();
    maker.run();
    maker.cache();
    maker.checkpoints();
    maker.models();
    for kind in KINDS {
        assert!(root.join(kind.name).is_dir(), "no seed of {}", kind.name);
    }
}

struct Maker<'a> {
    root: &'a Path,
}

/// A small image with edges and slopes.
fn picture(width: u32, height: u32, shade: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let edge = if x > width / 2 { 90 } else { 0 };
        Rgb([
            (x * 9 + shade) as u8,
            (y * 11 + edge) as u8,
            (shade * 37 + x * y) as u8,
        ])
    })
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("encoded");
    bytes.into_inner()
}

fn png(shade: u32) -> Vec<u8> {
    encoded(&picture(10, 8, shade), ImageFormat::Png)
}

fn jpeg(shade: u32) -> Vec<u8> {
    encoded(&picture(18, 17, shade), ImageFormat::Jpeg)
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("finished")
}

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

impl Maker<'_> {
    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("created");
        fs::write(&path, bytes).expect("written");
    }

    fn macula(&self, arguments: &str) {
        let ran = process::macula(self.root, arguments, &Limits::for_seeds());
        assert_eq!(
            ran.end,
            process::End::Exit(0),
            "macula {arguments}\n{}",
            ran.stderr
        );
    }

    /// Four images of two classes, and their features.
    fn common(&self) {
        for (index, class) in ["cat", "dog", "cat", "dog", "cat", "dog"].into_iter().enumerate() {
            self.write(
                &format!("common/images/{class}/{index}.png"),
                png(20 * index as u32),
            );
        }
        // 4 x 4 pixels of 3 channels: `kinds::WIDTH` numbers.
        self.macula("extract --model pixels --resize 4 --crop 4 --data common/images --out common/features");
        self.macula("extract --model pixels --resize 4 --crop 4 --data common/images --out common/test");
    }

    fn images(&self) {
        let ends = [
            ("image-jpeg", "jpg"),
            ("image-png", "png"),
            ("image-webp", "webp"),
            ("image-gif", "gif"),
            ("image-bmp", "bmp"),
            ("image-tiff", "tif"),
        ];
        let mut paths: Vec<PathBuf> = ["tests/fixtures/formats", "tests/fixtures/images"]
            .iter()
            .flat_map(|folder| fs::read_dir(fixtures(folder)).expect("listed").flatten())
            .map(|entry| entry.path())
            .filter(|path| fs::metadata(path).is_ok_and(|found| found.len() <= LARGEST))
            .collect();
        paths.sort();
        for (kind, end) in ends {
            let of_kind = paths
                .iter()
                .filter(|path| path.extension().is_some_and(|found| found == end));
            for (index, path) in of_kind.enumerate() {
                self.write(
                    &format!("{kind}/{index}/image.{end}"),
                    fs::read(path).expect("read"),
                );
            }
        }
        let pixels: Vec<u8> = (0..4 * 3 * 3).map(|i| i * 7).collect();
        self.write(
            "image-pnm/0/image.ppm",
            [b"P6\n# a comment\n4 3\n255\n", pixels.as_slice()].concat(),
        );
        self.write("image-pnm/1/image.pgm", [b"P5 4 3 255\n", &pixels[..12]].concat());
        self.write(
            "image-pnm/2/image.pgm",
            [b"P5\n4 3\n65535\n", &pixels[..24]].concat(),
        );
        self.write(
            "image-pnm/3/image.ppm",
            "P3\n2 2\n15\n1 2 3 4 5 6\n7 8 9 10 11 12\n",
        );
        self.write(
            "image-pnm/4/image.pbm",
            [b"P4\n9 2\n".as_slice(), &[0xa5, 0x80, 0x5a, 0]].concat(),
        );
        self.write("image-folder/0/cat/a.png", png(1));
        self.write("image-folder/0/dog/b.jpg", jpeg(2));
        self.write("image-folder/0/dog/deep/c.png", png(3));
        self.write("image-folder/0/notes.txt", "not an image");
    }

    fn lists(&self) {
        let texts = [
            "path,label\na/1.png,cat\na/2.jpg,dog\n\"a/1.png\",\"cat, large\"\n",
            "image;label\na/1.png;0\na/2.jpg;1\n",
            "\u{feff}file_name\tfine_label\na/1.png\t1.5\na/2.jpg\ttrue\n",
            "path,label,mask,depth\na/1.png,,a/mask.png,\na/2.jpg,\"a\"\"b\",,a/depth.png\n",
        ];
        let beside = |folder: &str| {
            self.write(&format!("{folder}/a/1.png"), png(1));
            self.write(&format!("{folder}/a/2.jpg"), jpeg(2));
        };
        for (index, text) in texts.into_iter().enumerate() {
            let folder = format!("list-csv/{index}");
            self.write(&format!("{folder}/list.csv"), text);
            beside(&folder);
        }
        let paths = || Column::new("path".into(), ["a/1.png", "a/2.jpg", "a/1.png"]);
        let label = |values: Series| -> Column { values.with_name("label".into()).into() };
        let small = Series::new("label".into(), [0i64, 1, 1]);
        let tables = [
            vec![paths(), Column::new("label".into(), ["cat", "dog", "cat"])],
            vec![
                paths(),
                label(small.clone()),
                Column::new("weight".into(), [0.5f64, 1., 2.]),
            ],
            vec![paths(), label(small.cast(&DataType::Int32).expect("cast"))],
            vec![paths(), label(small.cast(&DataType::Float64).expect("cast"))],
            vec![paths(), label(small.cast(&DataType::Boolean).expect("cast"))],
            vec![paths(), Column::new("mask".into(), [Some("a/1.png"), None, None])],
        ];
        for (index, columns) in tables.into_iter().enumerate() {
            let folder = format!("list-parquet/{index}");
            self.write(&format!("{folder}/list.parquet"), parquet(columns, None));
            beside(&folder);
        }
        self.write("paths-on-stdin/0/paths.txt", "case/1.png\ncase/2.jpg\n");
        self.write("paths-on-stdin/0/1.png", png(1));
        self.write("paths-on-stdin/0/2.jpg", jpeg(2));
        self.scenes();
    }

    /// Images with masks and depths.
    fn scenes(&self) {
        let mut list = "image,mask,depth\n".to_owned();
        for i in 0..2 {
            self.write(
                &format!("mask-and-depth/0/image{i}.png"),
                encoded(&picture(12, 8, i), ImageFormat::Png),
            );
            let mask = GrayImage::from_fn(12, 8, |x, y| {
                Luma([if y == 7 { 255 } else { u8::from(x > 5 + i) }])
            });
            let depth =
                ImageBuffer::<Luma<u16>, Vec<u16>>::from_fn(12, 8, |x, y| Luma([(500 * x + y) as u16]));
            let mut bytes = Cursor::new(Vec::new());
            mask.write_to(&mut bytes, ImageFormat::Png).expect("encoded");
            self.write(&format!("mask-and-depth/0/mask{i}.png"), bytes.into_inner());
            let mut bytes = Cursor::new(Vec::new());
            depth.write_to(&mut bytes, ImageFormat::Png).expect("encoded");
            self.write(&format!("mask-and-depth/0/depth{i}.png"), bytes.into_inner());
            list += &format!("image{i}.png,mask{i}.png,depth{i}.png\n");
        }
        self.write("mask-and-depth/0/list.csv", list);
    }

    fn tables_of_images(&self) {
        let images = [png(1), jpeg(2), png(3)];
        let bytes = || {
            Series::new(
                "image".into(),
                images.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            )
        };
        let label = || Column::new("label".into(), [0i64, 1, 0]);
        self.write(
            "parquet-images/0/images.parquet",
            parquet(vec![bytes().into(), label()], None),
        );
        self.write(
            "parquet-images/1/images.parquet",
            parquet(vec![bytes().into(), label()], Some(1)),
        );
        let structs = DataFrame::new(
            3,
            vec![
                bytes().with_name("bytes".into()).into(),
                Column::new("path".into(), ["1.png", "2.jpg", "3.png"]),
            ],
        );
        let structs = structs.expect("columns").into_struct("image".into());
        let structs: Column = polars::prelude::IntoSeries::into_series(structs).into();
        let names = Column::new("label".into(), ["cat", "dog", "cat"]);
        self.write(
            "parquet-images/2/images.parquet",
            parquet(vec![structs, names], Some(2)),
        );
    }

    fn texts(&self) {
        for (index, name) in ["classes", "captions"].into_iter().enumerate() {
            let file = fixtures("tests/fixtures/text").join(format!("{name}.parquet"));
            self.write(
                &format!("texts/{index}/text.parquet"),
                fs::read(file).expect("read"),
            );
        }
    }

    fn tars(&self) {
        let mut archive = tar::Builder::new(Vec::new());
        let long = format!("{}/d.png", "long".repeat(40));
        let members: [(&str, Vec<u8>); 8] = [
            ("a.png", png(1)),
            ("a.cls", b"3".to_vec()),
            ("sub/b.jpg", jpeg(2)),
            ("sub/b.txt", b"dog".to_vec()),
            (
                "c.webp",
                fs::read(fixtures("tests/fixtures/formats/lossy.webp")).expect("read"),
            ),
            ("c.json", b"{\"label\": \"cat\", \"width\": 4}".to_vec()),
            (&long, png(4)),
            ("__key__", Vec::new()),
        ];
        for (name, bytes) in &members {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            let name: &str = name;
            archive
                .append_data(&mut header, name, bytes.as_slice())
                .expect("appended");
        }
        let bytes = archive.into_inner().expect("finished");
        self.write("tar/0/images.tar", &bytes);
        self.write("tar-gzip/0/images.tar.gz", gzipped(&bytes));
        // A gzip file by another name.
        self.write("tar/1/images.tar", gzipped(&bytes));
    }

    fn idx(&self) {
        let numbers = |values: &[u32]| {
            values
                .iter()
                .flat_map(|value| value.to_be_bytes())
                .collect::<Vec<u8>>()
        };
        let pixels: Vec<u8> = (0..5 * 16).map(|i| i * 3).collect();
        let images = [numbers(&[0x803, 5, 4, 4]), pixels].concat();
        let labels = [numbers(&[0x801, 5]), vec![0, 1, 2, 1, 0]].concat();
        self.write("idx/0/train-images-idx3-ubyte", &images);
        self.write("idx/0/train-labels-idx1-ubyte", &labels);
        self.write("idx/1/train-images-idx3-ubyte.gz", gzipped(&images));
        self.write("idx/1/train-labels-idx1-ubyte.gz", gzipped(&labels));
    }

    fn layouts(&self) {
        for name in ["x", "y.z"] {
            self.write(&format!("layout-ade20k/0/images/training/{name}.jpg"), jpeg(1));
            self.write(
                &format!("layout-ade20k/0/annotations/training/{name}.png"),
                png(2),
            );
            self.write(&format!("layout-voc/0/JPEGImages/{name}.jpg"), jpeg(1));
            self.write(&format!("layout-voc/0/SegmentationClass/{name}.png"), png(2));
            self.write(&format!("layout-nyu/0/room/{name}.jpg"), jpeg(1));
            self.write(&format!("layout-nyu/0/room/{name}.png"), png(2));
        }
        self.write("layout-voc/0/ImageSets/Segmentation/train.txt", "x\ny.z\n");
        self.write(
            "layout-nyu/0/nyu_train.txt",
            "/room/x.jpg /room/x.png 518.8\n/room/y.z.jpg /room/y.z.png 518.8\n",
        );
    }

    fn features(&self) {
        let extract = "extract --model pixels --resize 4 --crop 4 --data common/images";
        self.macula(&format!("{extract} --out features/0"));
        self.macula(&format!("{extract} --out features/1 --dtype f16 --layout npy"));
        self.macula(&format!("{extract} --out features/2/a --shard 0/2"));
        self.macula(&format!("{extract} --out features/2/b --shard 1/2"));
        self.macula("index build --features common/features --out index/0");
        self.macula(
            "index build --features common/features --out index/1 --kind hnsw --m 4 --ef-construction 8",
        );
        if cfg!(feature = "usearch") {
            self.macula("index build --features common/features --out index/2 --kind usearch --m 4");
        }
    }

    fn results_and_curation(&self) {
        let knn = "eval knn --train common/features --test common/test --k 1,2 --bootstrap-resamples 10";
        for name in ["one", "two"] {
            self.macula(&format!("{knn} --per-class --out results/0/{name}"));
        }
        self.macula("curate dedup --features common/features --out curation/0");
        self.macula("curate quality --data common/images --out curation/1");
        for folder in ["curation/0", "curation/1"] {
            // Paths of a list are relative to it.
            for (name, bytes) in [("cat/0.png", png(0)), ("dog/1.png", png(20))] {
                self.write(&format!("{folder}/{name}"), bytes);
            }
        }
    }

    fn settings(&self) {
        self.write(
            "pipeline/0/pipeline.toml",
            "out = \"out/p\"\nfeatures = \"common/features\"\nseed = 3\n\n[[step]]\nverb = \"dedup\"\nthreshold = 0.9\n\n\
             [[step]]\nverb = \"overlap\"\nagainst = [\"common/test\"]\n\n[[step]]\nverb = \"sample\"\nsize = 2\nlevels = [2]\n",
        );
        self.write(
            "recipe/0/recipe.toml",
            "recipe = \"dinov2-small\"\nsteps = 10\nbatch_size = 4\nimage_size = 28\nlocal_size = 14\n\n[backbone]\n\
             embed_dim = 32\ndepth = 2\nnum_heads = 2\npatch_size = 7\n\n[optimizer]\nlearning_rate = 1e-3\n\n\
             [loss.head]\nhidden = 32\nbottleneck = 16\nprototypes = 64\n\n[crops.local]\ncount = 2\n",
        );
    }

    fn run(&self) {
        self.macula(RUN);
        let run = self.root.join("run/0");
        // What is derived from nothing and read by nothing only takes room.
        for entry in fs::read_dir(&run).expect("listed").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("events.") || name.ends_with(".png") {
                fs::remove_file(entry.path()).expect("removed");
            }
        }
        self.copy(&run, &self.root.join("run-config/0"));
    }

    fn copy(&self, from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("created");
        for entry in fs::read_dir(from).expect("listed").flatten() {
            let (path, target) = (entry.path(), to.join(entry.file_name()));
            if path.is_dir() {
                self.copy(&path, &target);
            } else {
                fs::copy(&path, &target).expect("copied");
            }
        }
    }

    fn cache(&self) {
        let folder = self.root.join("teacher-cache/0");
        fs::create_dir_all(&folder).expect("created");
        let mut cache = TeacherCache::open(&folder, &kinds::cache_key(), 6, 8, 1.).expect("a cache");
        let record = |row: u64| ((row, 0), vec![row as f32; 6]);
        cache.put(&[record(0), record(1)]).expect("kept");
        cache.put(&[record(2), record(3)]).expect("kept");
    }

    fn checkpoints(&self) {
        let (config, backbone) = self.network();
        let metadata = weights::config_metadata(&config).expect("metadata");
        let beside = |name: &str| {
            let path = self.root.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            path
        };
        weights::save(
            &beside("checkpoint-safetensors/0/w.safetensors"),
            &backbone,
            &metadata,
        )
        .expect("saved");
        weights::save(
            &beside("checkpoint-safetensors/1/w.safetensors"),
            &backbone,
            &Default::default(),
        )
        .expect("saved");
        let timm = fixtures("models/tests/fixtures/timm_reg4.safetensors");
        self.write(
            "checkpoint-safetensors/2/w.safetensors",
            fs::read(timm).expect("read"),
        );
        let plain = || Object::Dict(Object::tensors("", &backbone));
        let wrapped = Object::Dict(vec![
            (
                "teacher".into(),
                Object::Dict(Object::tensors("backbone.", &backbone)),
            ),
            ("args".into(), Object::Namespace),
            ("epoch".into(), Object::Int(7)),
        ]);
        self.write("checkpoint-pth/0/w.pth", torch_zip(&plain()));
        self.write("checkpoint-pth/1/w.pth", torch_zip(&wrapped));
        self.write("checkpoint-legacy/0/w.pth", torch_legacy(&plain()));
        self.write("checkpoint-legacy/1/w.pth", torch_legacy(&wrapped));
        for (index, name) in ["hf_plain", "hf_reg4"].into_iter().enumerate() {
            let to = self.root.join(format!("checkpoint-folder/{index}"));
            self.copy(&fixtures("models/tests/fixtures").join(name), &to);
            self.write(
                &format!("checkpoint-folder/{index}/preprocessor_config.json"),
                "{\"crop_size\": {\"height\": 28, \"width\": 28}, \"do_center_crop\": true, \"do_convert_rgb\": true, \
                 \"do_normalize\": true, \"do_rescale\": true, \"do_resize\": true, \"image_mean\": [0.485, 0.456, 0.406], \
                 \"image_processor_type\": \"BitImageProcessor\", \"image_std\": [0.229, 0.224, 0.225], \"resample\": 3, \
                 \"rescale_factor\": 0.00392156862745098, \"size\": {\"shortest_edge\": 32}}\n",
            );
        }
    }

    /// The network of the run, a few thousand numbers.
    fn network(&self) -> (VitConfig, Tensors) {
        let checkpoint =
            weights::load(&self.root.join("run/0"), &LoadOptions::default()).expect("a checkpoint");
        (checkpoint.config, checkpoint.backbone)
    }

    fn models(&self) {
        for (index, name) in ["pool", "products", "two_inputs", "nested_sequence"]
            .into_iter()
            .enumerate()
        {
            let path = fixtures("tests/fixtures/onnx").join(format!("{name}.onnx"));
            self.write(&format!("onnx/{index}/m.onnx"), fs::read(path).expect("read"));
        }
        let (config, backbone) = self.network();
        let side = config.image_size;
        for (name, external_data_over) in [("onnx/4", 1 << 20), ("onnx/5", 0)] {
            let folder = self.root.join(name);
            fs::create_dir_all(&folder).expect("created");
            let mut options = ExportOptions::new(ImageShape::Fixed {
                height: side,
                width: side,
            });
            options.external_data_over = external_data_over;
            onnx::export(&config, &backbone, &options, &folder.join("m.onnx")).expect("exported");
        }
    }
}

fn parquet(columns: Vec<Column>, row_group: Option<usize>) -> Vec<u8> {
    let mut frame = DataFrame::new(columns[0].len(), columns).expect("columns of one length");
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes)
        .with_row_group_size(row_group)
        .finish(&mut frame)
        .expect("written");
    bytes
}
