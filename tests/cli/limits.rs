//! What an extraction holds in memory, and what a kill in the middle of one leaves.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{Workspace, names};

/// Features of an image of 224 pixels by model `pixels`: 602,112 bytes, 111 rows in a part of 64 MiB.
const EXTRACT: &str = "extract --model pixels --resize 224 --crop 224 --batch 8";

/// Flat images, quick to decode, each of another colour.
fn images(w: &Workspace, folder: &str, count: usize) {
    for number in 0..count {
        w.png(
            &format!("{folder}/{number:04}.png"),
            224,
            224,
            (number % 256) as u8,
        );
    }
}

fn start(w: &Workspace, arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_macula"))
        .args(arguments.split_whitespace())
        .current_dir(w.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary starts")
}

/// The most memory of a process so far, in MiB.
#[cfg(target_os = "linux")]
fn peak(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

/// Runs to the end, and gives the most memory it had.
#[cfg(target_os = "linux")]
fn peak_of(w: &Workspace, arguments: &str) -> u64 {
    let mut child = start(w, arguments);
    let mut max = 0;
    loop {
        max = peak(&child).unwrap_or(0).max(max);
        if let Some(status) = child.try_wait().expect("waited for") {
            assert!(status.success(), "macula {arguments}: {status}");
            return max;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Memory does not grow with the number of images. Of parts there are up to four at a time: one that is filled, whose vector may
/// have room for twice as much, one that waits, one that is written, and its columns in the writer. The features of these images
/// are 827 MiB, and a run of them, as one of ten times as many, takes about 550.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_that_of_a_few_parts_however_many_images_there_are() {
    let w = Workspace::new();
    images(&w, "images", 240);
    for number in 240..1440 {
        let image = w.path(&format!("images/{:04}.png", number % 240));
        fs::hard_link(image, w.path(&format!("images/{number:04}.png"))).expect("linked");
    }
    let max = peak_of(&w, &format!("{EXTRACT} --data images --out f"));
    println!("{max} MiB");
    assert!((100..760).contains(&max), "{max} MiB");
}

fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    names(folder)
        .into_iter()
        .map(|name| (name.clone(), fs::read(folder.join(name)).expect("read")))
        .collect()
}

/// Killed as soon as its second part is there: what is left is no complete folder, and resumed it becomes the one that an
/// undisturbed run writes, byte by byte.
#[test]
fn a_killed_extraction_is_resumed_to_the_same_bytes() {
    let w = Workspace::new();
    images(&w, "images", 480);
    w.succeeds(&format!("{EXTRACT} --data images --out whole"));
    let mut child = start(&w, &format!("{EXTRACT} --data images --out killed"));
    while !w.path("killed/part-00001.parquet").exists() {
        if let Some(status) = child.try_wait().expect("waited for") {
            panic!("it ended before it could be killed: {status}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    let status = child.wait().expect("waited for");
    assert_eq!(status.signal(), Some(9), "the kill hit a process that ran");
    assert!(!w.path("killed/_SUCCESS").exists());
    w.fails(
        2,
        "eval knn --train killed --test killed",
        &["killed", "_SUCCESS"],
    );
    w.succeeds(&format!("{EXTRACT} --data images --out killed --resume"));
    let (whole, killed) = (files_of(&w.path("whole")), files_of(&w.path("killed")));
    assert_eq!(
        whole.keys().collect::<Vec<_>>(),
        killed.keys().collect::<Vec<_>>()
    );
    for (name, bytes) in &whole {
        assert!(*bytes == killed[name], "{name} differs");
    }
}
