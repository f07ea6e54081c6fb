//! The search itself: candidates are drawn and timed, then rung after rung trained and compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use macula_eval::table::EvalResult;
use polars::prelude::{Column, DataFrame};
use serde_json::json;

use super::agreement::{self, Graph};
use super::judge::Judge;
use super::plan;
use super::record::{Candidate, RECORD, Record, Settings};
use super::space::{Combination, Space};
use crate::data::{Source, SourceIdentity};
use crate::lock::FolderLock;
use crate::train::bench;
use crate::train::config::{Selection, TrainConfig};
use crate::train::observe::{LabelFreeConfig, OnlineKnnConfig, metrics_log};
use crate::train::recipes::{self, DataFacts, Overrides};
use crate::train::replicas;
use crate::train::run::{self, TrainRequest};
use crate::train::start::Start;
use crate::{Error, Result, files};

/// Folder of the runs.
const CANDIDATES: &str = "candidates";
/// Steps that are timed of each candidate, after two that are not.
const TIMED_STEPS: usize = 8;
/// A full run has at least this many steps: with fewer, warm-ups are all there is.
const MIN_STEPS: u64 = 20;

/// What to search.
pub struct TuneRequest {
    /// What is asked for; of a search that goes on, what its record says.
    pub settings: Settings,
    /// The images, opened from `settings.data`.
    pub source: Arc<dyn Source>,
    /// What is known of the images.
    pub facts: DataFacts,
    /// A new search, or one that goes on.
    pub start: SearchStart,
    /// The folder of the search.
    pub out: PathBuf,
    /// Where to compute.
    pub device: Device,
    /// Set by a signal: the run at work writes a checkpoint, and the search ends.
    pub stop: Arc<AtomicBool>,
}

/// How a search begins.
pub enum SearchStart {
    /// With new candidates.
    New {
        /// What may be varied.
        space: Space,
        /// How many candidates are drawn, at least 2.
        candidates: usize,
        /// Whether an older search in the folder is replaced.
        replace: bool,
    },
    /// Where the one in the folder ended.
    Resume,
}

/// How a search ended.
#[derive(Debug)]
pub struct TuneOutcome {
    /// One row a candidate, the best first.
    pub table: EvalResult,
    /// The best candidate's run folder; none where a signal ended the search.
    pub best: Option<PathBuf>,
}

/// Searches until one candidate has had a full run, or `stop` is set.
///
/// # Errors
/// A folder that another search writes, or that exists without `replace` or `resume`; settings that do not fit a recipe; other images
/// than the search began with; a budget that is too short; data that cannot be read. A candidate whose loss is not finite is out,
/// and no error unless all are.
pub fn run(request: &TuneRequest) -> Result<TuneOutcome> {
    let _lock = FolderLock::acquire(&request.out)?;
    let mut record = begin(request)?;
    let shares = plan::shares(&record.rungs);
    let mut graphs = BTreeMap::new();
    for (rung, &share) in shares.iter().enumerate() {
        let places = record.in_rung(rung);
        if places.is_empty() {
            return Err(all_failed(&record));
        }
        for place in places {
            let candidate = &record.candidates[place];
            if candidate.readings.len() > rung || candidate.error.is_some() {
                continue;
            }
            let until = candidate.steps_at(share);
            tracing::info!(
                "rung {} of {}: candidate {place} to step {until} of {}: {} {}",
                rung + 1,
                record.rungs.len(),
                candidate.steps,
                candidate.recipe,
                candidate.described()
            );
            let reading = match train(request, &record, place, until) {
                Ok(false) => return outcome(request, &record, None),
                Ok(true) => record
                    .settings
                    .select
                    .meter()
                    .map(|meter| read(request, place, meter)),
                Err(error) => Some(Err(error)),
            };
            // Where candidates are compared with each other, all of the rung must have come so far.
            if let Some(reading) = reading {
                record.note(place, reading)?;
                record.write(&request.out)?;
            }
        }
        if record.settings.select == Judge::Agreement {
            compare(request, &mut record, rung, &mut graphs)?;
        }
    }
    let best = record.ranking()[0];
    if record.candidates[best].readings.len() < record.rungs.len() {
        return Err(all_failed(&record));
    }
    outcome(request, &record, Some(best))
}

/// The record of the search that goes on, or of a new one.
fn begin(request: &TuneRequest) -> Result<Record> {
    let source = SourceIdentity::from_source(request.source.as_ref()).without_labels();
    match &request.start {
        SearchStart::Resume => {
            let record = Record::read(&request.out)?;
            if record.source != source {
                let path = request.out.join(RECORD).display().to_string();
                let reason = format!(
                    "expected the images that the search began with, found others in {}",
                    request.settings.data
                );
                return Err(Error::mismatch(path, reason));
            }
            Ok(record)
        }
        SearchStart::New {
            space,
            candidates,
            replace,
        } => {
            check_folder(&request.out, *replace)?;
            let drawn = draw(request, space, *candidates)?;
            let record = timed(request, source, drawn)?;
            if *replace {
                files::empty_folder(&request.out, FolderLock::is_lock)?;
            }
            record.write(&request.out)?;
            Ok(record)
        }
    }
}

