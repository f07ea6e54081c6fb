//! Curation: each verb on a pool whose answer is known, lists that compose and train, pipelines that resume.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use polars::prelude::{DataFrame, ParquetReader, SerReader as _};

use crate::harness::{Workspace, names};

fn table(path: &Path) -> DataFrame {
    ParquetReader::new(fs::File::open(path).expect("written"))
        .finish()
        .expect("Parquet")
}

/// (row, kept, reason) of a list.
fn verdicts(w: &Workspace, folder: &str) -> Vec<(u64, bool, String)> {
    let list = table(&w.path(folder).join("list.parquet"));
    let column = |name: &str| list.column(name).expect("a column").clone();
    let (rows, kept, reasons) = (column("row"), column("kept"), column("reason"));
    (0..list.height())
        .map(|i| {
            (
                rows.u64().expect("u64").get(i).expect("a row"),
                kept.bool().expect("bool").get(i).expect("a verdict"),
                reasons.str().expect("text").get(i).expect("a reason").to_owned(),
            )
        })
        .collect()
}

fn kept(w: &Workspace, folder: &str) -> Vec<u64> {
    let kept = verdicts(w, folder).into_iter().filter(|verdict| verdict.1);
    kept.map(|verdict| verdict.0).collect()
}

/// A vector of direction `axis` in 8 dimensions, a little off.
fn near(axis: usize, off: f32) -> Vec<f32> {
    let mut values = vec![0.0; 8];
    values[axis] = 2.0;
    values[(axis + 1) % 8] = off;
    values
}

/// Rows of direction `axes`, each copy a little further off than the one before.
fn pool(w: &Workspace, name: &str, axes: &[usize]) {
    let rows: Vec<_> = axes
        .iter()
        .enumerate()
        .map(|(i, &axis)| (Some("x"), near(axis, i as f32 * 0.01)))
        .collect();
    w.features(name, &rows);
}

#[test]
fn dedup_keeps_one_of_each_component() {
    let w = Workspace::new();
    pool(&w, "f", &[0, 1, 0, 2, 0, 1]);
    let run = w.succeeds("curate dedup --features f --out d --json");
    let json = run.json();
    assert_eq!(json["task"], "curate-dedup");
    assert_eq!(
        (&json["counts"]["kept"], &json["counts"]["components"]),
        (&3.into(), &3.into())
    );
    assert_eq!(json["settings"]["threshold"], 0.6);
    assert!(
        run.stderr.contains("may not be where the images lie"),
        "{}",
        run.stderr
    );
    assert_eq!(names(&w.path("d")), ["curate.json", "list.parquet"]);
    assert_eq!(kept(&w, "d"), [0, 1, 3]);
    let list = table(&w.path("d/list.parquet"));
    let of = list.column("of").expect("a column").u64().expect("u64").clone();
    assert_eq!(
        of.iter().collect::<Vec<_>>(),
        [None, None, Some(0), None, Some(0), Some(1)]
    );
    let components = list
        .column("component")
        .expect("a column")
        .u32()
        .expect("u32")
        .clone();
    assert_eq!(
        components.iter().flatten().collect::<Vec<_>>(),
        [0, 1, 0, 2, 0, 1]
    );

    let text = w
        .succeeds("curate dedup --features f --out d --keep central --search hnsw --force")
        .stdout;
    assert!(
        text.contains("copy") && text.contains("edge_recall 1.0000"),
        "{text}"
    );
    assert_eq!(kept(&w, "d").len(), 3);
    // Copies of rows 0 and 2 lie in a folder that is curated already: all of their components go.
    pool(&w, "curated", &[2, 5]);
    w.succeeds("curate dedup --features f --out against --against curated --search lists");
    assert_eq!(kept(&w, "against"), [0, 1]);
    assert_eq!(verdicts(&w, "against")[3].2, "copy of the curated");
    // At the highest threshold only equal directions are copies, and there are none.
    w.succeeds("curate dedup --features f --out none --threshold 1");
    assert_eq!(kept(&w, "none").len(), 6);
}

#[test]
fn lists_narrow_and_say_why_a_row_left() {
    let w = Workspace::new();
    pool(&w, "f", &[0, 1, 0, 2, 0, 1]);
    w.succeeds("curate dedup --features f --out 1");
    w.write("some.csv", "row,kept\n0,true\n1,false\n2,true\n3,true\n");
    w.succeeds("curate dedup --features f --list some.csv --out 2");
    assert_eq!(kept(&w, "2"), [0, 3]);
    assert_eq!(verdicts(&w, "2")[5].2, "not in the list");
    let json = w
        .succeeds("curate sample --features f --list 1/list.parquet --size 2 --method random --out 3 --json")
        .json();
    assert_eq!(
        (&json["counts"]["rows"], &json["counts"]["kept"]),
        (&3.into(), &2.into())
    );
    let all = verdicts(&w, "3");
    assert_eq!((all[2].1, all[2].2.as_str()), (false, "copy"));
    assert!(kept(&w, "3").iter().all(|row| [0, 1, 3].contains(row)));
}

