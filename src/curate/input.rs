//! What a step reads: one column of a feature folder, narrowed to the rows that an earlier list keeps.

use std::path::{Path, PathBuf};

use clap::Args;
use macula_eval::linalg::normalise::l2_normalised;
use macula_eval::{Matrix, Share, Team};
use serde::{Deserialize, Serialize};

use super::Step;
use super::ledger::{Earlier, Ledger};
use super::origin::Origin;
use crate::cluster::Ranks;
use crate::extract::FeatureFolder;
use crate::extract::folder::Names;
use crate::extract::{default_column, read_column, read_names};
use crate::{Error, Result};

/// The rows a step judges.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputOptions {
    /// Feature folder of the pool
    #[arg(long, value_name = "FEATURES")]
    pub features: Option<PathBuf>,
    /// Column of features [default: cls, or else the first]
    #[arg(long, value_name = "NAME")]
    pub column: Option<String>,
    /// list.parquet or list.csv of an earlier step (columns row, kept): only rows that it keeps are judged [default: none, all rows
    /// are judged]
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// Source of the images [default: the one that the feature folder names]
    #[arg(long, value_name = "SRC")]
    pub data: Option<String>,
}

/// The rows of a feature folder, and the features of those that are judged.
pub(crate) struct Pool {
    /// Names of all rows; the features have moved to `unit`.
    pub(crate) rows: Vec<u64>,
    pub(crate) paths: Vec<String>,
    pub(crate) labels: Vec<Option<String>>,
    /// Features of the judged rows, or of this process's share of them, `[judged, d]`, of length 1 each unless they were read raw.
    pub(crate) unit: Matrix,
    /// Places of the judged rows among all.
    pub(crate) judged: Vec<usize>,
    /// Where the images lie.
    pub(crate) origin: Origin,
    /// Where the features lie.
    pub(crate) folder: FeatureFolder,
    earlier: Option<Earlier>,
}

impl Pool {
    /// Reads the rows of `options`, normalised.
    ///
    /// # Errors
    /// No feature folder, a folder, column or list that cannot be read or do not fit, or a list that keeps no row.
    pub(crate) fn open(options: &InputOptions) -> Result<Self> {
        let mut pool = Self::open_raw(options)?;
        pool.normalise()?;
        Ok(pool)
    }

    /// As [`Self::open`], the features as they are.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_raw(options: &InputOptions) -> Result<Self> {
        let (folder, column) = opened(options)?;
        let (matrix, names) = read_column(&folder, &column)?.into_parts();
        matrix.view().check_finite(&folder.path().display().to_string())?;
        Self::of(folder, options, names, |_, rows, judged| {
            Ok(match judged.len() == rows.len() {
                true => matrix,
                false => matrix.view().select(judged),
            })
        })
    }

    /// As [`Self::open`] (or [`Self::open_raw`]), where this process of `team` keeps the features of its share of the judged rows alone.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_share(options: &InputOptions, raw: bool, team: &dyn Team) -> Result<Self> {
        match (team.size(), raw) {
            (1, true) => return Self::open_raw(options),
            (1, false) => return Self::open(options),
            _ => {}
        }
        let (folder, column) = opened(options)?;
        let names = read_names(&folder, &column)?;
        let mut pool = Self::of(folder, options, names, |folder, rows, judged| {
            let own = &judged[Share::range(judged.len(), team)];
            let own: Vec<u64> = own.iter().map(|&place| rows[place]).collect();
            folder.values(&column, &own)
        })?;
        if !raw {
            pool.normalise()?;
        }
        Ok(pool)
    }

    /// The rows `names` of `folder`, with the features that `unit` reads for the folder, its rows, and the places of those judged.
    fn of(
        folder: FeatureFolder,
        options: &InputOptions,
        names: Names,
        unit: impl FnOnce(&FeatureFolder, &[u64], &[usize]) -> Result<Matrix>,
    ) -> Result<Self> {
        let origin = Origin::open(&folder, options.data.as_deref(), &names)?;
        let earlier = options.list.as_deref().map(Earlier::read).transpose()?;
        let judged = judged(
            &names.rows,
            &names.paths,
            options.list.as_deref(),
            earlier.as_ref(),
        )?;
        Ok(Self {
            unit: unit(&folder, &names.rows, &judged)?,
            rows: names.rows,
            paths: names.paths,
            labels: names.labels,
            judged,
            origin,
            folder,
            earlier,
        })
    }

    /// Fails on every rank unless all have the settings of `step` and as many rows.
    ///
    /// # Errors
    /// Names what differs; ranks that cannot reach each other.
    pub(crate) fn agree(&self, step: &dyn Step, ranks: &dyn Ranks) -> Result<()> {
        ranks.agree("settings", &step.settings().to_string())?;
        let (rows, dim) = (self.len(), self.unit.view().dim());
        ranks.agree("features", &format!("{rows} rows of {dim} values"))
    }

    /// Brings every row to length 1.
    fn normalise(&mut self) -> Result<()> {
        self.unit = l2_normalised(self.take_features()?)?;
        Ok(())
    }

    /// The features, of which none are left here.
    ///
    /// # Errors
    /// None; the type follows [`Matrix::new`].
    pub(crate) fn take_features(&mut self) -> Result<Matrix> {
        let none = Matrix::new(Vec::new(), 0, 1)?;
        Ok(std::mem::replace(&mut self.unit, none))
    }

    /// Number of judged rows.
    pub(crate) fn len(&self) -> usize {
        self.judged.len()
    }

    /// Place in the source of judged row `place`.
    pub(crate) fn row(&self, place: usize) -> u64 {
        self.rows[self.judged[place]]
    }

    /// Path in the features of judged row `place`.
    pub(crate) fn path(&self, place: usize) -> &str {
        &self.paths[self.judged[place]]
    }

    /// A ledger of all rows in which the earlier list has had its say and the judged rows are kept so far. `group` names
    /// the column of groups. Takes the names; the features stay.
    pub(crate) fn ledger(&mut self, group: &'static str) -> Ledger {
        let names = (
            std::mem::take(&mut self.rows),
            std::mem::take(&mut self.paths),
            std::mem::take(&mut self.labels),
        );
        let mut ledger = Ledger::new(names.0, names.1, names.2, group);
        ledger.narrow(&self.judged, self.earlier.as_ref());
        ledger
    }

    /// Gives the source away, for the folder that is written.
    pub(crate) fn into_origin(self) -> Origin {
        self.origin
    }
}