/// Whether a new search may have `out`.
fn check_folder(out: &Path, replace: bool) -> Result<()> {
    let path = out.join(RECORD);
    if path.is_file() {
        return files::refuse_existing(&path, replace);
    }
    if FolderLock::is_alone_in(out) {
        return Ok(());
    }
    // --force is for searches: a folder that is none is not macula's to remove.
    let reason = "exists and holds no search; choose another --out";
    Err(Error::input(out.display().to_string(), reason))
}

/// The candidates with the time of their steps, and how many of those a full run has.
fn timed(
    request: &TuneRequest,
    source: SourceIdentity,
    drawn: Vec<(Combination, TrainConfig)>,
) -> Result<Record> {
    let rungs = plan::rungs(drawn.len());
    let seconds = plan::full_seconds(&rungs, request.settings.budget);
    let mut candidates = Vec::with_capacity(drawn.len());
    for (combination, config) in drawn {
        if request.stop.load(Ordering::Relaxed) {
            return Err(Error::failed("tune", "stopped before the first run"));
        }
        let images = Some(Arc::clone(&request.source));
        let copies = replicas::automatic(&config, rayon::current_num_threads(), &request.device)?;
        let timed = bench::bench(&config, images, &request.device, TIMED_STEPS, copies)?;
        let step_seconds = timed.step_seconds;
        let steps = (seconds / step_seconds) as u64;
        if steps < MIN_STEPS {
            let reason = format!(
                "expected time for full runs of at least {MIN_STEPS} steps, found {steps} ({step_seconds:.2} s each); give \
                 more time or fewer --candidates"
            );
            return Err(Error::setting("budget", reason));
        }
        candidates.push(Candidate::new(combination, step_seconds, steps));
    }
    Ok(Record::new(request.settings.clone(), source, rungs, candidates))
}

/// Every recipe as it is, then combinations as drawn, up to `count`; settings that come to the same are one candidate.
fn draw(request: &TuneRequest, space: &Space, count: usize) -> Result<Vec<(Combination, TrainConfig)>> {
    let seed = request.settings.seed;
    let all = space.combinations(seed, |recipe| config_of(request, recipe, &[]))?;
    let mut drawn: Vec<(Combination, TrainConfig)> = Vec::new();
    for combination in all {
        if drawn.len() == count {
            break;
        }
        let config = config_of(request, &combination.recipe, &combination.settings)?;
        if drawn.iter().all(|(_, other)| *other != config) {
            drawn.push((combination, config));
        }
    }
    if drawn.len() < 2 {
        let reason = format!("expected at least 2 different candidates, found {}", drawn.len());
        return Err(Error::setting("space", reason));
    }
    Ok(drawn)
}

/// The settings of a candidate, but for the length of its run.
fn config_of(request: &TuneRequest, recipe: &str, settings: &[String]) -> Result<TrainConfig> {
    let asked = &request.settings;
    let mut config = recipes::recipe(recipe, &asked.data, &request.facts)?;
    config.seed = asked.seed;
    let overrides = Overrides::of(asked.fixed.iter().chain(settings).map(String::as_str))?;
    overrides.apply(config, request.facts.images)
}

/// Trains the candidate at `place` up to step `until`; false where a signal ended the run before.
fn train(request: &TuneRequest, record: &Record, place: usize, until: u64) -> Result<bool> {
    let candidate = &record.candidates[place];
    let out = folder_of(&request.out, place);
    let begun = out.join(run::CONFIG).is_file();
    let config = match begun {
        true => run::saved_config(&out)?,
        false => monitored(request, candidate)?,
    };
    let threads = rayon::current_num_threads();
    let copies = replicas::automatic(&config, threads, &request.device)?;
    let request = TrainRequest {
        config,
        source: Arc::clone(&request.source),
        out: out.clone(),
        replace: false,
        start: if begun { Start::Resume } else { Start::Fresh },
        teacher: None,
        device: request.device.clone(),
        threads,
        until: Some(until),
        stop: Arc::clone(&request.stop),
    };
    let summary = replicas::run(request, copies)?;
    Ok(summary.step >= until)
}

/// The last reading of `meter` in the run of the candidate at `place`.
fn read(request: &TuneRequest, place: usize, meter: Selection) -> Result<f64> {
    let out = folder_of(&request.out, place);
    let lines = metrics_log::read(&out.join(metrics_log::METRICS_FILE))?;
    let last = lines
        .iter()
        .rev()
        .find_map(|line| line.get(meter.key())?.as_f64());
    last.ok_or_else(|| Error::failed(out.display().to_string(), format!("no finite {}", meter.key())))
}