#[test]
fn overlap_drops_components_and_shows_pairs() {
    let w = Workspace::new();
    // Row 1 is near the evaluation row, row 2 only near row 1, and row 3 near neither.
    let rows = [(3, 0.0), (0, 0.9), (0, 2.6), (5, 0.0)];
    let rows: Vec<_> = rows.iter().map(|&(axis, off)| (None, near(axis, off))).collect();
    w.features("pool", &rows);
    w.features("test", &[(None, near(0, -0.6)), (None, near(6, 0.0))]);
    let overlap = "curate overlap --features pool --against test --threshold 0.7";
    let json = w.succeeds(&format!("{overlap} --out o --json")).json();
    assert_eq!(
        (&json["counts"]["matched"], &json["counts"]["by_component"]),
        (&1.into(), &1.into())
    );
    assert_eq!(kept(&w, "o"), [0, 3]);
    let all = verdicts(&w, "o");
    assert_eq!(
        (all[1].2.as_str(), all[2].2.as_str()),
        ("matches test", "component of a match")
    );
    assert_eq!(
        names(&w.path("o")),
        ["curate.json", "list.parquet", "pairs.csv", "pairs.parquet"]
    );
    let pairs = fs::read_to_string(w.path("o/pairs.csv")).expect("written");
    assert!(
        pairs.lines().count() == 2 && pairs.contains("1,1.png,test,0,0.png,0.7"),
        "{pairs}"
    );
    w.succeeds(&format!("{overlap} --component-threshold 1 --out rows"));
    assert_eq!(kept(&w, "rows"), [0, 2, 3]);
}

/// 12 pictures in a folder: two are equal, one is a larger version of another, one is flat.
fn pictures(w: &Workspace) {
    for number in 0..9u32 {
        picture(w, &format!("photos/{number}.png"), 40, number);
    }
    fs::copy(w.path("photos/3.png"), w.path("photos/a copy.png")).expect("copied");
    picture(w, "photos/b large.png", 80, 5);
    w.png("photos/c flat.png", 40, 40, 9);
}

