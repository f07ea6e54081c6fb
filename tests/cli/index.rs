//! Indexes over feature folders: build, query, score, and what is refused.

use std::fs;

use polars::prelude::{ParquetReader, SerReader as _};

use crate::harness::{Workspace, names};

/// A labelled folder of `n` pseudo-random rows, `dim` wide, of values from -1 to 1.
fn scattered(w: &Workspace, name: &str, n: usize, dim: usize, seed: u64) {
    // SplitMix64, so that rows of different seeds are alike in nothing but their distribution.
    let value = |i: usize, j: usize| {
        let mut mixed = (seed << 32 | (i * dim + j) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) >> 40) as f32 / 8_388_608.0 - 1.0
    };
    let rows: Vec<_> = (0..n)
        .map(|i| (Some("x"), (0..dim).map(|j| value(i, j)).collect::<Vec<f32>>()))
        .collect();
    w.features(name, &rows);
}

pub fn hits(w: &Workspace, name: &str) -> Vec<(u64, u64, String)> {
    let table = ParquetReader::new(fs::File::open(w.path(name)).expect("written"))
        .finish()
        .expect("Parquet");
    let numbers = |name: &str| table.column(name).expect("a column").u64().expect("u64").clone();
    let paths = table
        .column("path")
        .expect("a column")
        .str()
        .expect("text")
        .clone();
    let (queries, rows) = (numbers("query"), numbers("row"));
    (0..table.height())
        .map(|i| {
            let path = paths.get(i).expect("a path").to_owned();
            (queries.get(i).expect("a row"), rows.get(i).expect("a row"), path)
        })
        .collect()
}

/// The kinds that this program was built with.
const KINDS: &[&str] = if cfg!(feature = "usearch") {
    &["exact", "hnsw", "usearch"]
} else {
    &["exact", "hnsw"]
};

#[test]
fn every_kind_finds_each_row_itself() {
    let w = Workspace::new();
    scattered(&w, "f", 300, 8, 1);
    scattered(&w, "q", 40, 8, 2);
    for &kind in KINDS {
        let built = w
            .succeeds(&format!(
                "index build --features f --out {kind} --kind {kind} --json"
            ))
            .json();
        assert_eq!(
            (&built["count"], &built["dim"], &built["kind"]),
            (&300.into(), &8.into(), &kind.into())
        );
        w.succeeds(&format!(
            "index query --index {kind} --features f --k 1 --ef 100 --out {kind}.parquet"
        ));
        let found = hits(&w, &format!("{kind}.parquet"));
        assert_eq!(found.len(), 300);
        assert!(
            found
                .iter()
                .all(|(query, row, path)| query == row && *path == format!("{row}.png"))
        );
        w.succeeds(&format!(
            "index query --index {kind} --features q --k 7 --ef 300 --out q-{kind}.parquet"
        ));
        w.fails(
            2,
            &format!("index query --index {kind} --features q --out q-{kind}.parquet"),
            &["--force"],
        );
    }
    for kind in KINDS {
        assert_eq!(
            hits(&w, "q-exact.parquet"),
            hits(&w, &format!("q-{kind}.parquet"))
        );
    }
    assert_eq!(
        names(&w.path("exact")),
        ["manifest.json", "rows.parquet", "vectors.f32"]
    );
    assert_eq!(
        names(&w.path("hnsw")),
        ["links.u32", "manifest.json", "rows.parquet", "vectors.f32"]
    );
}

