use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::results::RESULT_FILE;

/// Results on disk, and what a report says of them.
struct Results {
    folder: tempfile::TempDir,
}

impl Results {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Keeps a result as `eval` would.
    fn keep(&self, name: &str, task: &str, model: &str, rows: Value) -> PathBuf {
        let settings = json!({
            "model": { "kind": "onnx", "file": format!("{model}.onnx"), "sha256": format!("{model}-hash") },
            "column": "cls",
            "temperature": 0.07,
            "test_source": { "kind": "sample", "split": "test", "sha256": "images" },
        });
        self.write(name, &json!({ "task": task, "settings": settings, "n_train": 60, "n_test": 40, "rows": rows, "version": 1 }))
    }

    fn write(&self, name: &str, value: &Value) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(RESULT_FILE), value.to_string()).unwrap();
        path
    }

    fn report(&self, options: &ReportOptions) -> Result<Report> {
        Report::build(&[self.folder.path().display().to_string()], options)
    }

    fn error(&self) -> String {
        let error = self.report(&ReportOptions::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error
            .to_string()
            .replace(&self.folder.path().display().to_string(), "DIR")
    }
}

fn knn(rows: &[(u64, f64, f64, f64)]) -> Value {
    let row = |&(k, top1, low, high): &(u64, f64, f64, f64)| json!({ "k": k, "top1": top1, "top1_low": low, "top1_high": high });
    rows.iter().map(row).collect()
}

fn retrieval(value: f64, low: f64, high: f64) -> Value {
    json!([
        { "metric": "mAP", "value": value, "low": low, "high": high },
        { "metric": "GAP", "value": 0.1, "low": null, "high": null },
    ])
}

/// Two models, three measures, one hole.
fn two_models() -> Results {
    let results = Results::new();
    results.keep(
        "a/knn",
        "knn",
        "base_50%",
        knn(&[(10, 0.5, 0.45, 0.55), (20, 0.6, 0.55, 0.65)]),
    );
    results.keep("a/retrieval", "retrieval", "base_50%", retrieval(0.3, 0.2, 0.4));
    results.keep("b/knn", "knn", "mine", knn(&[(20, 0.7, 0.66, 0.74)]));
    results.keep("b/retrieval", "retrieval", "mine", retrieval(0.25, 0.15, 0.35));
    results.keep(
        "b/cluster",
        "cluster",
        "mine",
        json!([{ "k": 2, "nmi": 0.4, "ari": 0.1, "accuracy": 0.9 }]),
    );
    results
}

fn with_baseline(name: &str) -> ReportOptions {
    ReportOptions {
        baseline: Some(name.to_owned()),
        ..ReportOptions::default()
    }
}

