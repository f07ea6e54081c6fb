//! Searches over the bundled sample, with runs of a few steps.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Device;

use super::judge::Judge;
use super::record::{Candidate, Record, Settings};
use super::search::{SearchStart, TuneRequest, run};
use super::space::Space;
use crate::data::{self, SourceIdentity};
use crate::train::config::TrainConfig;
use crate::train::recipes::{self, DataFacts};
use crate::train::run as training;

const SOURCE: &str = "sample:train";
const FACTS: DataFacts = DataFacts {
    images: 6_000,
    side: 28,
    grey: true,
    framed: true,
};

fn config_of(recipe: &str) -> crate::Result<TrainConfig> {
    recipes::recipe(recipe, SOURCE, &FACTS)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn space(folder: &Path, text: &str) -> crate::Result<Space> {
    let path = folder.join("space.toml");
    std::fs::write(&path, text).unwrap();
    Space::read(&path, &names(&["dino"]))
}

#[test]
fn combinations_are_all_there_is_once_each_and_the_recipes_as_they_are_come_first() {
    let space = Space::default_for(&names(&["dino", "moco"]));
    let all = space.combinations(1, config_of).unwrap();
    assert_eq!(all.len(), 2 + 2 * 27);
    assert!(all[..2].iter().all(|combination| combination.settings.is_empty()));
    assert_eq!([&all[0].recipe, &all[1].recipe], ["dino", "moco"]);
    let distinct: BTreeSet<String> = all
        .iter()
        .map(|one| format!("{} {:?}", one.recipe, one.settings))
        .collect();
    assert_eq!(distinct.len(), all.len());
    // The factor is of each recipe's own rate.
    let rates = |recipe: &str| -> BTreeSet<String> {
        let of_recipe = all[2..].iter().filter(|one| one.recipe == recipe);
        of_recipe.map(|one| one.settings[0].clone()).collect()
    };
    let own = config_of("dino").unwrap().optimizer.learning_rate;
    let expected: BTreeSet<String> = [own, own / 2., own * 2.]
        .map(|rate| format!("optimizer.learning_rate={}", toml::Value::Float(rate)))
        .into();
    assert_eq!(rates("dino"), expected);
    assert_eq!(space.combinations(1, config_of).unwrap(), all);
    assert_ne!(space.combinations(2, config_of).unwrap(), all);
}

#[test]
fn a_space_that_says_nothing_or_too_much_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (text, words) in [
        ("", &["choice"][..]),
        ("[[choice]]\nfield = \"seed\"", &["choice of seed", "neither"]),
        (
            "[[choice]]\nfield = \"seed\"\nvalues = [1]\nfactors = [2.0]",
            &["choice of seed", "both"],
        ),
        (
            "[[choice]]\nfield = \"seed\"\nvalue = [1]",
            &["unknown field `value`"],
        ),
        (
            "[[choice]]\nfield = \"recipe\"\nvalues = [1]",
            &["choice of recipe", "names"],
        ),
        (
            "[[choice]]\nfield = \"seed\"\nvalues = [1]\n[[choice]]\nfield = \"seed\"\nvalues = [2]",
            &["choice of seed", "twice"],
        ),
    ] {
        let error = space(folder.path(), text).unwrap_err().to_string();
        assert!(
            words
                .iter()
                .chain(&["space.toml"])
                .all(|word| error.contains(word)),
            "{text}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    for (text, words) in [
        (
            "[[choice]]\nfield = \"recipe\"\nvalues = [\"dina\"]",
            &["dina"][..],
        ),
        (
            "[[choice]]\nfield = \"optimizer.rate\"\nfactors = [1.0, 2.0]",
            &["optimizer.rate", "none"],
        ),
        (
            "[[choice]]\nfield = \"optimizer.kind\"\nfactors = [1.0, 2.0]",
            &["optimizer.kind", "a number"],
        ),
    ] {
        let space = space(folder.path(), text).unwrap();
        let error = space.combinations(0, config_of).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
    }
}

fn record(readings: &[&[f64]]) -> Record {
    let source = SourceIdentity::from_source(data::open(SOURCE).unwrap().as_ref());
    let candidates = readings.iter().map(|readings| Candidate {
        recipe: "dino".to_owned(),
        settings: Vec::new(),
        step_seconds: 1.,
        steps: 100,
        readings: readings.to_vec(),
        error: None,
    });
    Record::new(
        settings(1., Judge::Rankme),
        source,
        vec![readings.len(), 2, 1],
        candidates.collect(),
    )
}

fn settings(budget: f64, select: Judge) -> Settings {
    Settings {
        data: SOURCE.to_owned(),
        labelled: None,
        select,
        fixed: names(&[
            "batch_size=4",
            "backbone.depth=1",
            "backbone.embed_dim=64",
            "backbone.num_heads=1",
            "loss.head.hidden=32",
            "loss.head.prototypes=16",
        ]),
        budget,
        seed: 0,
    }
}

#[test]
fn the_better_half_goes_on_and_what_failed_does_not() {
    let record = record(&[&[0.1], &[0.4, 0.5], &[f64::NAN], &[0.3, 0.6, 0.7]]);
    assert_eq!(record.in_rung(0), [0, 1, 2, 3]);
    assert_eq!(record.in_rung(1), [1, 3]);
    assert_eq!(record.in_rung(2), [3]);
    assert_eq!(record.ranking(), [3, 1, 0, 2]);
}

fn search(out: &Path, start: SearchStart, budget: f64, stop: bool) -> crate::Result<super::TuneOutcome> {
    search_by(Judge::Rankme, out, start, budget, stop)
}

fn search_by(
    judge: Judge,
    out: &Path,
    start: SearchStart,
    budget: f64,
    stop: bool,
) -> crate::Result<super::TuneOutcome> {
    run(&TuneRequest {
        settings: settings(budget, judge),
        source: Arc::from(data::open(SOURCE).unwrap()),
        facts: FACTS,
        start,
        out: out.to_owned(),
        device: Device::Cpu,
        stop: Arc::new(AtomicBool::new(stop)),
    })
}

fn new() -> SearchStart {
    SearchStart::New {
        space: Space::default_for(&names(&["dino"])),
        candidates: 3,
        replace: false,
    }
}

#[test]
fn a_search_leaves_one_full_run_and_goes_on_where_it_was_stopped() {
    for judge in [Judge::Rankme, Judge::Agreement] {
        leaves_one_full_run(judge);
    }
}

fn leaves_one_full_run(judge: Judge) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tune");
    let search = |start, budget, stop| search_by(judge, &out, start, budget, stop);
    // Long enough for at least 20 steps of the small network on a busy machine; the steps are set below.
    search(new(), 1e9, true).unwrap_err();
    assert!(!out.join(super::RECORD).exists(), "nothing was begun");
    let mut record = Record {
        settings: settings(1., judge),
        rungs: vec![3, 2, 1],
        ..record(&[&[], &[], &[]])
    };
    record.source = record.source.without_labels();
    for (candidate, rate) in record.candidates.iter_mut().zip(["1e-3", "2e-3", "4e-3"]) {
        candidate.settings = names(&[&format!("optimizer.learning_rate={rate}")]);
        candidate.steps = 11;
    }
    std::fs::create_dir_all(&out).unwrap();
    record.write(&out).unwrap();
    let stopped = search(SearchStart::Resume, 1., true).unwrap();
    assert!(stopped.best.is_none());
    let outcome = search(SearchStart::Resume, 1., false).unwrap();
    let best = outcome.best.expect("one has had a full run");
    let record = Record::read(&out).unwrap();
    let mut depths: Vec<usize> = record.candidates.iter().map(|one| one.readings.len()).collect();
    depths.sort_unstable();
    assert_eq!(depths, [1, 2, 3]);
    // 11 steps times 2/11, 5/11 and 1.
    let steps = |place: usize| {
        let last = out.join(format!("candidates/{place:02}/checkpoints/last"));
        std::fs::read_link(last).unwrap().display().to_string()
    };
    for (place, candidate) in record.candidates.iter().enumerate() {
        let expected = ["step-2", "step-5", "step-11"][candidate.readings.len() - 1];
        assert_eq!(steps(place), expected);
    }
    let winner = record.ranking()[0];
    assert_eq!(best, out.join(format!("candidates/{winner:02}")));
    assert_eq!(training::saved_config(&best).unwrap().steps, 11);
    assert_eq!(outcome.table.table.height(), 3);
    assert!(outcome.table.table.column(judge.key()).is_ok());
    if judge == Judge::Agreement {
        let readings = record.candidates.iter().flat_map(|one| &one.readings);
        // Networks of a few steps on the same images see some neighbours in common, and not all.
        assert!(
            readings.clone().all(|reading| (0.01..0.999).contains(reading)),
            "{record:?}"
        );
    }
    assert!(out.join("table.csv").is_file());
    // Nothing is left to do: the same again, without a step.
    let again = search(SearchStart::Resume, 1., false).unwrap();
    assert_eq!(again.best, Some(best));
    assert_eq!(Record::read(&out).unwrap(), record);
    // A run that ended before its reading was taken down is read again.
    let mut unread = record.clone();
    unread.candidates[winner].readings.pop();
    unread.write(&out).unwrap();
    search(SearchStart::Resume, 1., false).unwrap();
    assert_eq!(Record::read(&out).unwrap(), record);
}