#[test]
fn recall_chooses_the_width_and_score_measures_it() {
    let w = Workspace::new();
    scattered(&w, "f", 900, 16, 1);
    scattered(&w, "q", 50, 16, 2);
    let build = "index build --features f --kind hnsw --m 8 --ef-construction 40";
    let built = w
        .succeeds(&format!("{build} --out i --recall 0.99 --json"))
        .json();
    assert!(
        built["measured"]["reached"].as_f64().expect("a number") >= 0.99,
        "{built}"
    );
    assert_eq!(built["measured"]["n_queries"], 90);
    let ef = built["ef_search"].as_u64().expect("a width");
    assert!(ef > 16, "more than the first width tried is needed: {built}");
    let scored = w
        .succeeds("index score --index i --features q --ef 10,400 --json")
        .json();
    let rows = scored["rows"].as_array().expect("rows");
    let at = |ef: u64| rows.iter().find(|row| row["ef"] == ef).expect("measured");
    let recall = |ef: u64| at(ef)["recall"].as_f64().expect("a number");
    assert!(recall(400) > 0.99 && recall(10) < recall(400), "{scored}");
    // The width was chosen on rows held back, queries like these; 50 of them and any order of insertion leave some room.
    assert!(recall(ef) >= 0.97 && recall(ef) <= recall(400), "{scored}");
    for key in ["queries_per_second", "build_seconds", "bytes_per_vector"] {
        assert!(at(ef)[key].as_f64().expect("a number") > 0.0, "{key}");
    }
    w.succeeds("index build --features f --out e");
    let exact = w.succeeds("index score --index e --features q --json").json();
    assert_eq!(
        (&exact["rows"][0]["recall"], &exact["rows"][0]["ef"]),
        (&1.0.into(), &().into())
    );
}

#[test]
fn an_index_that_does_not_fit_is_refused_in_one_line() {
    let w = Workspace::new();
    scattered(&w, "f", 60, 8, 1);
    scattered(&w, "wide", 10, 9, 1);
    for &kind in KINDS {
        let build = format!("index build --features f --out {kind} --kind {kind}");
        w.succeeds(&build);
        w.fails(2, &build, &[kind, "--force"]);
        w.succeeds(&format!("{build} --force"));
        let query = format!("index query --index {kind} --features f --k 3 --out o.parquet");
        w.fails(
            2,
            &format!("index query --index {kind} --features wide --out o.parquet"),
            &[kind, "8", "9"],
        );
        w.fails(2, &query.replace("--k 3", "--k 61"), &["k", "61", "60"]);

        let file = match kind {
            "exact" => "vectors.f32",
            "hnsw" => "links.u32",
            _ => "index.usearch",
        };
        let path = w.path(kind).join(file);
        let whole = fs::read(&path).expect("written");
        fs::write(&path, &whole[..whole.len() - 1]).expect("cut");
        w.fails(2, &query, &[file, "bytes"]);
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 1;
        fs::write(&path, &changed).expect("changed");
        w.fails(2, &query, &[file, "SHA-256"]);
        fs::remove_file(&path).expect("removed");
        w.fails(2, &query, &[file]);
        fs::write(&path, &whole).expect("mended");
        w.succeeds(&query);
        fs::remove_file(w.path("o.parquet")).expect("removed");

        let manifest = w.path(kind).join("manifest.json");
        let text = fs::read_to_string(&manifest).expect("written");
        let with = |from: &str, to: &str| {
            assert!(text.contains(from), "{text}");
            fs::write(&manifest, text.replace(from, to)).expect("changed");
        };
        with("\"format_version\": 2", "\"format_version\": 7");
        w.fails(2, &query, &["manifest.json", "format_version", "7"]);
        with("\"dim\": 8", "\"dim\": 9");
        w.fails(2, &query, &[kind, "8", "9"]);
        with("\"count\": 60", "\"count\": 59");
        w.fails(2, &query, &[kind, "59"]);
        with("\"metric\": \"cosine\"", "\"metric\": \"l2\"");
        w.fails(2, &query, &["metric", "l2"]);
        fs::write(&manifest, &text[..text.len() / 2]).expect("cut");
        w.fails(2, &query, &["manifest.json"]);
    }
    w.fails(
        2,
        "index query --index f --features f --out o.parquet",
        &["f", "manifest.json"],
    );
    w.fails(2, "index score --index nowhere --features f", &["nowhere"]);
    let mut left = [&["f", "wide"], KINDS].concat();
    left.sort_unstable();
    assert_eq!(names(&w.path("")), left);
}