#[test]
fn tables_for_people() {
    let report = two_models().report(&ReportOptions::default()).unwrap();
    insta::assert_snapshot!(report.to_text(), @r"
    model      k-NN, k = 20      retrieval  k-means, k = 2  k-means, k = 2
                      top-1            mAP             NMI        accuracy
    ────────  ─────────────  ─────────────  ──────────────  ──────────────
    base_50%         0.6000        0.3000*               –               –
              0.5500–0.6500  0.2000–0.4000
    mine            0.7000*         0.2500          0.4000          0.9000
              0.6600–0.7400  0.1500–0.3500
    ");
    insta::assert_snapshot!(report.to_markdown(), @r"
    | model | k-NN, k = 20 top-1 | retrieval mAP | k-means, k = 2 NMI | k-means, k = 2 accuracy |
    | --- | --: | --: | --: | --: |
    | base\_50% | 0.6000 [0.5500–0.6500] | **0.3000** [0.2000–0.4000] | – | – |
    | mine | **0.7000** [0.6600–0.7400] | 0.2500 [0.1500–0.3500] | 0.4000 | 0.9000 |

    95 % intervals in brackets; the best of each column in bold.
    ");
    insta::assert_snapshot!(report.to_latex(), @r"
    % needs \usepackage{booktabs}
    \begin{tabular}{lrrrr}
    \toprule
    model & k-NN, k = 20 & retrieval & k-means, k = 2 & k-means, k = 2 \\
     & top-1 & mAP & NMI & accuracy \\
    \midrule
    base\_50\% & 0.6000 {\scriptsize [0.5500--0.6500]} & \textbf{0.3000} {\scriptsize [0.2000--0.4000]} & -- & -- \\
    mine & \textbf{0.7000} {\scriptsize [0.6600--0.7400]} & 0.2500 {\scriptsize [0.1500--0.3500]} & 0.4000 & 0.9000 \\
    \bottomrule
    \end{tabular}
    ");
}

#[test]
fn differences_without_predictions_are_by_intervals() {
    let report = two_models().report(&with_baseline("base_50%")).unwrap();
    let markdown = report.to_markdown();
    let (_, differences) = markdown.split_once("## Difference from base\\_50%").unwrap();
    assert!(
        differences.contains(
            "| mine | k-NN, k = 20 top-1 | +0.1000 | intervals only |  | ▲ better, intervals apart |"
        ),
        "{markdown}"
    );
    assert!(
        differences.contains("| mine | retrieval mAP | −0.0500 | intervals only |  | ≈ intervals overlap |"),
        "{markdown}"
    );
    let error = two_models().report(&with_baseline("other")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "baseline: expected one of base_50%, mine, found `other`"
    );
}

#[test]
fn tables_for_programs() {
    let report = two_models().report(&with_baseline("mine")).unwrap();
    let csv = report.to_csv().unwrap();
    assert!(
        csv.starts_with("model,\"k-NN, k = 20 top-1\",\"k-NN, k = 20 top-1 low\",\"k-NN, k = 20 top-1 high\",\"k-NN, k = 20 top-1 difference\""),
        "{csv}"
    );
    assert_eq!(csv.lines().count(), 3);
    let json = report.to_json().unwrap();
    assert_eq!(
        (&json["task"], &json["settings"]["baseline"]),
        (&json!("report"), &json!("mine"))
    );
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    let row = &rows[0];
    assert_eq!(
        (&row["model"], &row["value"], &row["best"]),
        (&json!("base_50%"), &json!(0.6), &json!(false))
    );
    assert_eq!(
        (&row["verdict"], &row["n_test"]),
        (&json!("worse, intervals apart"), &json!(40))
    );
    assert_eq!(
        row["compared_by"],
        "intervals only: predictions were not kept by both"
    );
    assert_eq!(rows[2]["difference"], Value::Null, "the baseline itself");

    let out = tempfile::tempdir().unwrap();
    report.save(&out.path().join("new/folder")).unwrap();
    let mut names: Vec<String> = fs::read_dir(out.path().join("new/folder"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "report.csv",
            "report.html",
            "report.json",
            "report.md",
            "report.parquet",
            "report.tex"
        ]
    );
}

/// Text that would be an element of the page if anything let it through, with a number to find it by.
fn hostile(number: usize) -> String {
    format!("\"'><img src=x onerror=H{number}H>&")
}

/// Whatever a user's files may hold is text on the page: names of models, files and folders, settings, sources, labels, metrics,
/// pictures, the title.
#[test]
fn nothing_that_a_result_holds_becomes_an_element() {
    let results = two_models();
    let folder = format!("c{}", hostile(0));
    let model = hostile(1);
    let settings = json!({
        "model": { "kind": "onnx", "file": format!("{model}.onnx"), "sha256": hostile(2) },
        "column": hostile(3),
        "temperature": hostile(4),
        "test_source": { "kind": "list", "path": hostile(5), "split": hostile(6) },
        hostile(7): [hostile(8), { hostile(9): hostile(10) }],
    });
    let rows = knn(&[(20, 0.1, 0.05, 0.15)]);
    let result = json!({ "task": "knn", "settings": settings, "n_train": 60, "n_test": 40, "rows": rows, "version": 1 });
    let path = results.write(&folder, &result);
    let quoted = |number| format!("\"{}\"", hostile(number).replace('"', "\"\""));
    fs::write(
        path.join("confusion-k20.csv"),
        format!(
            "label,{a},{b}\n{a},18,2\n{b},1,19\n",
            a = quoted(11),
            b = quoted(12)
        ),
    )
    .unwrap();
    let picture = results.folder.path().join(format!("{}.png", hostile(13)));
    image::RgbImage::new(2, 2).save(&picture).unwrap();
    let html = results
        .report(&ReportOptions {
            title: Some(hostile(14)),
            pictures: vec![picture],
            ..with_baseline(&model)
        })
        .unwrap()
        .to_html();
    assert!(!html.contains("<img src=x"), "an element of a user's");
    for number in 0..15 {
        let escaped = [
            ("&", "&amp;"),
            ("<", "&lt;"),
            (">", "&gt;"),
            ("\"", "&quot;"),
            ("'", "&#39;"),
        ]
        .iter()
        .fold(hostile(number), |text, (raw, safe)| text.replace(raw, safe));
        let raw = html.matches(&format!("onerror=H{number}H")).count();
        // Long names may be broken anywhere; what stands whole is escaped.
        assert!(!html.contains(&hostile(number)), "{number}");
        let shown = html.contains(&escaped);
        assert!(shown || raw == 0 || html.contains("<wbr>"), "{number}");
        if [1, 3, 11, 12, 13, 14].contains(&number) {
            assert!(raw > 0, "{number} is not on the page: the test looks at nothing");
        }
    }
    let open: usize = tags(&html).iter().filter(|tag| tag.starts_with("img")).count();
    assert_eq!(open, 1, "the picture alone");
}

/// The attributes and text of a page's elements, as far as a page of ours goes: no raw `<` or `>` within quotes.
fn tags(html: &str) -> Vec<&str> {
    html.split('<')
        .skip(1)
        .filter_map(|part| part.split('>').next())
        .collect()
}

#[test]
fn the_page_is_whole_and_needs_no_network() {
    let results = two_models();
    results.keep(
        "c/knn",
        "knn",
        "<script>alert('x')</script>",
        knn(&[(20, 0.1, 0.05, 0.15)]),
    );
    fs::write(
        results.folder.path().join("b/knn/confusion-k20.csv"),
        "label,cat,dog\ncat,18,2\ndog,1,19\n",
    )
    .unwrap();
    let picture = results.folder.path().join("map.png");
    image::RgbImage::new(2, 2).save(&picture).unwrap();
    let options = ReportOptions {
        title: Some("A & B".to_owned()),
        pictures: vec![picture],
        ..with_baseline("mine")
    };
    let html = results.report(&options).unwrap().to_html();
    // Every tag that is opened is closed, in order.
    let mut open: Vec<String> = Vec::new();
    for tag in tags(html.split("<style>").next().unwrap())
        .into_iter()
        .chain(tags(&after_style(&html)))
    {
        let name: String = tag
            .trim_start_matches('/')
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric())
            .collect();
        if tag.starts_with('!') || tag.ends_with('/') || ["meta", "br", "img", "wbr"].contains(&name.as_str())
        {
            continue;
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name.as_str()), "{tag}");
        } else {
            open.push(name);
        }
    }
    assert_eq!(open, [] as [&str; 0]);
    // Names are text, nothing is fetched.
    assert!(!html.contains("<script>alert"));
    assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert!(html.contains("<title>A &amp; B</title>"));
    assert!(html.contains("default-src 'none'"));
    let body = html.replace("data:image/png;base64,", "");
    for outside in ["http://", "https://", "src=\"/", "url(", "@import", "<link"] {
        assert!(!body.contains(outside), "{outside}");
    }
    // Three models, four measures with a chart each, one of them with intervals for all.
    assert_eq!(
        html.matches("<svg").count(),
        4 + 1,
        "charts and a confusion matrix"
    );
    assert_eq!(html.matches("class=\"range\"").count(), 3 + 2);
    assert_eq!(html.matches("data-value=\"0.7\"").count(), 1);
    assert!(html.contains("<tr class=\"baseline\"><th scope=\"row\" data-value=\"mine\">"));
    assert!(html.contains("cat taken for dog: 2"));
    assert!(html.contains("name=\"viewport\""));
}

