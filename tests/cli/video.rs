//! Frames of videos, with a stand-in for ffmpeg on the path.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use macula::extract::FeatureFolder;

use crate::harness::Workspace;

/// A workspace whose `bin`, alone on the path, holds an ffmpeg that writes three grey frames of 8 x 8 pixels (2 x 2 when it
/// is told to scale), 40, 80 and 120; the shell's own commands are all that it needs.
fn with_ffmpeg() -> Workspace {
    let mut w = Workspace::new();
    let script = "#!/bin/sh\ncase \"$*\" in *scale=2:2*) size='2 2'; n=12;; *) size='8 8'; n=192;; esac\n\
                  for octal in 050 120 170; do printf 'P6\\n%s\\n255\\n' \"$size\"\n\
                  j=0; while [ $j -lt $n ]; do printf \"\\\\$octal\"; j=$((j+1)); done; done\n";
    let program = w.write("bin/ffmpeg", script);
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    w.write("clip.mp4", "the stand-in does not look at it");
    w.search_only("bin");
    w
}

#[test]
fn frames_are_rows_in_order() {
    let w = with_ffmpeg();
    w.succeeds("extract --model pixels:rgb --data video:clip.mp4#fps=2 --out f --resize 0 --crop 8");
    let folder = FeatureFolder::open(&w.path("f")).unwrap();
    assert_eq!(folder.meta().source["kind"], "video");
    let features = folder.read("pixels").unwrap();
    let shades: Vec<f32> = (0..3).map(|row| features.matrix.view().row(row)[0]).collect();
    assert!(shades[0] < shades[1] && shades[1] < shades[2], "{shades:?}");
    let parts =
        w.succeeds("extract --model pixels:rgb --data video:clip.mp4 --out p --crop 8 --shard 1/2 --json");
    assert_eq!(parts.json()["n_rows"], 1);
}

#[test]
fn a_video_is_refused_for_training_and_where_there_is_no_ffmpeg() {
    let mut w = with_ffmpeg();
    let train = "train --data video:clip.mp4 --out run --set steps=1";
    w.fails(
        2,
        train,
        &["video:clip.mp4", "drawn at random", "cut it into images"],
    );
    assert!(!w.path("run").exists());
    w.search_only("nothing");
    let extract = "extract --model pixels --data video:clip.mp4 --out f";
    w.fails(2, extract, &["video:clip.mp4", "ffmpeg", "not found on the path"]);
}