/// A pattern of blocks that differs from number to number.
fn picture(w: &Workspace, name: &str, side: u32, number: u32) {
    let shade = |x: u32, y: u32| {
        let (x, y) = (x * 8 / side, y * 8 / side);
        let mixed = (x + 8 * y + 64 * number + 1).wrapping_mul(2_654_435_761) ^ 0x9E37_79B9;
        (mixed.wrapping_mul(2_246_822_519) >> 24) as u8
    };
    let image = image::RgbImage::from_fn(side, side, |x, y| image::Rgb([shade(x, y); 3]));
    let path = w.path(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("created");
    image.save(path).expect("saved");
}

#[test]
fn pixels_tell_copies_and_the_list_trains() {
    let w = Workspace::new();
    pictures(&w);
    w.succeeds("extract --model pixels --data photos --out f --resize 16 --crop 16");
    let dedup = "curate dedup --features f --threshold 1";
    w.succeeds(&format!("{dedup} --pixels bytes --out bytes"));
    let removed = |folder: &str| -> Vec<(u64, String)> {
        let all = verdicts(&w, folder).into_iter().filter(|verdict| !verdict.1);
        all.map(|verdict| (verdict.0, verdict.2)).collect()
    };
    assert_eq!(removed("bytes"), [(9, "same pixels".to_owned())]);
    w.succeeds(&format!("{dedup} --pixels hash --out hash"));
    assert_eq!(removed("hash").iter().map(|r| r.0).collect::<Vec<_>>(), [9, 10]);
    // Of picture 5 and its larger version the larger one stays.
    w.succeeds(&format!(
        "{dedup} --pixels hash --keep highest-resolution --out large"
    ));
    assert_eq!(removed("large").iter().map(|r| r.0).collect::<Vec<_>>(), [5, 9]);

    let shown = w.succeeds("inspect f --json").json();
    assert!(shown.is_object());
    w.succeeds("extract --model pixels --data hash/list.parquet --out again --resize 16 --crop 16");
    let meta: serde_json::Value =
        serde_json::from_slice(&fs::read(w.path("again/meta.json")).expect("written")).expect("JSON");
    assert_eq!(meta["n_written"], 10);
    w.succeeds("train --data hash/list.parquet --out run --dry-run");
    // The features of a curated list are curated in turn.
    w.succeeds("curate sample --features again --size 0.5 --levels 2 --out half");
    assert_eq!(kept(&w, "half").len(), 5);

    w.succeeds("curate overlap --features f --against again --threshold 0.999 --out o");
    assert_eq!(kept(&w, "o").len(), 0);
    assert!(names(&w.path("o")).contains(&"pairs.png".to_owned()));
    w.succeeds("curate quality --data photos --min-side 30 --drop flat --out q");
    assert_eq!(removed("q"), [(11, "flat blurred".to_owned())]);
    w.write("photos/0.png", "no image");
    let json = w
        .succeeds("curate quality --data photos --min-side 60 --out q2 --json")
        .json();
    assert_eq!(
        (&json["counts"]["unreadable"], &json["counts"]["kept"]),
        (&1.into(), &12.into())
    );
    assert_eq!(json["counts"]["small"], 10);
}

#[test]
fn a_list_of_a_source_without_files_names_its_rows() {
    let w = Workspace::new();
    w.succeeds("extract --model pixels --data sample:test --out f");
    let json = w
        .succeeds("curate sample --features f --size 50 --levels 20,4 --out s --json")
        .json();
    assert_eq!(
        (&json["counts"]["kept"], &json["counts"]["clusters"]),
        (&50.into(), &serde_json::json!([20, 4]))
    );
    assert!(json["counts"]["label_entropy_before"].as_f64().expect("labels") > 0.999);
    assert_eq!(
        names(&w.path("s")),
        ["clusters.csv", "clusters.parquet", "curate.json", "list.parquet"]
    );
    w.succeeds("extract --model pixels --data s/list.parquet --out again");
    let some = table(&w.path("again/part-00000.parquet"));
    let all = table(&w.path("f/part-00000.parquet"));
    assert_eq!(some.height(), 50);
    let features = |frame: &DataFrame, row: u64| {
        format!(
            "{:?}",
            frame.column("pixels").expect("a column").get(row as usize)
        )
    };
    for (place, row) in kept(&w, "s").into_iter().enumerate() {
        assert_eq!(features(&some, place as u64), features(&all, row));
    }
    // The same seed takes the same rows, another seed others.
    let sample = "curate sample --features f --size 50 --levels 20,4";
    w.succeeds(&format!("{sample} --threads 1 --out same"));
    w.succeeds(&format!("{sample} --seed 7 --out other"));
    assert_eq!(kept(&w, "same"), kept(&w, "s"));
    assert_ne!(kept(&w, "other"), kept(&w, "s"));
}

#[test]
fn sampling_balances_what_is_skewed() {
    let w = Workspace::new();
    // 300, 30 and 10 rows in three directions.
    let axes = [0; 300].iter().chain(&[2; 30]).chain(&[4; 10]).copied();
    let label = |axis| {
        if axis == 0 {
            "many"
        } else if axis == 2 {
            "some"
        } else {
            "few"
        }
    };
    let rows: Vec<_> = axes
        .enumerate()
        .map(|(i, axis)| (Some(label(axis)), near(axis, (i % 17) as f32 * 0.02)))
        .collect();
    w.features("f", &rows);
    let run = |method: &str, levels: &str| {
        let sample =
            format!("curate sample --features f --size 60 --method {method} {levels} --out {method} --json");
        w.succeeds(&sample).json()["counts"]["label_entropy_after"]
            .as_f64()
            .expect("labels")
    };
    let (random, balanced) = (run("random", ""), run("hierarchical", "--levels 12,3"));
    assert!(balanced > random + 0.2, "{random} {balanced}");
    assert!(run("flat", "--levels 12") > random);
}

#[test]
fn retrieve_takes_what_is_near_the_seed() {
    let w = Workspace::new();
    pool(&w, "f", &[0, 1, 2, 3, 0, 1, 2, 3]);
    pool(&w, "seed", &[1, 1, 1, 1, 1]);
    let json = w
        .succeeds("curate retrieve --features f --seeds seed --k 2 --out r --json")
        .json();
    assert_eq!(kept(&w, "r"), [1, 5]);
    assert_eq!(
        (&json["counts"]["seeds"], &json["counts"]["collisions"]),
        (&5.into(), &8.into())
    );
    w.succeeds("curate retrieve --features f --seeds seed --k 8 --target 3 --out t");
    assert_eq!(kept(&w, "t").len(), 3);
    w.succeeds("curate retrieve --features f --seeds seed --method cluster --clusters 4 --out c");
    assert_eq!(kept(&w, "c"), [1, 5]);
    w.succeeds(
        "curate retrieve --features f --seeds seed --method cluster --clusters 4 --more-than 5 --out none",
    );
    assert_eq!(kept(&w, "none").len(), 0);
    pool(&w, "seed2", &[3]);
    w.succeeds("curate retrieve --features f --seeds seed --seeds seed2 --k 2 --out both");
    assert_eq!(kept(&w, "both"), [1, 3, 5, 7]);
}

/// Every file of a folder and of those in it, by its path.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("listed") {
        let path = entry.expect("listed").path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else {
            let bytes = fs::read(&path).expect("read");
            found.insert(path, bytes);
        }
    }
    found
}