fn after_style(html: &str) -> String {
    let (_, rest) = html.split_once("</style>").unwrap();
    let (body, _) = rest.split_once("<script>\n").unwrap();
    // The opening tags that the two cuts left open: head, and style and script themselves are closed by hand.
    format!("{body}</body></html>")
}

#[test]
fn models_are_told_apart() {
    let results = Results::new();
    let keep = |name: &str, model: Value, column: &str, top1: f64| {
        let settings = json!({ "model": model, "column": column });
        results.write(
            name,
            &json!({ "task": "logreg", "settings": settings, "n_train": 9, "n_test": 5, "rows": [{ "top1": top1 }] }),
        )
    };
    let onnx = |file: &str, sha256: &str| json!({ "kind": "onnx", "file": file, "sha256": sha256 });
    keep("1", onnx("teacher.onnx", "aaaaaaaa"), "cls", 0.1);
    keep("2", onnx("teacher.onnx", "bbbbbbbb"), "cls", 0.2);
    keep("3", onnx("student.onnx", "cccc"), "cls,patch_mean", 0.3);
    keep("4", onnx("student.onnx", "cccc"), "patch_mean", 0.4);
    keep("5", onnx("student.safetensors", "dddd"), "cls", 0.5);
    keep("6", json!({ "kind": "pixels" }), "pixels", 0.6);
    // The same once more, from elsewhere.
    keep("7", json!({ "kind": "pixels" }), "pixels", 0.6);
    let report = results.report(&ReportOptions::default()).unwrap();
    assert_eq!(
        report.table().models,
        [
            "teacher.onnx (aaaaaa)",
            "teacher.onnx (bbbbbb)",
            "student.onnx · cls",
            "student.onnx · patch_mean",
            "student.safetensors",
            "pixels"
        ]
    );
    let path = |name: &str| results.folder.path().join(name).display().to_string();
    let named = [
        format!("old={}", path("1")),
        format!("new={}", path("2")),
        path("1"),
    ];
    let report = Report::build(&named, &ReportOptions::default()).unwrap();
    assert_eq!(report.table().models, ["old", "new"]);
}

