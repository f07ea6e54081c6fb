//! Wrong arguments and files: one clear line, the right exit code, nothing written.

use std::fs;

use crate::harness::{Workspace, fixture, golden, names};

fn heads() -> &'static str {
    "--heads 3"
}

#[test]
fn files_that_are_not_there() {
    let w = Workspace::new();
    w.png("images/a/1.png", 8, 8, 10);
    w.fails(
        2,
        "extract --model no.onnx --data images --out f",
        &["no.onnx", "no such file"],
    );
    w.fails(2, "extract --model pixels --data nowhere --out f", &["nowhere"]);
    w.fails(2, "export no.pth --out m.onnx", &["no.pth"]);
    w.fails(2, "inspect no.safetensors", &["no.safetensors"]);
    w.fails(2, "eval knn --train nowhere --test nowhere", &["nowhere"]);
    w.fails(
        2,
        "extract --model pixels --data idx:nowhere#train --out f",
        &["nowhere"],
    );
    assert_eq!(names(&w.path("")), ["images"]);
}

#[test]
fn arguments_that_make_no_sense() {
    let w = Workspace::new();
    let (train, test) = (w.two_classes("train", 40, 4), w.two_classes("test", 10, 4));
    let eval = format!("--train {} --test {}", train.display(), test.display());
    w.fails(2, &format!("eval knn {eval} --k 0"), &["k", "0"]);
    w.fails(2, &format!("eval knn {eval} --k 41"), &["41", "40"]);
    w.fails(2, &format!("eval knn {eval} --temperature 0"), &["temperature"]);
    w.fails(
        2,
        &format!("eval knn {eval} --k 5 --column patch"),
        &["patch", "cls"],
    );
    w.fails(2, &format!("eval logreg {eval} --c -1"), &["-1"]);
    w.fails(
        2,
        &format!("eval linear-probe {eval} --learning-rates 0"),
        &["learning_rate"],
    );
    w.fails(
        2,
        &format!("eval linear-probe {eval} --val-fraction 1.5"),
        &["val_fraction"],
    );
    w.fails(2, "eval knn", &["--train", "--model"]);
    w.fails(2, "eval knn --train train", &["--test"]);
    w.fails(
        2,
        "extract --model pixels --data train --out f --shard 3/3",
        &["3/3"],
    );
    w.fails(
        2,
        "extract --model pixels --data sample:test --out f --mean 1,2",
        &["mean", "expected 3 numbers", "found 2"],
    );
    w.fails(
        2,
        "extract --model pixels:cmyk --data sample:test --out f",
        &["pixels:cmyk"],
    );
    w.fails(
        2,
        "extract --model pixels --data sample:all --out f",
        &["sample:all"],
    );
    w.fails(
        2,
        "extract --model pixels --data sample:test --out f --batch 0",
        &["batch"],
    );
    w.fails(
        2,
        "extract --model pixels --data sample:test --out f --std 0,1,1",
        &["std"],
    );
    w.fails(
        2,
        "extract --model pixels --data sample:test --out f --device tpu",
        &["tpu"],
    );
    w.fails(
        2,
        "extract --model pixels --data sample:test --out f --crop 3000000000",
        &["crop"],
    );
    assert_eq!(names(&w.path("")), ["test", "train"]);
}

#[test]
fn checkpoints_that_are_damaged_or_do_not_fit() {
    let w = Workspace::new();
    let whole = fs::read(golden("official_plain.safetensors")).expect("a fixture");
    w.write("cut.safetensors", &whole[..whole.len() / 2]);
    w.fails(2, "export cut.safetensors --out m.onnx", &["cut.safetensors"]);
    let pth = fs::read(golden("official_plain.pth")).expect("a fixture");
    w.write("cut.pth", &pth[..pth.len() / 2]);
    w.fails(2, "export cut.pth --out m.onnx", &["cut.pth"]);
    w.write("text.pth", "not a checkpoint");
    w.fails(2, "export text.pth --out m.onnx", &["text.pth"]);
    let official = golden("official_plain.safetensors").display().to_string();
    w.fails(
        2,
        &format!("export {official} --out m.onnx --arch vit-small/14"),
        &["official_plain", "48"],
    );
    w.fails(
        2,
        &format!("export {official} --out m.onnx --heads 5"),
        &["5", "48"],
    );
    w.fails(
        2,
        &format!("export {official} --out m.onnx {} --image-size 71", heads()),
        &["71", "14"],
    );
    w.fails(
        2,
        &format!("export {official} --out m.onnx {} --outputs cls,nose", heads()),
        &["nose"],
    );
    w.fails(
        2,
        &format!("export {official} --out m.onnx {} --outputs reg", heads()),
        &["reg"],
    );
    w.fails(
        2,
        &format!("export {official} --out m.onnx {} --outputs layer:9.cls", heads()),
        &["layer:9.cls"],
    );
    w.fails(2, "export untrained --out m.onnx", &["--arch"]);
    w.fails(2, "export untrained --arch vit-huge --out m.onnx", &["vit-huge"]);
    w.write("hf/config.json", "{}");
    w.fails(2, "export hf --out m.onnx", &["hf"]);
    assert_eq!(
        names(&w.path("")),
        ["cut.pth", "cut.safetensors", "hf", "text.pth"]
    );
}

