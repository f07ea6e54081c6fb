//! What a run leaves outside of the folders that it was given: nothing.

use std::process::Command;

use crate::harness::{Workspace, fixture, names};

/// ONNX Runtime's own builds keep a number for the machine and what was run on it in the user's cache, for their makers.
#[test]
fn onnx_runtime_keeps_no_records() {
    let space = Workspace::new();
    std::fs::create_dir(space.path("home")).expect("created");
    let doctor = space.succeeds("doctor --json").json();
    let model = fixture("onnx/hidden_state.onnx");
    let arguments = "extract --crop 28 --data sample:test --shard 0/100 --out features --model";
    let output = Command::new(env!("CARGO_BIN_EXE_macula"))
        .args(arguments.split_whitespace())
        .arg(model)
        .current_dir(space.path("."))
        .env("MACULA_CACHE", doctor["cache"].as_str().expect("a cache"))
        .env("HOME", space.path("home"))
        // What says so for these tests, what says where such records go, and what of automatic builds keeps them from being made.
        .env_remove("ORT_DISABLE_TELEMETRY")
        .env_remove("XDG_CACHE_HOME")
        .env_remove("CI")
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(names(&space.path("home")), Vec::<String>::new(), "{said}");
}