#[test]
fn settings_that_make_no_index() {
    let w = Workspace::new();
    scattered(&w, "f", 30, 4, 1);
    w.features("nan", &[(Some("a"), vec![f32::NAN, 0.0])]);
    let build = "index build --features f --out i --kind hnsw";
    w.fails(2, &format!("{build} --m 1"), &["m", "1"]);
    w.fails(2, &format!("{build} --m 300"), &["m", "300"]);
    w.fails(
        2,
        &format!("{build} --ef-construction 3"),
        &["ef_construction", "3"],
    );
    w.fails(2, &format!("{build} --recall 2"), &["recall", "2"]);
    w.fails(2, "index build --features f --out i --recall 0.9", &["exact"]);
    w.fails(
        2,
        &format!("{build} --scalar i8"),
        &["--scalar", "hnsw", "i8", "usearch"],
    );
    w.fails(2, &format!("{build} --scalar f8"), &["--scalar", "f8", "f16"]);
    w.fails(2, &format!("{build} --column nose"), &["nose", "cls"]);
    w.fails(2, "index build --features nan --out i", &["NaN"]);
    fs::create_dir(w.path("precious")).expect("created");
    w.fails(
        2,
        "index build --features f --out precious --force",
        &["precious", "no index"],
    );
    assert_eq!(names(&w.path("")), ["f", "nan", "precious"]);
}

/// Whoever meets an index that another program built is told how to build one that reads it.
#[cfg(not(feature = "usearch"))]
#[test]
fn a_program_without_usearch_says_how_to_build_one_with_it() {
    let w = Workspace::new();
    scattered(&w, "f", 30, 4, 1);
    let how = "cargo install --path . --locked --features usearch";
    let build = "index build --features f --out i";
    w.fails(
        2,
        &format!("{build} --kind usearch"),
        &["kind", "found usearch", how],
    );
    w.succeeds(build);
    let manifest = w.path("i").join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("written");
    let other = text.replace("\"kind\": \"exact\"", "\"kind\": \"usearch\"");
    fs::write(&manifest, other).expect("changed");
    let told = ["manifest.json", "kind", "found usearch", how];
    w.fails(2, "index query --index i --features f --out o.parquet", &told);
    w.fails(2, "index score --index i --features f", &told);
    assert_eq!(names(&w.path("")), ["f", "i"]);
}

#[cfg(feature = "usearch")]
#[test]
fn a_usearch_file_is_mapped_whatever_it_stores() {
    let w = Workspace::new();
    scattered(&w, "f", 600, 16, 1);
    scattered(&w, "q", 40, 16, 2);
    for (scalar, bytes) in [("f32", 64.0), ("f16", 32.0), ("i8", 16.0)] {
        let build = format!("index build --features f --kind usearch --scalar {scalar} --out {scalar}");
        let built = w.succeeds(&format!("{build} --recall 0.95 --m 8 --json")).json();
        assert_eq!(
            (&built["scalar"], &built["parameters"]["m"]),
            (&scalar.into(), &8.into())
        );
        assert!(
            built["measured"]["reached"].as_f64().expect("a number") >= 0.95,
            "{built}"
        );
        assert_eq!(
            names(&w.path(scalar)),
            ["index.usearch", "manifest.json", "rows.parquet"]
        );
        let scored = w
            .succeeds(&format!("index score --index {scalar} --features q --json"))
            .json();
        let rows = scored["rows"].as_array().expect("rows");
        let widest = rows.last().expect("a width");
        assert!(widest["recall"].as_f64().expect("a number") > 0.99, "{scored}");
        let size = widest["bytes_per_vector"].as_f64().expect("a number");
        assert!((bytes + 50.0..bytes + 120.0).contains(&size), "{size}");
    }
    // Another type than the manifest's, with the checksum that belongs to it.
    let path = w.path("f16").join("manifest.json");
    let text = fs::read_to_string(&path).expect("written");
    fs::write(&path, text.replace("\"scalar\": \"f16\"", "\"scalar\": \"i8\"")).expect("changed");
    w.fails(
        2,
        "index query --index f16 --features q --out o.parquet",
        &["index.usearch", "bytes of a vector", "16", "32"],
    );
}