#[test]
fn a_pickle_that_names_foreign_code_calls_none() {
    let w = Workspace::new();
    // protocol 2, `posix.system`, its argument, REDUCE: what a hostile checkpoint looks like.
    let pickle = b"\x80\x02cposix\nsystem\nX\x0b\x00\x00\x00touch owned\x85R.";
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).expect("started");
    std::io::Write::write_all(&mut zip, pickle).expect("written");
    w.write("hostile.pth", zip.finish().expect("finished").into_inner());
    w.fails(
        2,
        "export hostile.pth --out m.onnx",
        &["hostile.pth", "found 0 tensors"],
    );
    // Neither `owned`, which it would have made, nor a model.
    assert_eq!(names(&w.path("")), ["hostile.pth"]);
}

#[test]
fn onnx_files_that_cannot_be_used() {
    let w = Workspace::new();
    w.png("images/a/1.png", 8, 8, 10);
    w.write("text.onnx", "not an onnx file");
    w.fails(
        2,
        "extract --model text.onnx --data images --out f",
        &["text.onnx"],
    );
    for (file, word) in [("vector_input.onnx", "[batch, 8]"), ("int64_input.onnx", "float")] {
        let path = fixture("onnx").join(file);
        w.fails(
            2,
            &format!("extract --model {} --data images --out f", path.display()),
            &[file, word],
        );
    }
    w.write("not-a-library.so", "text");
    let pool = fixture("onnx").join("pool.onnx");
    let pool = pool.display();
    w.fails(
        2,
        &format!("extract --model {pool} --data images --out f --crop 8 --ort-lib not-a-library.so"),
        &["not-a-library.so"],
    );
    w.fails(
        2,
        &format!("extract --model {pool} --data images --out f --crop 8 --output nose"),
        &["nose", "pool.onnx"],
    );
    assert_eq!(names(&w.path("")), ["images", "not-a-library.so", "text.onnx"]);
}

#[test]
fn features_that_cannot_be_evaluated() {
    let w = Workspace::new();
    let good = w.two_classes("good", 40, 4).display().to_string();
    w.two_classes("wide", 10, 6);
    w.fails(
        2,
        &format!("eval knn --train {good} --test wide --k 5"),
        &["wide", "4", "6"],
    );
    w.features(
        "nan",
        &[(Some("cat"), vec![1.0, f32::NAN]), (Some("dog"), vec![1.0, 2.0])],
    );
    for protocol in ["knn --k 1", "logreg --c 1", "linear-probe"] {
        w.fails(2, &format!("eval {protocol} --train nan --test nan"), &["NaN"]);
    }
    let one: Vec<_> = (0..40).map(|i| (Some("cat"), vec![i as f32, 1.0])).collect();
    w.features("one", &one);
    for protocol in ["knn --k 1", "logreg --c 1", "linear-probe"] {
        w.fails(2, &format!("eval {protocol} --train one --test one"), &["class"]);
    }
    w.features("unlabelled", &[(None, vec![1.0, 2.0]), (None, vec![2.0, 1.0])]);
    w.fails(
        2,
        "eval knn --train unlabelled --test unlabelled --k 1",
        &["label"],
    );
    fs::remove_file(w.two_classes("cut", 10, 4).join("_SUCCESS")).expect("removed");
    w.fails(
        2,
        &format!("eval knn --train {good} --test cut --k 5"),
        &["cut", "_SUCCESS"],
    );
    w.two_classes("damaged", 10, 4);
    let part = w.path("damaged/part-00000.parquet");
    let bytes = fs::read(&part).expect("a part");
    fs::write(&part, &bytes[..bytes.len() / 2]).expect("written");
    w.fails(
        2,
        &format!("eval knn --train {good} --test damaged --k 5"),
        &["part-00000.parquet"],
    );
    let later = w.two_classes("later", 10, 4).join("meta.json");
    let text = fs::read_to_string(&later)
        .expect("meta")
        .replace("\"format_version\": 1", "\"format_version\": 99");
    fs::write(&later, text).expect("written");
    w.fails(
        2,
        &format!("eval knn --train {good} --test later --k 5"),
        &["later", "99"],
    );
}

