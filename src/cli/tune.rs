//! `macula tune`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::Host;
use super::args::{ColumnArgs, INPUT, NewArgs, OUTPUT, RunArgs, SeedArgs, examples, reworded};
use super::output;
use super::run_folder::{TRAINING, look_at};
use super::signals::StopSignals;
use crate::data;
use crate::train::config::DataConfig;
use crate::train::recipes::Overrides;
use crate::tune::{Judge, Record, SearchStart, Settings, Space, TuneRequest, run};
use crate::{Error, Result};

/// Recipes whose sizes follow the images.
const RECIPES: [&str; 5] = ["dinov2-small", "dino", "ibot", "moco", "mocov3"];
/// The most candidates: with more, a rung is too short to tell them apart.
const MAX_CANDIDATES: usize = 64;

/// Arguments of `macula tune`.
#[derive(Debug, Args)]
#[command(
    next_help_heading = TRAINING,
    mut_args(reworded(&[
        ("out", "Folder of the search"),
        ("force", "Replace a search that exists"),
    ])),
    after_help = examples(&[
        "macula tune --data photos/ --budget 60m --out runs/tune",
        "macula tune --data photos/ --knn-data labelled/ --budget 2h --recipe dino --out runs/tune",
        "macula tune --out runs/tune --resume",
    ])
)]
pub struct TuneArgs {
    /// Time of all runs together, as 90s, 60m or 2h; readings come on top
    #[arg(
        long,
        value_name = "TIME",
        value_parser = humantime::parse_duration,
        required_unless_present = "resume"
    )]
    budget: Option<Duration>,
    /// A recipe that may be chosen; may be given more than once [default: dinov2-small, dino, ibot, moco, mocov3]
    #[arg(long, value_name = "NAME")]
    recipe: Vec<String>,
    /// What may be varied: a TOML file of [[choice]] tables, each a field with values or factors [default: learning rate, teacher's
    /// momentum, scale of the global crops]
    #[arg(long, value_name = "FILE")]
    space: Option<PathBuf>,
    /// Candidates to begin with, 2 to 64
    #[arg(long, value_name = "N", default_value_t = 8)]
    candidates: usize,
    /// What decides: knn, of --knn-data; or, of images without labels, agreement (how many of an image's nearest neighbours the other
    /// candidates see too), rankme or lidar [default: knn where --knn-data is given, else agreement]
    #[arg(long, value_name = "knn|agreement|rankme|lidar")]
    select: Option<Judge>,
    /// Change a field of every candidate, as for `macula train`; not steps or epochs, which follow from --budget [default: none]
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Images, as for `macula train`
    #[arg(long, value_name = "SRC", required_unless_present = "resume", help_heading = INPUT)]
    data: Option<String>,
    /// Labelled images for the online k-NN, of which none is used for anything else afterwards [default: none]
    #[arg(long, value_name = "SRC", help_heading = INPUT)]
    knn_data: Option<String>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    out: NewArgs,
    /// Go on with the search in --out, as it was asked for
    #[arg(
        long,
        conflicts_with_all = ["force", "budget", "recipe", "space", "candidates", "select", "set", "data", "knn_data", "seed"],
        help_heading = OUTPUT
    )]
    resume: bool,
    #[command(flatten)]
    random: SeedArgs,
    #[command(flatten)]
    machine: RunArgs,
}

impl TuneArgs {
    /// Searches, and prints the table.
    pub fn run(&self, host: Host) -> Result<()> {
        self.machine.threads.start()?;
        let (settings, start) = match self.resume {
            true => (Record::read(&self.out.out)?.settings, SearchStart::Resume),
            false => (self.settings()?, self.begin()?),
        };
        let source = data::open_shuffled(&settings.data)?;
        let fixed = Overrides::of(settings.fixed.iter().map(String::as_str))?;
        let reading = fixed.section("data", &DataConfig::default())?;
        reading.validate()?;
        let facts = look_at(source.as_ref(), &reading.loader.decode())?;
        let signals = StopSignals::listen(host, false)?;
        let outcome = run(&TuneRequest {
            settings,
            source: Arc::from(source),
            facts,
            start,
            out: self.out.out.clone(),
            device: self.machine.device.candle()?,
            stop: signals.flag(),
        })?;
        let best = outcome.best.as_ref().map(|best| best.display().to_string());
        if self.out.print.json {
            return output::print_json(&json!({ "table": outcome.table.to_json()?, "best": best }));
        }
        output::print_result(&outcome.table, false, None)?;
        match best {
            Some(best) => output::print(&format!("best: {best}")),
            None => output::print("stopped (go on with --resume)"),
        }
    }

    /// What a new search is asked for.
    fn settings(&self) -> Result<Settings> {
        let select = match (self.select, &self.knn_data) {
            (Some(Judge::Knn), None) => {
                return Err(Error::input(
                    "--select",
                    "expected --knn-data with knn, found none",
                ));
            }
            (Some(select), _) => select,
            (None, Some(_)) => Judge::Knn,
            (None, None) => Judge::Agreement,
        };
        let data = self.data.as_deref().unwrap_or_default();
        let (data, labelled) = match &self.knn_data {
            Some(labelled) => {
                let [data, labelled] = self.columns.apply_to_both(data, labelled)?;
                (data, Some(labelled))
            }
            None => (self.columns.apply_to(data)?, None),
        };
        Ok(Settings {
            data,
            labelled,
            select,
            fixed: self.fixed()?,
            budget: self.budget.unwrap_or_default().as_secs_f64(),
            seed: self.random.seed,
        })
    }

    fn begin(&self) -> Result<SearchStart> {
        if !(2..=MAX_CANDIDATES).contains(&self.candidates) {
            let reason = format!("expected 2 to {MAX_CANDIDATES}, found {}", self.candidates);
            return Err(Error::input("--candidates", reason));
        }
        let recipes: Vec<String> = match self.recipe.is_empty() {
            true => RECIPES.map(str::to_owned).to_vec(),
            false => self.recipe.clone(),
        };
        Ok(SearchStart::New {
            space: match &self.space {
                None => Space::default_for(&recipes),
                Some(path) => Space::read(path, &recipes)?,
            },
            candidates: self.candidates,
            replace: self.out.force,
        })
    }

    /// `--set`, each checked to be one, and none that the budget decides.
    fn fixed(&self) -> Result<Vec<String>> {
        for assignment in &self.set {
            Overrides::default().set(assignment)?;
            let field = assignment.split('=').next().unwrap_or_default().trim();
            if ["steps", "epochs"].contains(&field) {
                let reason = format!("expected no {field}, which follow from --budget, found `{assignment}`");
                return Err(Error::input("--set", reason));
            }
        }
        Ok(self.set.clone())
    }
}
