//! What the command says of other people's sources, and that the columns which flags name hold wherever the source is kept.

use std::fs;

use crate::harness::{Run, Workspace, fixture};

const EXTRACT: &str = "extract --model pixels --resize 4 --crop 4 --out f --force --data";

/// Lines of stderr that hold `word`.
fn lines<'a>(run: &'a Run, word: &str) -> Vec<&'a str> {
    run.stderr.lines().filter(|line| line.contains(word)).collect()
}

fn source_fixture(w: &Workspace, name: &str) {
    let bytes = fs::read(fixture("sources").join(name)).expect("a fixture");
    w.write(name, bytes);
}

/// A table of four images in two classes under names that several columns could have.
fn list(w: &Workspace) {
    let mut text = "file;kind;class;category\n".to_owned();
    for (row, kind) in ["cat", "dog", "cat", "dog"].iter().enumerate() {
        let shade = if *kind == "cat" { 10 } else { 200 };
        w.png(&format!("images/{row}.png"), 8, 8, shade);
        text += &format!("images/{row}.png;{kind};x{row};y\n");
    }
    w.write("list.csv", text);
}

#[test]
fn what_is_passed_over_is_one_line() {
    let w = Workspace::new();
    for name in [
        "cat/1.png",
        "cat/._1.png",
        "dog/2.png",
        ".ipynb_checkpoints/3.png",
        "@eaDir/4.png",
    ] {
        w.png(&format!("images/{name}"), 8, 8, 10);
    }
    w.write("images/cat/notes.txt", "x");
    w.write("images/dog/photo.HEIC", "x");
    let run = w.succeeds(&format!("{EXTRACT} images"));
    let expected = "images: passed over: 2 hidden (first: .ipynb_checkpoints), 2 of kinds that are not read (.heic, .txt; first: cat/notes.txt), 1 of the system (first: @eaDir)";
    assert_eq!(lines(&run, "passed over"), [expected]);
    assert!(run.stdout.contains("2 rows"), "{}", run.stdout);
}

#[test]
fn a_stray_image_is_named_where_labels_are_missed() {
    let w = Workspace::new();
    for name in ["cat/1.png", "dog/2.png", "stray.png"] {
        w.png(&format!("images/{name}"), 8, 8, 10);
    }
    let run = w.succeeds(&format!("{EXTRACT} images"));
    assert_eq!(
        lines(&run, "no labels: 1 of 3 images lies beside").len(),
        1,
        "{}",
        run.stderr
    );
    w.fails(
        2,
        "eval knn --train f --test f --k 1",
        &["expected a label", "stray.png"],
    );
}

#[test]
fn columns_are_named_by_flags_and_found_by_usual_names() {
    let w = Workspace::new();
    list(&w);
    w.fails(
        2,
        &format!("{EXTRACT} list.csv"),
        &["list.csv", "`class`, `category`", "--label-column"],
    );
    w.fails(
        2,
        &format!("{EXTRACT} list.csv --label-column no"),
        &["list.csv", "`no`", "`kind`"],
    );
    w.fails(
        2,
        &format!("{EXTRACT} images --label-column kind"),
        &["images", "--label-column", "CSV or Parquet"],
    );
    w.fails(
        2,
        "eval knn --train f --test f --label-column kind",
        &["--label-column", "--train-data"],
    );
    let run = w.succeeds(&format!("{EXTRACT} list.csv --label-column kind"));
    assert_eq!(
        lines(
            &run,
            "paths are taken from column `file` (--path-column names another)"
        )
        .len(),
        1,
        "{}",
        run.stderr
    );
    let eval = "eval knn --model pixels --resize 4 --crop 4 --train-data list.csv --test-data list.csv --k 1 --json --label-column";
    let result = w.succeeds(&format!("{eval} kind")).json();
    assert_eq!(result["rows"][0]["top1"], 1.0);
    // The features of other labels are not taken for these.
    w.fails(
        2,
        &format!("{EXTRACT} list.csv --label-column category --resume").replace(" --force", ""),
        &["other settings", "source"],
    );
}