/// Every step gives a verdict on every row, some of them no, and leaves images and features as they are.
#[test]
fn no_step_deletes_or_changes_what_it_judges() {
    let w = Workspace::new();
    pictures(&w);
    w.succeeds("extract --model pixels --data photos --out f --resize 16 --crop 16");
    let (photos, features) = (tree(&w.path("photos")), tree(&w.path("f")));
    for step in [
        "dedup --features f --threshold 1 --pixels hash",
        "overlap --features f --against f --threshold 0.99",
        "quality --data photos --min-side 30 --drop flat",
        "sample --features f --size 4 --method random",
        "retrieve --features f --seeds f --k 1 --target 3",
    ] {
        w.succeeds(&format!("curate {step} --out step --force"));
        let verdicts = verdicts(&w, "step");
        assert_eq!(verdicts.len(), photos.len(), "{step}: a verdict on every row");
        assert!(verdicts.iter().any(|verdict| !verdict.1), "{step}: drops nothing");
        assert!(tree(&w.path("photos")) == photos, "{step}: the images changed");
        assert!(tree(&w.path("f")) == features, "{step}: the features changed");
    }
}

const PIPELINE: &str = "features = \"f\"\nout = \"p\"\nseed = 3\n\n[[step]]\nverb = \"dedup\"\n\n[[step]]\nverb = \"overlap\"\n\
                        against = [\"test\"]\n\n[[step]]\nverb = \"sample\"\nsize = 2\nlevels = [2]\n";

#[test]
fn a_pipeline_runs_resumes_and_does_again_what_changed() {
    let w = Workspace::new();
    pool(&w, "f", &[0, 1, 0, 2, 4, 1, 6]);
    pool(&w, "test", &[2]);
    w.write("pipeline.toml", PIPELINE);
    let run = w.succeeds("curate run pipeline.toml --json");
    assert_eq!(
        (&run.json()["counts"]["rows"], &run.json()["counts"]["kept"]),
        (&7.into(), &2.into())
    );
    assert_eq!(
        names(&w.path("p")),
        ["1-dedup", "2-overlap", "3-sample", "curate.json", "list.parquet"]
    );
    let list = || fs::read(w.path("p/list.parquet")).expect("written");
    let first = list();
    w.fails(2, "curate run pipeline.toml", &["p", "--force"]);

    let again = w.succeeds("curate run pipeline.toml --resume").stderr;
    assert_eq!(again.matches("done already").count(), 3, "{again}");
    // Killed in the second step: its folder is not there, and neither is the end.
    fs::remove_dir_all(w.path("p/2-overlap")).expect("removed");
    fs::remove_dir_all(w.path("p/3-sample")).expect("removed");
    fs::remove_file(w.path("p/list.parquet")).expect("removed");
    let resumed = w.succeeds("curate run pipeline.toml --resume").stderr;
    assert_eq!(resumed.matches("done already").count(), 1, "{resumed}");
    assert_eq!(list(), first);
    w.write("pipeline.toml", PIPELINE.replace("size = 2", "size = 1"));
    let changed = w.succeeds("curate run pipeline.toml --resume").stderr;
    assert_eq!(changed.matches("done already").count(), 2, "{changed}");
    // Another first step changes the list that the others read.
    w.write(
        "pipeline.toml",
        PIPELINE.replace("\"dedup\"", "\"dedup\"\nthreshold = 1.0"),
    );
    let changed = w.succeeds("curate run pipeline.toml --resume").stderr;
    assert_eq!(changed.matches("done already").count(), 0, "{changed}");

    let refused = |from: &str, to: &str, words: &[&str]| {
        assert!(PIPELINE.contains(from));
        w.write("bad.toml", PIPELINE.replace(from, to).replace("\"p\"", "\"bad\""));
        w.fails(2, "curate run bad.toml", words);
    };
    refused("\"dedup\"", "\"dedupe\"", &["bad.toml", "step 1", "dedupe"]);
    refused("\"dedup\"", "\"dedup\"\nk = \"many\"", &["step 1", "many"]);
    refused("\"dedup\"", "\"dedup\"\nthresh = 1", &["step 1", "thresh"]);
    refused("size = 2", "size = 0", &["step 3", "0"]);
    refused("size = 2\n", "", &["step 3", "size"]);
    refused("seed = 3", "sede = 3", &["sede"]);
    refused("[\"test\"]", "[\"nowhere\"]", &["nowhere"]);
    w.write("bad.toml", "features = \"f\"\nout = \"bad\"\n");
    w.fails(2, "curate run bad.toml", &["[[step]]"]);
    w.fails(2, "curate run none.toml", &["none.toml"]);
}

