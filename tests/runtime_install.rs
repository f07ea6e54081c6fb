//! Installing ONNX Runtime from outside the crate: two processes at once, and the real wheel over the network.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use macula::device::{Device, Dtype};
use macula::files;
use macula::runtime::manifest::Depth;
use macula::runtime::provision::{install_with, installed};
use macula::runtime::wheels::{Flavor, WHEELS, Wheel, pinned};
use macula::runtime::{OnnxModel, Origin, Runtime, RuntimeOptions, SessionOptions, pip};

/// Set in a child process of [`of_two_processes_one_installs`]: the folder to work in.
const CHILD_OF: &str = "MACULA_TEST_INSTALL_IN";

/// Says that a test did not run, not through the macro, whose output a passing test hides. Where MACULA_NO_SKIP is set, as in
/// CI, what a test needs must be there.
fn skipped(why: &str) {
    assert!(
        std::env::var_os("MACULA_NO_SKIP").is_none(),
        "not to be skipped: {why}"
    );
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIPPED: runtime_install: {why}").unwrap();
}

/// A small wheel, and the line of a table that pins it.
fn small_wheel(path: &Path) -> Wheel {
    let mut zip = zip::ZipWriter::new(File::create(path).unwrap());
    zip.start_file(WHEELS[0].library, zip::write::SimpleFileOptions::default())
        .unwrap();
    zip.write_all(b"stands in for a library").unwrap();
    zip.finish().unwrap();
    pinning(path)
}

fn pinning(path: &Path) -> Wheel {
    let sha256: &'static str = Box::leak(files::sha256(path).unwrap().into_boxed_str());
    Wheel { sha256, ..WHEELS[0] }
}

/// Installs the small wheel in `place`, slowly, and notes that it fetched.
fn install_slowly(place: &Path) -> PathBuf {
    let wheel = pinning(&place.join("small.whl"));
    let fetch = |_: &Wheel, folder: &Path| {
        let mut log = File::options()
            .append(true)
            .create(true)
            .open(place.join("fetched.log"))
            .unwrap();
        log.write_all(b"fetched\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let path = folder.join("small.whl");
        std::fs::copy(place.join("small.whl"), &path).unwrap();
        Ok(path)
    };
    install_with(&place.join("cache"), &wheel, &fetch).unwrap().path
}

#[test]
fn of_two_processes_one_installs() {
    if let Some(place) = std::env::var_os(CHILD_OF) {
        install_slowly(Path::new(&place));
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let wheel = small_wheel(&place.path().join("small.whl"));
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "of_two_processes_one_installs"])
            .env(CHILD_OF, place.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let log = std::fs::read_to_string(place.path().join("fetched.log")).unwrap();
    assert_eq!(log, "fetched\n", "only one of them fetches");
    let cache = place.path().join("cache");
    let library = installed(&cache, &wheel, Depth::Everything).unwrap().unwrap();
    assert_eq!(library.origin, Origin::Cache);
    let mut left: Vec<_> = std::fs::read_dir(cache.join("onnxruntime"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, [".lock", "cpu-1.32.0"]);
}

/// The real thing: pip, the pinned checksum, unpacking, loading.
#[test]
#[ignore = "fetches the pinned wheel from a package index"]
fn the_pinned_wheel_is_what_the_index_has() {
    let place = tempfile::tempdir().unwrap();
    let library = install_with(place.path(), pinned(Flavor::Cpu).unwrap(), &pip::download).unwrap();
    let options = RuntimeOptions {
        ort_lib: Some(library.path.clone()),
        allow_install: false,
        flavor: None,
    };
    let runtime = Runtime::open(&options).unwrap();
    assert_eq!(runtime.library().path, library.path);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/onnx/pool.onnx");
    let session = SessionOptions {
        device: Device::Cpu,
        threads: 1,
        compute: Dtype::F32,
    };
    let mut model = OnnxModel::open(runtime, &file, &session).unwrap();
    let outputs = model
        .run(&[1.0, 2.0, 3.0], [1, 3, 1, 1], &["cls".to_owned()])
        .unwrap();
    assert_eq!(outputs[0].data, [1.0, 2.0, 3.0]);
}

/// A pip that cannot reach any index: the error says what to do by hand, in one line.
#[test]
fn without_an_index_the_error_says_what_to_do() {
    if pip::find().is_none() {
        return skipped("there is no pip");
    }
    let place = tempfile::tempdir().unwrap();
    let nowhere = Wheel {
        package: "macula-no-such-package",
        ..WHEELS[0]
    };
    let fetch = |wheel: &Wheel, folder: &Path| pip::download_with(wheel, folder, &["--no-index"]);
    let error = install_with(place.path(), &nowhere, &fetch).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.exit_code(), 1);
    assert!(
        text.starts_with("macula-no-such-package==1.32.0: pip could not download it ("),
        "{text}"
    );
    assert!(
        text.contains("on a connected machine run `python3 -m pip download"),
        "{text}"
    );
    assert!(
        text.contains("--wheel") && text.contains("--ort-lib FILE") && !text.contains('\n'),
        "{text}"
    );
}