#[test]
fn other_images_are_another_column_and_other_settings_a_note() {
    let results = Results::new();
    let keep = |name: &str, model: &str, split: &str, temperature: f64, n_test: u64| {
        let settings = json!({
            "model": { "kind": model }, "temperature": temperature,
            "test_source": { "kind": "idx", "path": format!("{name}/digits"), "split": split, "sha256": split },
        });
        results.write(
            name,
            &json!({ "task": "knn", "settings": settings, "n_train": 9, "n_test": n_test, "rows": knn(&[(5, 0.5, 0.4, 0.6)]) }),
        );
    };
    keep("1", "a", "test", 0.07, 50);
    keep("2", "b", "test", 0.1, 50);
    keep("3", "b", "train", 0.07, 50);
    keep("4", "c", "test", 0.07, 48);
    let report = results.report(&ReportOptions::default()).unwrap();
    let titles: Vec<String> = report.table().columns.iter().map(Column::title).collect();
    assert_eq!(
        titles,
        [
            "k-NN, k = 5 on digits#test top-1",
            "k-NN, k = 5 on digits#train top-1"
        ]
    );
    assert_eq!(
        report.notes(),
        [
            "k-NN, k = 5 on digits#test: a and b were evaluated with different temperature",
            "k-NN, k = 5 on digits#test: a and c have different rows: 9 and 9 train, 50 and 48 test",
        ]
    );
}