#[test]
fn input_that_cannot_be_curated_is_refused_in_one_line() {
    let w = Workspace::new();
    pool(&w, "f", &[0, 1, 0]);
    w.features("narrow", &[(None, vec![1.0, 0.0])]);
    w.features("nan", &[(None, vec![f32::NAN, 0.0])]);
    w.write("rows.csv", "row,path,kept\n0,other.png,true\n");
    w.write("none.csv", "row,kept\n0,false\n");
    w.write("no.csv", "path\na.png\n");
    fs::create_dir(w.path("precious")).expect("created");
    let before = names(&w.path(""));
    for (arguments, words) in [
        ("dedup --out o", vec!["--features"]),
        ("dedup --features nowhere --out o", vec!["nowhere"]),
        ("dedup --features f --column nose --out o", vec!["nose", "cls"]),
        ("dedup --features nan --out o", vec!["nan", "NaN"]),
        (
            "dedup --features f --threshold 1.5 --out o",
            vec!["--threshold", "1.5"],
        ),
        ("dedup --features f --k 0 --out o", vec!["k", "0"]),
        (
            "dedup --features f --hash-bits 99 --out o",
            vec!["--hash-bits", "99"],
        ),
        (
            "dedup --features f --pixels hash --out o",
            vec!["--pixels", "--data"],
        ),
        (
            "dedup --features f --keep largest --out o",
            vec!["--keep largest", "--data"],
        ),
        (
            "dedup --features f --data sample:test --out o",
            vec!["sample:test", "0.png"],
        ),
        ("dedup --features f --search slow --out o", vec!["slow", "lists"]),
        (
            "dedup --features f --against narrow --out o",
            vec!["narrow", "8", "2"],
        ),
        (
            "dedup --features f --out precious --force",
            vec!["precious", "curate.json"],
        ),
        (
            "dedup --features f --list rows.csv --out o",
            vec!["rows.csv", "other.png", "0.png"],
        ),
        (
            "dedup --features f --list none.csv --out o",
            vec!["none.csv", "none"],
        ),
        ("dedup --features f --list no.csv --out o", vec!["no.csv", "row"]),
        ("dedup --features f --list gone.csv --out o", vec!["gone.csv"]),
        ("overlap --features f --out o", vec!["--against"]),
        (
            "overlap --features f --against narrow --out o",
            vec!["narrow", "8"],
        ),
        ("sample --features f --out o", vec!["--size"]),
        ("sample --features f --size 0 --out o", vec!["--size", "0"]),
        (
            "sample --features f --size 2 --levels 4 --out o",
            vec!["levels", "4", "3"],
        ),
        (
            "sample --features f --size 2 --levels 2,2 --out o",
            vec!["levels", "[2, 2]"],
        ),
        (
            "sample --features f --size 2 --levels 2 --sample-sizes 1,1 --out o",
            vec!["sample_sizes"],
        ),
        ("retrieve --features f --out o", vec!["--seeds"]),
        (
            "retrieve --features f --seeds narrow --out o",
            vec!["narrow", "8"],
        ),
        (
            "retrieve --features f --seeds f --target 0 --out o",
            vec!["--target"],
        ),
        (
            "retrieve --features f --seeds f --method cluster --clusters 9 --out o",
            vec!["k", "9", "3"],
        ),
        ("quality --out o", vec!["--data"]),
        ("quality --data nowhere --out o", vec!["nowhere"]),
    ] {
        w.fails(2, &format!("curate {arguments}"), &words);
    }
    assert_eq!(names(&w.path("")), before);
    w.succeeds("curate dedup --features f --out o");
    w.fails(2, "curate dedup --features f --out o", &["o", "--force"]);
}