/// Compares the candidates of `rung` with all that have trained at all, as their runs stand, and notes the readings of the rung. `graphs` has
/// the neighbours of the rungs before by candidate: those of a run that has not gone on since are as they were.
fn compare(
    request: &TuneRequest,
    record: &mut Record,
    rung: usize,
    graphs: &mut BTreeMap<usize, Graph>,
) -> Result<()> {
    let due = |candidate: &Candidate| candidate.readings.len() == rung && candidate.error.is_none();
    let in_rung = record.in_rung(rung);
    let places: Vec<usize> = in_rung
        .into_iter()
        .filter(|&place| due(&record.candidates[place]))
        .collect();
    if places.is_empty() {
        return Ok(());
    }
    let rows = agreement::sample(request.source.as_ref(), record.settings.seed);
    graphs.retain(|place, _| !places.contains(place) && record.candidates[*place].error.is_none());
    for place in 0..record.candidates.len() {
        if graphs.contains_key(&place) || record.candidates[place].error.is_some() {
            continue;
        }
        let out = folder_of(&request.out, place);
        let config = run::saved_config(&out)?;
        match agreement::neighbours(&out, &config, request.source.as_ref(), &rows, &request.device) {
            Ok(graph) => drop(graphs.insert(place, graph)),
            // Features that are not finite.
            Err(error @ Error::Eval(_)) => {
                record.note(place, Err(Error::failed("features", error.to_string())))?
            }
            Err(error) => return Err(error),
        }
    }
    for place in places {
        let Some(own) = graphs.get(&place) else { continue };
        let others: Vec<&Graph> = graphs
            .iter()
            .filter(|(other, _)| **other != place)
            .map(|(_, graph)| graph)
            .collect();
        record.note(place, Ok(agreement::agreement(own, &others)))?;
    }
    record.write(&request.out)
}

/// The settings of a candidate's full run: what decides is read at the end of each rung.
fn monitored(request: &TuneRequest, candidate: &Candidate) -> Result<TrainConfig> {
    let mut config = config_of(request, &candidate.recipe, &candidate.settings)?;
    config.rescale(candidate.steps);
    let asked = &request.settings;
    if let Some(labelled) = &asked.labelled {
        config.monitor.knn = Some(OnlineKnnConfig::new(labelled, candidate.steps));
    }
    match asked.select.meter() {
        Some(meter) => {
            config.checkpoints.select = meter;
            if meter != Selection::Knn {
                config.monitor.label_free = Some(LabelFreeConfig::new(candidate.steps));
            }
        }
        None => config.checkpoints.keep_best = false,
    }
    config.validate()?;
    Ok(config)
}

fn folder_of(out: &Path, place: usize) -> PathBuf {
    out.join(CANDIDATES).join(format!("{place:02}"))
}

fn all_failed(record: &Record) -> Error {
    let reasons = record
        .candidates
        .iter()
        .rev()
        .find_map(|candidate| candidate.error.clone());
    let last = reasons.unwrap_or_else(|| "no reading is a finite number".to_owned());
    Error::failed(
        "tune",
        format!("every candidate is out; the last because of: {last}"),
    )
}

/// The table of the search, kept in its folder.
fn outcome(request: &TuneRequest, record: &Record, best: Option<usize>) -> Result<TuneOutcome> {
    let order = record.ranking();
    let of = |place: usize| &record.candidates[place];
    let counts = |value: &dyn Fn(&Candidate) -> u64| -> Vec<u64> {
        order.iter().map(|&place| value(of(place))).collect()
    };
    let shares = plan::shares(&record.rungs);
    let done = |candidate: &Candidate| match candidate.readings.len() {
        0 => 0,
        rungs => candidate.steps_at(shares[rungs - 1]),
    };
    let columns = vec![
        Column::new(
            "candidate".into(),
            order.iter().map(|&place| place as u64).collect::<Vec<u64>>(),
        ),
        Column::new(
            "recipe".into(),
            order
                .iter()
                .map(|&place| of(place).recipe.clone())
                .collect::<Vec<_>>(),
        ),
        Column::new(
            "settings".into(),
            order
                .iter()
                .map(|&place| of(place).described())
                .collect::<Vec<_>>(),
        ),
        Column::new(
            "rungs".into(),
            counts(&|candidate| candidate.readings.len() as u64),
        ),
        Column::new("steps".into(), counts(&done)),
        Column::new(
            "step_seconds".into(),
            order
                .iter()
                .map(|&place| of(place).step_seconds)
                .collect::<Vec<f64>>(),
        ),
        Column::new(
            record.settings.select.key().into(),
            order
                .iter()
                .map(|&place| of(place).readings.last().copied())
                .collect::<Vec<Option<f64>>>(),
        ),
        Column::new(
            "error".into(),
            order
                .iter()
                .map(|&place| of(place).error.clone())
                .collect::<Vec<_>>(),
        ),
    ];
    let table = DataFrame::new(order.len(), columns).map_err(|e| Error::failed("table", e.to_string()))?;
    let settings = json!({
        "search": record.settings,
        "rungs": record.rungs,
    });
    let table = EvalResult::new("tune", settings, request.facts.images as usize, 0, table)?;
    table.save(&request.out)?;
    Ok(TuneOutcome {
        table,
        best: best.map(|place| folder_of(&request.out, place)),
    })
}
