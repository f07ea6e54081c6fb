//! What holds for the files of the repository themselves: fixtures are the listed ones, kernels add without atomics, numbers in
//! documents stand beside the commands that print them, and pixels become network input in one place.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    let path = root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every file below a folder of the repository, as a path from its root.
fn files_below(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => open.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    found
}

const FIXTURES: [&str; 3] = ["tests/fixtures", "models/tests/fixtures", "eval/tests/fixtures"];
const LIST: &str = "tests/fixtures/made.tsv";

/// Scripts and what they tell, and what Python leaves beside them, are no fixtures.
fn is_fixture(path: &str) -> bool {
    let is_source = [".py", ".pyc", ".md"].iter().any(|end| path.ends_with(end));
    !is_source && path != LIST && !path.starts_with("tests/fixtures/make/")
}

#[test]
fn every_fixture_is_listed_with_its_hash_and_what_makes_it() {
    let list = read(LIST);
    let mut lines = list.lines();
    assert_eq!(
        lines.next(),
        Some("sha256\tfile\tmade by\tthe last run of it gave")
    );
    let mut listed = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let [hash, file, script, outcome] = fields[..] else {
            panic!("{LIST}: expected four columns, found `{line}`");
        };
        assert!(
            root().join(script).is_file(),
            "{file}: no script or text {script}"
        );
        let outcomes = ["the same bytes", "the same values", "inputs, kept", "not run"];
        assert!(outcomes.contains(&outcome), "{file}: `{outcome}`");
        assert!(
            listed.insert(file.to_owned(), hash.to_owned()).is_none(),
            "{file}: twice"
        );
    }
    let mut wrong = Vec::new();
    for file in FIXTURES.iter().flat_map(|folder| files_below(folder)) {
        if !is_fixture(&file) {
            continue;
        }
        let hash = Sha256::digest(fs::read(root().join(&file)).unwrap());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        match listed.remove(&file) {
            None => wrong.push(format!("{file}: not in {LIST}; its hash is {hash}")),
            Some(listed) if listed != hash => wrong.push(format!("{file}: expected {listed}, found {hash}")),
            Some(_) => {}
        }
    }
    wrong.extend(
        listed
            .keys()
            .map(|file| format!("{file}: in {LIST}, and not there")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A source without its `//` comments.
fn code(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// Atomic additions would make sums depend on which block is first. `atomicAdd` and its kin, `atom` and `red` in assembly, and
/// the library's atomics.
fn adds_atomically(code: &str) -> bool {
    let words = code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'));
    words.into_iter().any(|word| {
        ["atomic", "atom.", "red."]
            .iter()
            .any(|start| word.starts_with(start))
            || word.contains("atomic_")
    })
}

#[test]
fn kernels_add_without_atomics() {
    let kernels = files_below("models/src/ops/cuda");
    let kernels: Vec<&String> = kernels
        .iter()
        .filter(|file| file.ends_with(".cu") || file.ends_with(".cuh"))
        .collect();
    assert!(kernels.len() >= 12, "{kernels:?}");
    for file in kernels {
        let code = code(&read(file));
        assert!(
            code.contains('{') && !adds_atomically(&code),
            "{file}: an atomic operation"
        );
    }
    for wrong in [
        "atomicAdd(&sum, x);",
        "asm(\"red.global.add.f32 [%0], %1;\" ::);",
        "cuda::atomic_ref<float> sum(x);",
        "old = atomicCAS(p, a, b);",
    ] {
        assert!(adds_atomically(wrong), "{wrong}");
    }
}

/// A tensor made of the host's numbers by candle is one copy however long it is, which the host then waits for.
#[test]
fn operations_copy_to_a_gpu_through_upload_alone() {
    let sources = files_below("models/src/ops/cuda");
    let sources: Vec<&String> = sources.iter().filter(|file| file.ends_with(".rs")).collect();
    assert!(sources.len() >= 18, "{sources:?}");
    for file in sources {
        let code = code(&read(file));
        let code = code.split("#[cfg(test)]").next().unwrap();
        for made in ["Tensor::new(", "::from_vec(", "::from_slice(", "::from_iter("] {
            assert!(!code.contains(made), "{file}: {made}..)");
        }
    }
}

/// The text of a document by its headings.
fn sections(text: &str) -> Vec<(String, Vec<&str>)> {
    let mut sections = vec![("its beginning".to_owned(), Vec::new())];
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        if line.starts_with('#') && !fenced {
            sections.push((line.trim_start_matches(['#', ' ']).to_owned(), Vec::new()));
        }
        sections.last_mut().unwrap().1.push(line);
    }
    sections
}

/// Whether somewhere in code, fenced or inline, a command stands that prints numbers: macula, cargo, or a script of benchmarks.
fn names_a_command(lines: &[&str]) -> bool {
    let text = lines.join("\n");
    let code = text.split('`').skip(1).step_by(2).chain(
        text.split("```")
            .skip(1)
            .step_by(2)
            .flat_map(|block| block.lines()),
    );
    code.map(str::trim).any(|code| {
        let words: Vec<&str> = code.split_whitespace().collect();
        match words[..] {
            ["macula", _, ..] | ["cargo", _, ..] => true,
            ["python" | "bash", script, ..] | [script, ..] => {
                script.starts_with("benchmarks/") && root().join(script).is_file()
            }
            _ => false,
        }
    })
}

#[test]
fn every_table_of_numbers_stands_in_a_section_that_names_its_command() {
    let is_table = |line: &&str| line.starts_with('|') && line.contains(|c: char| c.is_ascii_digit());
    let mut tables = 0;
    for document in ["README.md", "BENCHMARKS.md"] {
        let text = read(document);
        for (heading, lines) in sections(&text) {
            if lines.iter().any(is_table) {
                tables += 1;
                assert!(
                    names_a_command(&lines),
                    "{document}, {heading}: a table without the command that prints it"
                );
            }
        }
    }
    assert!(tables >= 12, "{tables}");
    assert!(!names_a_command(&[
        "a `word`, `python nothing.py`",
        "```",
        "text",
        "```"
    ]));
    assert!(names_a_command(&["```", "macula eval knn", "```"]));
}

/// The documents of the repository, by their paths.
fn documents() -> Vec<String> {
    let of_the_root = [
        "README.md",
        "BENCHMARKS.md",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "benchmarks/history/NOTES.md",
        "tests/fixtures/README.md",
    ];
    let pages = files_below("docs")
        .into_iter()
        .filter(|file| file.ends_with(".md"));
    of_the_root.map(str::to_owned).into_iter().chain(pages).collect()
}

#[test]
fn documents_name_files_that_there_are() {
    let mut missing = BTreeSet::new();
    let documents = documents();
    assert!(documents.len() >= 16, "{documents:?}");
    for document in documents {
        for code in read(&document).split('`').skip(1).step_by(2) {
            for word in code.split_whitespace() {
                let word = word.trim_end_matches([',', ';', ':', '.']);
                let ours = [
                    "benchmarks/",
                    "tests/",
                    "src/",
                    "files/",
                    "models/src/",
                    "models/tests/",
                    "eval/src/",
                    "eval/tests/",
                ];
                let script = [".py", ".sh", ".rs"].iter().any(|end| word.ends_with(end));
                // The tree of ARCHITECTURE.md names files of a package from its folder.
                let is_there = ["", "models", "eval"]
                    .iter()
                    .any(|package| root().join(package).join(word).is_file());
                if script && ours.iter().any(|start| word.starts_with(start)) && !is_there {
                    missing.insert(format!("{document}: {word}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// The part of a link behind `#` for a heading, as Markdown is commonly rendered: small letters, digits and `_`, a hyphen for every blank.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' | '-' => Some('-'),
        c if c.is_alphanumeric() || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    heading.chars().filter_map(kept).collect()
}

/// The targets of the links of a document, outside of fenced code.
fn links(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2);
    let after_brackets = prose.flat_map(|prose| prose.split("](").skip(1));
    after_brackets
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// Why a link of `document` leads nowhere.
fn leads_nowhere(document: &str, target: &str) -> Option<String> {
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let folder = Path::new(document).parent().unwrap();
    let path = match file {
        "" => PathBuf::from(document),
        file => folder.join(file),
    };
    if !root().join(&path).exists() {
        return Some(format!("{document}: no file for {target}"));
    }
    let text = read(path.to_str().unwrap());
    let found = heading.is_empty() || sections(&text).iter().any(|(title, _)| anchor(title) == heading);
    (!found).then(|| format!("{document}: no heading for {target}"))
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for document in documents() {
        for target in links(&read(&document)) {
            // `docs/cli.md` is written from the command line itself.
            if target.contains("://") || target.ends_with("cli.md") {
                continue;
            }
            count += 1;
            wrong.extend(leads_nowhere(&document, &target));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 40, "{count} links");
    assert_eq!(
        links("[a](b.md#c), `x`\n```\n[d](e)\n```\n[f](#g)"),
        ["b.md#c", "#g"]
    );
    assert_eq!(
        anchor("What `--on-error` does: f16, int8"),
        "what---on-error-does-f16-int8"
    );
    assert!(leads_nowhere("docs/gpu.md", "export.md#nothing").is_some());
    assert!(leads_nowhere("docs/gpu.md", "nothing.md").is_some());
}

/// Whether something minus a mean of a channel stands in code, as where levels are normalised.
fn subtracts_a_mean(code: &str) -> bool {
    let flat: String = code.split_whitespace().collect();
    flat.match_indices("mean[").any(|(place, _)| {
        let before = flat[..place].trim_end_matches(|c: char| c.is_ascii_alphanumeric() || "_.".contains(c));
        before.ends_with('-')
    })
}

/// `Preprocess` alone takes means from levels; on a GPU its table of values does. A distillation maps one network's input to
/// another's.
#[test]
fn pixels_become_network_input_in_one_place() {
    let mut found = Vec::new();
    for file in files_below("src") {
        if !file.ends_with(".rs") || file.ends_with("tests.rs") || file.contains("/tests/") {
            continue;
        }
        let text = read(&file);
        if subtracts_a_mean(&code(text.split("#[cfg(test)]\nmod tests {").next().unwrap())) {
            found.push(file);
        }
    }
    assert_eq!(
        found,
        ["src/data/transform.rs", "src/train/distillation/align.rs"],
        "pixels are normalised elsewhere"
    );
    assert!(subtracts_a_mean("(level / 255.0 - self.mean[0]) / std[0]"));
    assert!(!subtracts_a_mean("mean[0] + 1.0"));
    // Who makes network input asks for it, or for batches of it.
    for (word, files) in [
        (
            ".write_tensor(",
            &[
                "src/data/augment/multi_crop.rs",
                "src/evaluate/dense/images.rs",
                "src/evaluate/robustness/images.rs",
            ][..],
        ),
        (".write_image(", &["src/data/batch.rs"]),
        (
            "BatchReader",
            &[
                "src/extract/pipeline.rs",
                "src/export/proof.rs",
                "src/export/drift.rs",
                "src/train/observe/online_knn.rs",
                "src/viz/images.rs",
            ][..],
        ),
    ] {
        for file in files {
            assert!(code(&read(file)).contains(word), "{file}: no {word}");
        }
    }
}
