//! Who may read what a chain writes: whoever the umask lets, every file and folder alike.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::harness::Workspace;

const SMALL: &str = "--set steps=2 --set batch_size=4 --set crops.local.count=2 --set backbone.embed_dim=16 --set backbone.depth=1 \
     --set backbone.num_heads=2 --set backbone.patch_size=7 --set image_size=28 --set local_size=14 --set loss.head.hidden=16 \
     --set loss.head.bottleneck=8 --set loss.head.prototypes=16";

/// A chain that writes something of every kind, below the working directory.
fn chain() -> Vec<String> {
    let train = format!("train --data ../photos --out run --knn-data ../photos --knn-every 1 {SMALL}");
    let rest = [
        "distill --teacher run --data ../photos --out student --set steps=2 --set batch_size=4 --set backbone.embed_dim=16 \
         --set backbone.depth=1 --set backbone.num_heads=2 --set distill.cache=cache --set distill.cache_epochs=2",
        "export run --out m.onnx",
        "export run --out two.onnx --external-data-over 1000",
        "export run --out int8.onnx --dtype int8 --calibration ../photos --calibration-images 4 --compared-images 4 --max-drift 1",
        "extract --model m.onnx --data ../photos --out f",
        "extract --model pixels --data ../photos --out npy --layout npy --resize 8 --crop 8",
        "extract --model pixels --data ../photos --out shards --shard 0/1 --resize 8 --crop 8",
        "eval knn --train f --test f --k 1 --out r/knn",
        "eval logreg --train f --test f --c 1 --out r/logreg",
        "eval knn --model pixels --train-data ../photos --test-data ../photos --k 1 --out r/pixels",
        "eval cluster --features f --out r/cluster",
        "eval robustness --model pixels --train-data ../photos --test-data ../photos --bootstrap-resamples 10 --k 1 \
         --corruptions contrast --severities 1 --out r/robustness --pictures robust.png",
        "curate dedup --features f --out dedup",
        "curate quality --data ../photos --out quality",
        "index build --features f --out exact",
        "index build --features f --out graph --kind hnsw",
        "index query --index exact --features f --k 1 --out hits.parquet",
        "report knn=r/knn logreg=r/logreg --out report",
        "viz pca --model run --data ../photos --n 2 --foreground all --out pca.png",
        "viz map --features f --out map.png",
    ];
    std::iter::once(train).chain(rest.map(str::to_owned)).collect()
}

/// Every file and folder below `folder` whose rights are not what `umask` leaves, and how many were looked at.
fn wrong(folder: &Path, umask: u32, found: &mut Vec<String>) -> usize {
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_symlink() {
            continue;
        }
        seen += 1;
        let mode = metadata.permissions().mode() & 0o777;
        let expected = if metadata.is_dir() { 0o777 } else { 0o666 } & !umask;
        if mode != expected {
            found.push(format!("{}: {mode:o} instead of {expected:o}", path.display()));
        }
        if metadata.is_dir() {
            seen += wrong(&path, umask, found);
        }
    }
    seen
}

#[test]
fn the_umask_alone_decides_who_reads_what_is_written() {
    let mut found = Vec::new();
    for umask in [0o022, 0o027] {
        let w = Workspace::new();
        for i in 0..8 {
            w.png(
                &format!("photos/{}/{i}.png", ["cat", "dog"][i % 2]),
                24,
                24,
                20 * i as u8,
            );
        }
        let lines: Vec<String> = chain()
            .iter()
            .map(|arguments| format!("{} {arguments}", env!("CARGO_BIN_EXE_macula")))
            .collect();
        let script = format!(
            "umask {umask:03o} && mkdir out && cd out && set -ex\n{}",
            lines.join("\n")
        );
        let output = Command::new("sh")
            .args(["-c", &script])
            .current_dir(w.path("."))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let seen = wrong(&w.path("out"), umask, &mut found);
        assert!(seen > 100, "only {seen} files");
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
