//! The commands that a suite comes to, in order: features first, once a model and data set, then the tasks on them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::file::{Data, Model, SuiteFile, arguments};
use crate::{Error, Result};

/// What a protocol starts from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Needs {
    /// Features of `train` and `test`.
    Pair,
    /// Features of `query` and `database`, or else of `test` with captions, or else of `test` against itself.
    Search,
    /// Features of `test`, and vectors of the classes' texts.
    Texts,
    /// Features of `test`.
    Single,
    /// The model itself, and images of `train` and `test`.
    Images,
}

const PROTOCOLS: [(&str, Needs); 10] = [
    ("knn", Needs::Pair),
    ("linear-probe", Needs::Pair),
    ("logreg", Needs::Pair),
    ("svm", Needs::Pair),
    ("zero-shot", Needs::Texts),
    ("retrieval", Needs::Search),
    ("cluster", Needs::Single),
    ("segment", Needs::Images),
    ("depth", Needs::Images),
    ("robustness", Needs::Images),
];

/// One command.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    /// `model, data, task` or `model, data, part`.
    pub name: String,
    /// The whole command line, `macula` first.
    pub command: Vec<String>,
    /// The folder it fills.
    pub out: PathBuf,
    /// The cells whose features it reads, by place.
    pub after: Vec<usize>,
    /// Whether its folder holds features, which see for themselves whether they are done.
    pub is_extraction: bool,
}

/// The cells of `suite` below `out`; `machine` are flags of every command.
///
/// # Errors
/// A protocol that is none, a value that no flag takes, a task that no data set has the parts for.
pub(super) fn plan(suite: &SuiteFile, out: &Path, machine: &[String]) -> Result<Vec<Cell>> {
    let mut plan = Plan {
        out,
        machine,
        cells: Vec::new(),
        features: BTreeMap::new(),
    };
    let mut used: BTreeMap<&str, bool> = suite.tasks.keys().map(|name| (name.as_str(), false)).collect();
    for (model_name, model) in &suite.models {
        for (data_name, data) in &suite.data {
            for (task_name, task) in &suite.tasks {
                let protocol = task.protocol.as_deref().unwrap_or(task_name);
                let needs = needs(task_name, protocol)?;
                let wanted = data.tasks.as_ref().is_none_or(|tasks| tasks.contains(task_name));
                if !wanted {
                    continue;
                }
                let place = Place {
                    model: (model_name, model),
                    data: (data_name, data),
                };
                let Some((input, after)) = plan.input(needs, &place)? else {
                    continue;
                };
                used.insert(task_name, true);
                let out = out
                    .join("results")
                    .join(model_name)
                    .join(data_name)
                    .join(task_name);
                let mut command = words(["macula", "eval", protocol]);
                command.extend(input);
                command.extend(arguments(&format!("tasks.{task_name}"), &task.flags)?);
                command.push(format!("--out={}", out.display()));
                command.push("--force".to_owned());
                command.extend_from_slice(machine);
                plan.cells.push(Cell {
                    name: format!("{model_name}, {data_name}, {task_name}"),
                    command,
                    out,
                    after,
                    is_extraction: false,
                });
            }
        }
    }
    if let Some((task, _)) = used.iter().find(|(_, used)| !**used) {
        let reason = "no data set has the parts that it needs (train and test, or test alone, or query and database, or test and a \
                      model's text of it)";
        return Err(Error::input(format!("tasks.{task}"), reason));
    }
    Ok(plan.cells)
}

fn needs(task: &str, protocol: &str) -> Result<Needs> {
    let found = PROTOCOLS.iter().find(|(name, _)| *name == protocol);
    found.map(|(_, needs)| *needs).ok_or_else(|| {
        let known: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
        let reason = format!("expected {}, found {protocol}", known.join(", "));
        Error::input(format!("tasks.{task}.protocol"), reason)
    })
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// A model on a data set.
struct Place<'a> {
    model: (&'a str, &'a Model),
    data: (&'a str, &'a Data),
}

struct Plan<'a> {
    out: &'a Path,
    machine: &'a [String],
    cells: Vec<Cell>,
    /// The cell of each extraction, by its folder.
    features: BTreeMap<PathBuf, usize>,
}

