//! A suite: planned, computed cell by cell, gone on with, refused.

use std::fs;
use std::time::SystemTime;

use crate::harness::Workspace;

const SUITE: &str = "
    [models.pixels]
    model = 'pixels'
    resize = 8
    crop = 8
    [models.hog]
    model = 'hog'
    [data.sample]
    train = 'sample:train'
    test = 'sample:test'
    [tasks.knn]
    k = [5, 10]
    bootstrap_resamples = 20
    [tasks.clusters]
    protocol = 'cluster'
    bootstrap_resamples = 20
    [report]
    title = 'Two floors'
";

fn changed(w: &Workspace, name: &str) -> SystemTime {
    let file = fs::metadata(w.path(name)).expect("a file");
    file.modified().expect("a time")
}

#[test]
fn a_suite_is_computed_once_and_goes_on() {
    let w = Workspace::new();
    w.write("suite.toml", SUITE);
    let run = "eval suite suite.toml --out s --threads 1";
    let planned = w.succeeds(&format!("{run} --dry-run")).stdout;
    assert_eq!(planned.lines().count(), 2 * 4 + 1, "{planned}");
    assert!(
        planned.contains("macula extract --model=pixels --crop=8 --resize=8 --data=sample:test"),
        "{planned}"
    );
    assert!(!w.path("s").exists());
    w.succeeds(run);
    let knn = |model: &str| format!("s/results/{model}/sample/knn/result.json");
    let before = [changed(&w, &knn("pixels")), changed(&w, &knn("hog"))];
    let report = fs::read_to_string(w.path("s/report/report.md")).expect("written");
    for word in ["pixels", "hog", "k-NN, k = 5", "k-means"] {
        assert!(report.contains(word), "{word}: {report}");
    }
    let page = fs::read_to_string(w.path("s/report/report.html")).expect("written");
    assert!(page.contains("Two floors"));
    // A result that is gone, and a task of another command, are computed again; nothing else is.
    fs::remove_dir_all(w.path("s/results/hog/sample/knn")).expect("removed");
    fs::remove_dir_all(w.path("s/report")).expect("removed");
    w.write(
        "suite.toml",
        SUITE.replace("protocol = 'cluster'", "protocol = 'cluster'\niterations = 7"),
    );
    let clusters = "s/results/pixels/sample/clusters/result.json";
    let before_clusters = changed(&w, clusters);
    let log = w.succeeds(run).stderr;
    assert_eq!(changed(&w, &knn("pixels")), before[0]);
    assert_ne!(changed(&w, &knn("hog")), before[1]);
    assert_ne!(changed(&w, clusters), before_clusters);
    assert!(
        log.contains("hog, sample, knn") && !log.contains("pixels, sample, knn"),
        "{log}"
    );
    assert!(w.path("s/report/report.html").exists());
}

#[test]
fn a_cell_that_fails_leaves_the_others() {
    let w = Workspace::new();
    w.write(
        "suite.toml",
        SUITE.replace("protocol = 'cluster'", "protocol = 'cluster'\nk = 1_000_000"),
    );
    let run = "eval suite suite.toml --out s --threads 1";
    let words = [
        "2 of 8 cells failed",
        "hog, sample, clusters; pixels, sample, clusters",
    ];
    let printed = w.fails_in_part(1, run, &words).stdout;
    assert!(printed.contains("k-NN"), "{printed}");
    let report = fs::read_to_string(w.path("s/report/report.md")).expect("written");
    assert!(report.contains("k-NN") && !report.contains("k-means"), "{report}");
}

#[test]
fn what_is_no_suite_is_refused_before_anything_runs() {
    let w = Workspace::new();
    let refused = |text: String, words: &[&str]| {
        w.write("suite.toml", text);
        w.fails(2, "eval suite suite.toml --out s", words);
        assert!(!w.path("s").exists());
    };
    refused(SUITE.replace("[report]", "[reports]"), &["suite.toml", "reports"]);
    refused(
        SUITE.replace("k = [5, 10]", "kk = 5"),
        &["hog, sample, knn", "--kk"],
    );
    refused(
        SUITE.replace("[models.hog]", "[models.'../up']"),
        &["models.../up"],
    );
    refused(
        SUITE.replace("'cluster'", "'clusters'"),
        &["tasks.clusters.protocol", "clusters"],
    );
    refused(
        SUITE.replace("model = 'hog'", "model = 'hog'\ntext.samples = 't.parquet'"),
        &["models.hog.text", "sample", "samples"],
    );
    refused(
        SUITE.replace("[data.sample]", "[data.sample]\ntasks = ['kmeans']"),
        &["data.sample.tasks", "kmeans"],
    );
    refused(
        SUITE.replace("test = 'sample:test'", ""),
        &["tasks.clusters", "no data set"],
    );
    w.fails(2, "eval suite nowhere.toml --out s", &["nowhere.toml"]);
}

/// Every flag of the suite that comes with macula is one.
#[test]
fn the_shipped_suite_makes_a_plan() {
    let w = Workspace::new();
    let suite = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/suites/against-openclip.toml");
    let planned = w
        .succeeds(&format!("eval suite {suite} --out s --dry-run"))
        .stdout;
    // Eight models: features of six parts, eight tasks; two of them have texts.
    assert_eq!(planned.lines().count(), 8 * (6 + 8) + 2 + 1, "{planned}");
}