#[test]
fn the_k_that_all_have_is_shown() {
    let results = Results::new();
    results.keep(
        "1",
        "knn",
        "a",
        knn(&[(5, 0.5, 0.4, 0.6), (10, 0.6, 0.5, 0.7), (20, 0.7, 0.6, 0.8)]),
    );
    results.keep("2", "knn", "b", knn(&[(10, 0.61, 0.5, 0.7), (5, 0.51, 0.4, 0.6)]));
    let few = json!([{ "k": 5, "top1": 0.3, "n_per_class": 5, "n_tries": 2 }]);
    results.keep("3", "knn", "a", few);
    let title = |k| {
        let options = ReportOptions {
            k,
            ..ReportOptions::default()
        };
        results
            .report(&options)
            .map(|report| report.table().columns[0].title())
    };
    assert_eq!(title(None).unwrap(), "k-NN, k = 5 top-1");
    assert_eq!(title(Some(10)).unwrap(), "k-NN, k = 10 top-1");
    // Few-shot draws have their own, whatever is asked for.
    let options = ReportOptions {
        k: Some(10),
        ..ReportOptions::default()
    };
    let report = results.report(&options).unwrap();
    assert_eq!(
        report.table().columns[1].title(),
        "k-NN, k = 5, 5 per class top-1"
    );
    let error = title(Some(20)).unwrap_err().to_string();
    assert!(
        error.contains("2/result.json") && error.contains("k = 20 (--k), found [10, 5]"),
        "{error}"
    );
}

#[test]
fn dense_heads_of_two_protocols_are_not_compared_in_silence() {
    let results = Results::new();
    let keep = |name: &str, model: &str, protocol: &str, crop: &str| {
        let settings = json!({
            "model": { "kind": model }, "protocol": protocol, "eval_crop": crop,
            "test_source": { "kind": "layout", "path": "nyu:n#test", "sha256": "test" },
        });
        let rows = json!([{ "rmse": 0.5, "abs_rel": 0.1, "delta1": 0.9 }]);
        let value = json!({ "task": "depth", "settings": settings, "n_train": 9, "n_test": 5, "rows": rows });
        results.write(name, &value);
    };
    keep("1", "a", "fast", "eigen");
    keep("2", "b", "paper", "eigen");
    keep("3", "c", "fast", "none");
    let report = results.report(&ReportOptions::default()).unwrap();
    let notes = report.notes().join("\n");
    assert!(
        notes.contains("a and b were evaluated with different protocol"),
        "{notes}"
    );
    assert!(
        notes.contains("a and c were evaluated with different eval_crop"),
        "{notes}"
    );
}

#[test]
fn less_is_better_where_it_is_an_error() {
    let results = Results::new();
    let depth = |rmse: f64| json!([{ "rmse": rmse, "abs_rel": 0.1, "delta1": 0.9 }]);
    results.keep("1", "depth", "a", depth(0.5));
    results.keep("2", "depth", "b", depth(0.4));
    results.keep(
        "3",
        "segment",
        "a",
        json!([{ "class": "sky", "iou": 0.9 }, { "class": "mean", "iou": 0.6 }]),
    );
    let report = results.report(&with_baseline("a")).unwrap();
    let table = report.table();
    assert_eq!(table.columns[0].title(), "segmentation mIoU");
    let rmse = table
        .columns
        .iter()
        .position(|column| column.metric == "RMSE")
        .unwrap();
    let best: Vec<bool> = table.column(rmse).map(|cell| cell.unwrap().best).collect();
    assert_eq!(best, [false, true]);
    // Without intervals nothing can be said.
    assert_eq!(
        table.cells[1][rmse]
            .as_ref()
            .unwrap()
            .difference
            .as_ref()
            .unwrap()
            .verdict,
        Verdict::Unknown
    );
}

#[test]
fn what_is_no_result_is_named() {
    let of = |value: Value| {
        let results = Results::new();
        results.write("r", &value);
        results.error()
    };
    assert!(of(json!([1])).starts_with(
        "DIR/r/result.json: not a result of `macula eval`: field `task`: expected text, found nothing"
    ));
    let whole = json!({ "task": "knn", "settings": {}, "n_train": 1, "n_test": 1, "rows": [{ "k": 1, "top1": 0.5 }] });
    let with = |field: &str, value: Value| {
        let mut changed = whole.clone();
        changed[field] = value;
        of(changed)
    };
    assert!(with("rows", json!([])).contains("field `rows`: expected at least one row"));
    assert!(with("rows", json!([1])).contains("field `rows`: expected a list of objects, found a number"));
    assert!(with("rows", json!([{ "k": 1, "top1": null }])).contains("expected a number in top1"));
    assert!(with("settings", json!(3)).contains("field `settings`: expected an object, found a number"));
    assert!(with("n_test", json!(-1)).contains("field `n_test`: expected a whole number"));
    assert!(with("version", json!(99)).contains("expected version up to 1, found 99"));
    assert!(with("task", json!("compare")).contains("task `compare` has no place"));
    let empty = Results::new();
    assert!(
        empty
            .error()
            .contains("expected result.json in this folder or below it, found none")
    );
}