impl Plan<'_> {
    /// The flags that give a protocol its input, and the cells that make it; none where the data set lacks a part.
    fn input(&mut self, needs: Needs, place: &Place<'_>) -> Result<Option<(Vec<String>, Vec<usize>)>> {
        let ((_, model), (data_name, data)) = (place.model, place.data);
        let text = match needs {
            Needs::Texts => model.text.get(data_name),
            Needs::Search => model.captions.get(data_name),
            _ => None,
        };
        let parts: Vec<(&str, &str, &String)> =
            match (needs, &data.train, &data.test, &data.query, &data.database) {
                (Needs::Search, _, _, Some(query), Some(database)) => {
                    vec![("query", "query", query), ("database", "database", database)]
                }
                (Needs::Texts, ..) if text.is_none() => return Ok(None),
                (Needs::Search | Needs::Single | Needs::Texts, _, Some(test), ..) => {
                    vec![("features", "test", test)]
                }
                (Needs::Pair, Some(train), Some(test), ..) => {
                    vec![("train", "train", train), ("test", "test", test)]
                }
                (Needs::Images, Some(train), Some(test), ..) => {
                    let mut input = self.model_flags(place)?;
                    input.push(format!("--train-data={train}"));
                    input.push(format!("--test-data={test}"));
                    return Ok(Some((input, Vec::new())));
                }
                _ => return Ok(None),
            };
        let mut input = Vec::new();
        let mut after = Vec::new();
        for (flag, part, source) in parts {
            let (folder, cell) = self.extraction(place, part, source)?;
            input.push(format!("--{flag}={}", folder.display()));
            after.push(cell);
        }
        let with_text = input[0].starts_with("--features=");
        input.extend(text.filter(|_| with_text).map(|text| format!("--text={text}")));
        Ok(Some((input, after)))
    }

    fn model_flags(&self, place: &Place<'_>) -> Result<Vec<String>> {
        let ((model_name, model), (data_name, data)) = (place.model, place.data);
        let mut flags = vec![format!("--model={}", model.model)];
        flags.extend(arguments(&format!("models.{model_name}"), &model.flags)?);
        flags.extend(arguments(&format!("data.{data_name}"), &data.flags)?);
        Ok(flags)
    }

    /// The folder of the features of a part, and the cell that makes it.
    fn extraction(&mut self, place: &Place<'_>, part: &str, source: &str) -> Result<(PathBuf, usize)> {
        let ((model_name, model), (data_name, _)) = (place.model, place.data);
        let folder = self
            .out
            .join("features")
            .join(model_name)
            .join(data_name)
            .join(part);
        if let Some(&cell) = self.features.get(&folder) {
            return Ok((folder, cell));
        }
        let mut command = words(["macula", "extract"]);
        command.extend(self.model_flags(place)?);
        command.push(format!("--data={source}"));
        command.extend(arguments(
            &format!("models.{model_name}.extract"),
            &model.extract,
        )?);
        command.push(format!("--out={}", folder.display()));
        command.push("--resume".to_owned());
        command.extend_from_slice(self.machine);
        self.cells.push(Cell {
            name: format!("{model_name}, {data_name}, features of {part}"),
            command,
            out: folder.clone(),
            after: Vec::new(),
            is_extraction: true,
        });
        self.features.insert(folder.clone(), self.cells.len() - 1);
        Ok((folder, self.cells.len() - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(text: &str) -> SuiteFile {
        toml::from_str(text).unwrap()
    }

    const TWO: &str = "
        [models.a]
        model = 'a.onnx'
        crop = 224
        extract = { output = 'cls,patch_mean' }
        [models.pixels]
        model = 'pixels'
        [data.photos]
        train = 'photos/train'
        test = 'photos/test'
        [data.places]
        query = 'q.csv'
        database = 'db.csv'
        label_column = 'place'
        [tasks.knn]
        k = [10, 20]
        [tasks.probe]
        protocol = 'linear-probe'
        [tasks.retrieval]
    ";

    #[test]
    fn features_are_made_once_and_before_what_reads_them() {
        let cells = plan(&suite(TWO), Path::new("o"), &["--threads=2".to_owned()]).unwrap();
        let names: Vec<&str> = cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(
            names[..8],
            [
                "a, photos, features of train",
                "a, photos, features of test",
                "a, photos, knn",
                "a, photos, probe",
                "a, photos, retrieval",
                "a, places, features of query",
                "a, places, features of database",
                "a, places, retrieval",
            ]
        );
        assert_eq!(cells.len(), 16);
        assert_eq!(
            cells[1].command.join(" "),
            "macula extract --model=a.onnx --crop=224 --data=photos/test --output=cls,patch_mean --out=o/features/a/photos/test \
             --resume --threads=2"
        );
        assert_eq!(
            cells[3].command.join(" "),
            "macula eval linear-probe --train=o/features/a/photos/train --test=o/features/a/photos/test \
             --out=o/results/a/photos/probe --force --threads=2"
        );
        assert!(
            cells[7]
                .command
                .join(" ")
                .contains("--query=o/features/a/places/query --database=")
        );
        assert!(cells[5].command.contains(&"--label-column=place".to_owned()));
        for (place, cell) in cells.iter().enumerate() {
            assert!(
                cell.after
                    .iter()
                    .all(|&before| before < place && cells[before].is_extraction)
            );
            assert_eq!(cell.after.is_empty(), cell.is_extraction);
        }
    }

    #[test]
    fn texts_belong_to_a_model_and_a_data_set() {
        let text = "
            [models.a]
            model = 'a'
            [models.clip]
            model = 'clip'
            text.photos = 'photos.parquet'
            captions.photos = 'captions.parquet'
            captions.places = 'unused.parquet'
            [data.photos]
            test = 't'
            [data.places]
            query = 'q'
            database = 'd'
            [tasks.retrieval]
            [tasks.zero-shot]
        ";
        let cells = plan(&suite(text), Path::new("o"), &[]).unwrap();
        let command = |name: &str| {
            let cell = cells.iter().find(|cell| cell.name == name);
            cell.map(|cell| cell.command.join(" "))
        };
        assert_eq!(
            command("clip, photos, zero-shot").unwrap(),
            "macula eval zero-shot --features=o/features/clip/photos/test --text=photos.parquet \
             --out=o/results/clip/photos/zero-shot --force"
        );
        assert!(
            command("clip, photos, retrieval")
                .unwrap()
                .contains("--text=captions.parquet")
        );
        assert!(!command("clip, places, retrieval").unwrap().contains("--text"));
        assert!(!command("a, photos, retrieval").unwrap().contains("--text"));
        assert_eq!(command("a, photos, zero-shot"), None);
        assert_eq!(command("clip, places, zero-shot"), None);
    }

    #[test]
    fn what_makes_no_plan_is_named() {
        let error = |text: &str| plan(&suite(text), Path::new("o"), &[]).unwrap_err().to_string();
        assert!(
            error(&TWO.replace("linear-probe", "lp")).starts_with("tasks.probe.protocol: expected knn, ")
        );
        let alone = "[models.a]\nmodel = 'a'\n[data.d]\ntest = 't'\n[tasks.knn]";
        assert!(error(alone).starts_with("tasks.knn: no data set has the parts"));
    }
}
