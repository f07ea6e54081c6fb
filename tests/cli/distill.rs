//! `macula distill` as a user runs it: teachers of every kind, every recipe, and what a student is good for afterwards.

use std::path::Path;

use crate::harness::{Workspace, golden};

/// A teacher that takes seconds, of the images' own size, with prototypes for patches.
const TEACHER: &str = "--set steps=6 --set batch_size=8 --set backbone.embed_dim=32 --set backbone.depth=2 \
     --set backbone.num_heads=2 --set backbone.patch_size=7 --set image_size=28 --set local_size=14 \
     --set loss.head.hidden=32 --set loss.head.bottleneck=16 --set loss.head.prototypes=64 \
     --set loss.ibot_weight=1 --set backbone.patch_drop_rate=0";

/// A student of it.
const STUDENT: &str = "--set steps=6 --set batch_size=8 --set backbone.embed_dim=16 --set backbone.depth=2 \
     --set backbone.num_heads=2 --set monitor.log_every=2 --set distill.relation_queue=64";

fn teacher(space: &Workspace) {
    space.succeeds(&format!("train --data sample:train --out teacher {TEACHER}"));
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn last_metrics(run: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    serde_json::from_str(text.lines().last().expect("lines")).expect("JSON")
}

#[test]
fn a_student_of_every_recipe_is_exported_extracted_and_evaluated() {
    let space = Workspace::new();
    teacher(&space);
    let state = space.path("teacher/checkpoints/last/state.safetensors");
    let before = bytes(&state);
    for (recipe, term) in [
        ("distill-dinov2", "loss_ibot"),
        ("distill-features", "loss_relation"),
        ("distill-logits", "loss_logits"),
    ] {
        space.succeeds(&format!(
            "distill --teacher teacher --data sample:train --out {recipe} --recipe {recipe} {STUDENT}"
        ));
        let run = space.path(recipe);
        let last = last_metrics(&run);
        assert_eq!(last["step"], 6);
        assert!(last[term].is_number(), "{recipe}: {last}");
        let config = std::fs::read_to_string(run.join("config.toml")).expect("config");
        assert!(
            config.contains("teacher_sha256") && config.contains("dino_prototypes = 64"),
            "{config}"
        );
        space.succeeds(&format!("export {recipe} --out {recipe}.onnx"));
        for split in ["train", "test"] {
            space.succeeds(&format!(
                "extract --model {recipe}.onnx --data sample:{split} --out {recipe}-{split}"
            ));
        }
        let table = space.succeeds(&format!(
            "eval knn --train {recipe}-train --test {recipe}-test --json"
        ));
        let table: serde_json::Value = serde_json::from_str(&table.stdout).expect("JSON");
        let top1 = table["rows"][0]["top1"].as_f64().expect("an accuracy");
        assert!((0.1..=1.).contains(&top1), "{recipe}: {top1}");
    }
    assert!(bytes(&state) == before, "the teacher has changed");

    // A student has heads: it can teach in its turn, and pretraining can go on from it.
    space.succeeds(&format!(
        "distill --teacher distill-dinov2 --data sample:train --out pupil {STUDENT} --set steps=2"
    ));
    space.succeeds("train --data sample:train --out further --from distill-dinov2 --set steps=2");
}

#[test]
fn checkpoints_and_onnx_files_teach_students_of_an_architecture_of_ones_own() {
    let space = Workspace::new();
    teacher(&space);
    space.succeeds("export teacher --out teacher.onnx --outputs cls,patch");
    let arch = "--arch vit-tiny/7 --set backbone.depth=1 --set steps=2 --set batch_size=4 --set distill.relation_queue=8";
    for teacher in ["teacher/teacher.safetensors", "teacher.onnx"] {
        let text = space.succeeds(&format!(
            "distill --teacher {teacher} --data sample:train --out run --force {arch}"
        ));
        assert!(text.stdout.contains("finished at step 2"), "{}", text.stdout);
        let config = std::fs::read_to_string(space.path("run/config.toml")).expect("config");
        for line in [
            "recipe = \"distill-features\"",
            "embed_dim = 192",
            "patch_size = 7",
            "patch_weight = 1.0",
        ] {
            assert!(config.contains(line), "{teacher}: {line} in\n{config}");
        }
    }
}

/// Networks of others teach: what their files do not say is given.
#[test]
fn clip_siglip_and_dinov3_teach() {
    let space = Workspace::new();
    let backbones = golden("backbones");
    let bare = space.path("clip.safetensors");
    std::fs::copy(backbones.join("clip_hf/model.safetensors"), &bare).expect("copied");
    let student = "--arch vit-tiny/4 --set backbone.depth=1 --set backbone.embed_dim=16 --set backbone.num_heads=2 \
         --set backbone.ffn_hidden=32 --set steps=2 --set batch_size=4 --set distill.relation_queue=8 \
         --set image_size=16 --set local_size=8";
    let distill = |teacher: &str| {
        format!(
            "distill --teacher {teacher} --set distill.teacher_heads=2 --data sample:train --out run --force {student}"
        )
    };
    space.fails(2, &distill("clip.safetensors"), &["--activation"]);
    let siglip = backbones.join("siglip_hf").display().to_string();
    let dinov3 = backbones.join("dinov3_timm.safetensors").display().to_string();
    for (teacher, flags, lines) in [
        (
            "clip.safetensors",
            "--activation quick-gelu",
            &["teacher_activation = \"quick-gelu\"", "cls_weight = 1.0"][..],
        ),
        (&dinov3, "", &["cls_weight = 1.0", "patch_weight = 1.0"]),
        (&siglip, "", &["cls_weight = 0.0", "patch_weight = 1.0"]),
    ] {
        let before = bytes(&backbones.join("dinov3_timm.safetensors"));
        let text = space.succeeds(&format!("{} {flags}", distill(teacher)));
        assert!(text.stdout.contains("finished at step 2"), "{}", text.stdout);
        let config = std::fs::read_to_string(space.path("run/config.toml")).expect("config");
        for line in lines {
            assert!(config.contains(line), "{teacher}: {line} in\n{config}");
        }
        assert!(bytes(&backbones.join("dinov3_timm.safetensors")) == before);
    }
    // A student with rotary positions, which learns from one that has them.
    let rotary = student.replace("vit-tiny/4", "vit-tiny/4-rope");
    space.succeeds(&format!(
        "distill --teacher {dinov3} --set distill.teacher_heads=2 --data sample:train --out rotary {rotary}"
    ));
    space.succeeds("export rotary --out rotary.onnx");
    space.fails(
        2,
        &format!("{} --teacher-arch dinov3-vits16", distill(&dinov3)),
        &["expected width 384, found 32"],
    );
}

#[test]
fn a_resumed_and_a_cached_distillation_hold_the_bytes_of_a_plain_one() {
    let space = Workspace::new();
    teacher(&space);
    let png = include_bytes!("../fixtures/images/rgb.png");
    for number in 0..12 {
        space.write(&format!("images/{number:02}.png"), png);
    }
    let settings = format!("--teacher teacher --data images {STUDENT} --set distill.cache_epochs=2");
    space.succeeds(&format!("distill --out whole {settings}"));
    let short = format!("distill --out parts {settings} --set distill.cache=outputs");
    space.succeeds(&format!(
        "{short} --set checkpoints.every=3 --set checkpoints.keep=9"
    ));
    // As if it had been killed after the checkpoint of step 3.
    std::fs::remove_dir_all(space.path("parts/checkpoints/step-6")).expect("removed");
    space.succeeds("distill --out parts --resume");
    for file in ["teacher.safetensors", "checkpoints/last/state.safetensors"] {
        assert!(
            bytes(&space.path("parts").join(file)) == bytes(&space.path("whole").join(file)),
            "{file}"
        );
    }
    // Another teacher in its place is noticed.
    space.succeeds(&format!(
        "train --data sample:train --out teacher --force {TEACHER} --seed 1"
    ));
    space.fails(
        2,
        "distill --out parts --resume",
        &["teacher", "began with", "SHA-256"],
    );
    space.fails(2, "train --out parts --resume", &["macula distill"]);
}

#[test]
fn wrong_arguments_are_one_line() {
    let space = Workspace::new();
    teacher(&space);
    let two_inputs = include_bytes!("../fixtures/onnx/two_inputs.onnx");
    space.write("two_inputs.onnx", two_inputs);
    space.write("not.onnx", b"no model");
    let to = "--data sample:train --out run";
    for (arguments, words) in [
        (format!("distill {to}"), &["--teacher"][..]),
        (
            format!("distill --teacher nothing {to}"),
            &["nothing", "no such file"],
        ),
        (
            format!("distill --teacher two_inputs.onnx {to}"),
            &["two_inputs.onnx", "one input"],
        ),
        (format!("distill --teacher not.onnx {to}"), &["not.onnx"]),
        (
            format!("distill --teacher teacher {to} --recipe dino"),
            &["--recipe", "distill-dinov2", "dino"],
        ),
        (
            format!("distill --teacher teacher/teacher.safetensors {to} --recipe distill-dinov2"),
            &["a DINO head", "distill-features takes it"],
        ),
        (
            format!("distill --teacher teacher {to} --set loss.head.prototypes=65"),
            &["loss.head.prototypes", "64", "65"],
        ),
        (
            format!(
                "distill --teacher teacher {to} --set distill.cache_epochs=9 --set distill.cache=c --set distill.cache_gb=0.001"
            ),
            &["distill.cache_gb", "GB"],
        ),
        (
            format!("distill --teacher teacher {to} --set distill.cache=c"),
            &["distill.cache_epochs"],
        ),
        (
            format!("distill --teacher teacher {to} --arch resnet-50"),
            &["resnet-50"],
        ),
        ("distill --out teacher --resume".to_owned(), &["macula train"]),
    ] {
        space.fails(2, &arguments, words);
        assert!(
            !space.path("run").exists(),
            "macula {arguments} left a run folder"
        );
    }
}