/// The feature folder of `options`, and the column.
fn opened(options: &InputOptions) -> Result<(FeatureFolder, String)> {
    let Some(path) = &options.features else {
        return Err(Error::setting(
            "features",
            "expected a feature folder, found none",
        ));
    };
    let folder = FeatureFolder::open(path)?;
    let column = options.column.clone().unwrap_or_else(|| default_column(&folder));
    Ok((folder, column))
}

/// Places of the rows that `earlier` keeps; all without a list.
pub(crate) fn judged(
    rows: &[u64],
    paths: &[String],
    list: Option<&Path>,
    earlier: Option<&Earlier>,
) -> Result<Vec<usize>> {
    let (Some(list), Some(earlier)) = (list, earlier) else {
        return Ok((0..rows.len()).collect());
    };
    let mut kept = Vec::new();
    for (place, (&row, path)) in rows.iter().zip(paths).enumerate() {
        let Some(verdict) = earlier.verdict(row) else {
            continue;
        };
        if !same_file(&verdict.path, path) {
            return Err(Error::input(
                list.display().to_string(),
                format!(
                    "expected the rows of the features, with `{path}` in row {row}, found `{}`",
                    verdict.path
                ),
            ));
        }
        if verdict.kept {
            kept.push(place);
        }
    }
    if kept.is_empty() {
        return Err(Error::input(
            list.display().to_string(),
            "expected at least one row that is kept and has features, found none",
        ));
    }
    Ok(kept)
}

/// Lists give whole paths, features the path within the source: their last parts must agree.
fn same_file(listed: &str, path: &str) -> bool {
    let name = |path: &str| Path::new(path).file_name().map(std::ffi::OsStr::to_os_string);
    listed.is_empty() || name(listed) == name(path)
}

/// Reads the normalised rows of another folder (a seed, an evaluation set, a curated pool), with its source, to be compared
/// with those of `own`; says where that is unfair.
///
/// # Errors
/// As [`Pool::open`]; features of another width than those of `own`.
pub(crate) fn open_other(
    role: &str,
    folder: &Path,
    list: Option<PathBuf>,
    column: Option<&str>,
    own: &Pool,
) -> Result<Pool> {
    let pool = Pool::open(&InputOptions {
        features: Some(folder.to_owned()),
        column: column.map(str::to_owned),
        list,
        data: None,
    })?;
    let (found, dim) = (pool.unit.view().dim(), own.unit.view().dim());
    if found != dim {
        return Err(Error::setting(
            format!("{role} {}", folder.display()),
            format!("expected features of width {dim} as the pool's, found {found}"),
        ));
    }
    pool.folder.notice_unfair(&own.folder);
    Ok(pool)
}