#[test]
fn a_run_keeps_the_columns_of_its_source() {
    let w = Workspace::new();
    list(&w);
    let train = "train --data list.csv --label-column kind --path-column file --out run --dry-run";
    let run = w.succeeds(train);
    assert!(
        run.stdout.contains("source = \"list.csv#path=file&label=kind\""),
        "{}",
        run.stdout
    );
    let quality = "curate quality --data list.csv --label-column kind --out q";
    w.succeeds(quality);
    let kept = fs::read_to_string(w.path("q/curate.json")).expect("written");
    assert!(kept.contains("list.csv#label=kind"), "{kept}");
    w.fails(
        2,
        "curate dedup --features f --label-column kind --out d",
        &["--label-column", "--data"],
    );
}

#[test]
fn tables_of_any_types_are_read() {
    let w = Workspace::new();
    source_fixture(&w, "checkpoint_input_28.png");
    for name in [
        "list_int8_timestamp.parquet",
        "list_decimal.parquet",
        "list_categorical.parquet",
    ] {
        source_fixture(&w, name);
        let run = w.succeeds(&format!("{EXTRACT} {name}"));
        assert!(run.stdout.contains("3 rows"), "{name}: {}", run.stdout);
    }
    source_fixture(&w, "parquet_images_labels_column.parquet");
    let run = w.succeeds(&format!("{EXTRACT} parquet_images_labels_column.parquet"));
    assert_eq!(
        lines(
            &run,
            "labels are taken from column `labels` (--label-column names another)"
        )
        .len(),
        1,
        "{}",
        run.stderr
    );
    source_fixture(&w, "tar_links.tar");
    let run = w.succeeds(&format!("{EXTRACT} tar_links.tar"));
    assert_eq!(
        lines(&run, "passed over: 1 neither files nor links").len(),
        1,
        "{}",
        run.stderr
    );
}

/// Cut or overwritten, every Parquet file that is read anywhere is one line.
#[test]
fn damaged_parquet_is_one_line_everywhere() {
    let w = Workspace::new();
    source_fixture(&w, "list_decimal.parquet");
    source_fixture(&w, "parquet_images_classlabel.parquet");
    let (train, test) = (w.two_classes("train", 12, 4), w.two_classes("test", 8, 4));
    let pair = format!("--train {} --test {}", train.display(), test.display());
    w.succeeds(&format!("eval knn {pair} --k 1 --out knn"));
    w.succeeds("curate dedup --features train --out dedup");
    let whole = fs::read(w.path("train/part-00000.parquet")).expect("a part");
    for (file, command) in [
        ("list_decimal.parquet", format!("{EXTRACT} list_decimal.parquet")),
        (
            "parquet_images_classlabel.parquet",
            format!("{EXTRACT} parquet_images_classlabel.parquet"),
        ),
        (
            "dedup/list.parquet",
            "curate sample --features train --list dedup/list.parquet --size 2 --method random --out s"
                .to_owned(),
        ),
        (
            "knn/predictions.parquet",
            "eval compare --a knn --b knn".to_owned(),
        ),
        ("train/part-00000.parquet", format!("eval knn {pair} --k 1")),
    ] {
        let bytes = fs::read(w.path(file)).expect("written");
        let name = file.rsplit('/').next().unwrap_or(file);
        w.write(file, &bytes[..bytes.len() - 9]);
        w.fails(2, &command, &[name]);
        // The length of what the file says of itself.
        let mut wrong = bytes.clone();
        let at = wrong.len() - 8;
        wrong[at..at + 4].fill(0xff);
        w.write(file, &wrong);
        w.fails(2, &command, &[name]);
        // Whatever that breaks, no panic is seen.
        for part in 1..12 {
            let mut wrong = bytes.clone();
            let at = wrong.len() - wrong.len() * part / 24 - 9;
            wrong[at..at + 8].fill(0xa5);
            w.write(file, &wrong);
            let run = w.macula(&command);
            assert!(!run.stderr.contains("panicked"), "{command}\n{}", run.stderr);
            assert!([0, 1, 2].contains(&run.code), "{command}\n{}", run.stderr);
        }
    }
    assert_ne!(
        fs::read(w.path("train/part-00000.parquet")).expect("there"),
        whole
    );
}

#[test]
fn a_folder_of_shards_says_what_to_write() {
    let w = Workspace::new();
    source_fixture(&w, "classes.parquet");
    w.write(
        "set/data/train-00000-of-00001.parquet",
        fs::read(w.path("classes.parquet")).expect("there"),
    );
    w.fails(
        2,
        &format!("{EXTRACT} set"),
        &["1 Parquet file", "'set/data/train-*.parquet'"],
    );
    w.succeeds(&format!("{EXTRACT} set/data/train-*.parquet"));
}