#[test]
fn sources_that_are_malformed() {
    let w = Workspace::new();
    fs::create_dir(w.path("empty")).expect("created");
    w.fails(2, "extract --model pixels --data empty --out f", &["empty"]);
    w.write("list.csv", "photo,label\na.png,cat\n");
    w.fails(
        2,
        "extract --model pixels --data list.csv --out f",
        &["list.csv", "path"],
    );
    w.write("shards/000.tar", "");
    w.fails(
        2,
        "extract --model pixels --data shards/000.tar --out f",
        &["tar"],
    );
    w.write(
        "idx/train-images-idx3-ubyte",
        [0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2],
    );
    w.write(
        "idx/train-labels-idx1-ubyte",
        [0, 0, 8, 1, 0, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    );
    w.fails(
        2,
        "extract --model pixels --data idx:idx#train --out f",
        &["train-images-idx3-ubyte"],
    );
    w.fails(
        2,
        "extract --model pixels --data idx:idx#all --out f",
        &["idx:idx#all"],
    );
    assert_eq!(names(&w.path("")), ["empty", "idx", "list.csv", "shards"]);
}

#[test]
fn outputs_that_exist_are_kept() {
    let w = Workspace::new();
    w.png("images/a/1.png", 8, 8, 10);
    w.png("images/b/2.png", 8, 8, 200);
    w.succeeds("extract --model pixels --data images --out f");
    let before = fs::read(w.path("f/part-00000.parquet")).expect("a part");
    w.fails(
        2,
        "extract --model pixels --data images --out f",
        &["f", "--force"],
    );
    w.fails(
        2,
        "extract --model pixels --data images --out images --force",
        &["images"],
    );
    w.fails(
        2,
        "extract --model pixels --data images --out f --resume --crop 4",
        &[
            "f/meta.json",
            "other settings",
            "preprocess.crop: expected [4,4], found [8,8]",
            "--force",
        ],
    );
    assert_eq!(
        fs::read(w.path("f/part-00000.parquet")).expect("still there"),
        before
    );
    assert_eq!(names(&w.path("images")), ["a", "b"]);
    w.succeeds("extract --model pixels --data images --out f --force --crop 4");
    w.write("m.onnx", "precious");
    let official = golden("official_plain.safetensors").display().to_string();
    w.fails(
        2,
        &format!("export {official} {} --out m.onnx", heads()),
        &["m.onnx", "--force"],
    );
    assert_eq!(fs::read(w.path("m.onnx")).expect("still there"), b"precious");
    w.write("runs/demo/thesis.txt", "precious");
    w.fails(2, "demo", &["runs/demo"]);
    assert_eq!(names(&w.path("runs/demo")), ["thesis.txt"]);
}

#[test]
fn a_device_that_is_not_there_is_no_quiet_fall_back() {
    let w = Workspace::new();
    w.png("images/a/1.png", 8, 8, 10);
    let pool = fixture("onnx").join("pool.onnx");
    let extract = format!(
        "extract --model {} --data images --out f --crop 8",
        pool.display()
    );
    // Whatever library this machine has: without it named, `cuda` would fetch the large CUDA build.
    w.succeeds(&format!("{extract} --device cpu"));
    fs::remove_dir_all(w.path("f")).expect("removed");
    let doctor = w.succeeds("doctor --json").json();
    let library = doctor["library"]["path"].as_str().expect("a library").to_owned();
    let run = w.macula(&format!("{extract} --device cuda --ort-lib {library}"));
    // A machine with a GPU and the CUDA build of ONNX Runtime may honour it; every other must refuse.
    if run.code != 0 {
        assert!(
            run.stderr.contains("cuda") || run.stderr.contains("CUDA"),
            "{}",
            run.stderr
        );
        assert_eq!(names(&w.path("")), ["images"]);
    }
}