#[test]
fn two_results_that_differ_are_both_named() {
    let results = Results::new();
    results.keep("1", "knn", "a", knn(&[(20, 0.5, 0.4, 0.6)]));
    results.keep("2", "knn", "a", knn(&[(20, 0.6, 0.5, 0.7)]));
    assert_eq!(
        results.error(),
        "DIR/2/result.json: model `a`, k-NN, k = 20 top-1: expected what DIR/1/result.json says, 0.5 (0.4 to 0.6), \
         found 0.6 (0.5 to 0.7); name one of them: NAME=DIR/2"
    );
    let path = |name: &str| results.folder.path().join(name).display().to_string();
    let specs = [path("1"), format!("again={}", path("2"))];
    assert_eq!(
        Report::build(&specs, &ReportOptions::default())
            .unwrap()
            .table()
            .models,
        ["a", "again"]
    );
    assert!(Path::new(&path("1")).exists());
}

#[test]
fn images_are_told_by_their_fingerprints_where_results_have_them() {
    let keep = |results: &Results, model: &str, samples: Option<&str>, background: Value| {
        let source = json!({ "images": 40, "bytes": 400, "labels": "l", "names": "n", "sizes": "s", "samples": samples });
        let made = json!({ "model": {}, "preprocess": { "resize": 256, "decode": { "background": background } }, "source": source });
        let mut settings = json!({
            "model": { "kind": "onnx", "file": format!("{model}.onnx"), "sha256": model },
            "column": "cls",
            "test_source": { "kind": "folder", "path": "photos/test", "images": 40 },
        });
        if samples.is_some() {
            settings["test_fingerprint"] = made;
        }
        let rows = knn(&[(20, 0.5, 0.4, 0.6)]);
        let value = json!({ "task": "knn", "settings": settings, "n_train": 60, "n_test": 40, "rows": rows, "version": 1 });
        results.write(model, &value);
    };
    let columns_and_notes = |results: &Results| {
        let report = results.report(&ReportOptions::default()).unwrap();
        let data: Vec<String> = report
            .table()
            .columns
            .iter()
            .map(|column| column.data.clone())
            .collect();
        (data, report.notes().to_vec())
    };

    // Replaced in place: two columns, and a word about it.
    let results = Results::new();
    keep(&results, "a", Some("one"), Value::Null);
    keep(&results, "b", Some("two"), Value::Null);
    let (data, notes) = columns_and_notes(&results);
    assert!(data.iter().any(|label| *label != data[0]), "{data:?}");
    let note = "speak of different test images (source.samples one and two)";
    assert!(notes.len() == 1 && notes[0].contains(note), "{notes:?}");

    // A result without a fingerprint belongs to those that say the same of their sources.
    let results = Results::new();
    keep(&results, "a", Some("one"), Value::Null);
    keep(&results, "b", None, Value::Null);
    let (data, notes) = columns_and_notes(&results);
    assert!(
        data.iter().all(|label| *label == data[0]) && notes.is_empty(),
        "{data:?} {notes:?}"
    );

    // The same images, read differently.
    let results = Results::new();
    keep(&results, "a", Some("one"), Value::Null);
    keep(&results, "b", Some("one"), json!([255, 255, 255]));
    let (data, notes) = columns_and_notes(&results);
    assert!(data.iter().all(|label| *label == data[0]), "{data:?}");
    let note = "read their images differently (decode.background none and [255,255,255])";
    assert!(notes.len() == 1 && notes[0].contains(note), "{notes:?}");
}