#[test]
fn what_cannot_be_searched_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tune");
    let text = search(&out, new(), 1e-3, false).unwrap_err().to_string();
    assert!(
        text.contains("budget") && text.contains("at least 20 steps"),
        "{text}"
    );
    std::fs::create_dir_all(&out).unwrap();
    std::fs::write(out.join("letter.txt"), "dear").unwrap();
    let text = search(&out, new(), 60., false).unwrap_err().to_string();
    assert!(text.contains("holds no search"), "{text}");
    let text = search(&out, SearchStart::Resume, 60., false)
        .unwrap_err()
        .to_string();
    assert!(text.contains("tune.json"), "{text}");
    assert_eq!(std::fs::read_to_string(out.join("letter.txt")).unwrap(), "dear");
}

/// What happens to a record.
type Damage = fn(&mut Record);

#[test]
fn a_damaged_record_names_the_field() {
    let folder = tempfile::tempdir().unwrap();
    let damages: [(&str, Damage); 4] = [
        ("rungs: expected [3, 2, 1], found [3, 1]", |record| {
            record.rungs = vec![3, 1]
        }),
        ("rungs: expected [0], found [3, 2, 1]", |record| {
            record.candidates.clear()
        }),
        ("candidates[1].steps: expected at least 1, found 0", |record| {
            record.candidates[1].steps = 0
        }),
        ("candidates[2].readings: expected 3 at most, found 4", |record| {
            record.candidates[2].readings = vec![0.5; 4];
        }),
    ];
    for (words, damage) in damages {
        let mut damaged = record(&[&[0.1], &[0.2, 0.3], &[0.4]]);
        damage(&mut damaged);
        damaged.write(folder.path()).unwrap();
        let text = Record::read(folder.path()).unwrap_err().to_string();
        assert!(text.contains("tune.json") && text.contains(words), "{text}");
    }
}
