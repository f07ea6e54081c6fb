//! `curate dedup`: of every connected component of near-copies one row is kept. Rows are joined when they are among each
//! other's `k` nearest with a cosine above the threshold (Oquab et al. 2023, appendix A.3), and before that, where asked
//! for, when their pixels are equal or nearly so.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use macula_eval::curation::{Components, EdgeSample, Search, Searcher, central_rows};
use macula_eval::index::Hit;
use macula_eval::{Matrix, Share, Team as _};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::input::{InputOptions, Pool, open_other};
use super::ledger::Ledger;
use super::pixels::{self, PixelMatch};
use super::{Judged, Step, setting_name};
use crate::cluster::{OfRanks, OneRank, Ranks};
use crate::data::{DecodeOptions, SampleRange, Source};
use crate::{Error, Result, rng};

/// Rows on which the recall of an inexact search is measured.
const RECALL_ROWS: usize = 500;
/// Time between two reports of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// A component of more than this share of the rows is more likely chained by a low threshold than made of copies.
const SUSPICIOUS: f64 = 0.05;

/// Which row of a component is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The first in the order of the source.
    #[default]
    First,
    /// The one with the largest file.
    Largest,
    /// The one with the most pixels.
    HighestResolution,
    /// The one nearest to the component's mean.
    Central,
}

/// Settings of `curate dedup`.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DedupOptions {
    /// Nearest neighbours looked at
    #[arg(long, default_value_t = Self::default().k)]
    pub k: usize,
    /// Rows with a cosine similarity above this are copies, -1 to 1
    #[arg(long, default_value_t = Self::default().threshold, allow_negative_numbers = true)]
    pub threshold: f64,
    /// Which row of a component is kept
    #[arg(long, value_enum, default_value = "first")]
    pub keep: Keep,
    /// Feature folder that is curated already: rows like one of its are dropped with their component [default: none]
    #[arg(long, value_name = "FEATURES")]
    pub against: Option<PathBuf>,
    /// list.parquet that narrows the folder of --against [default: none]
    #[arg(long, value_name = "FILE", requires = "against")]
    pub against_list: Option<PathBuf>,
    /// Also join images whose pixels are equal (bytes), or nearly so by a difference hash and correlation (hash); reads the images
    #[arg(long, value_enum, default_value = "none")]
    pub pixels: PixelMatch,
    /// Bits of 256 in which the hashes of two images may differ that are compared, 0 to 32
    #[arg(long, value_name = "BITS", default_value_t = Self::default().hash_bits)]
    pub hash_bits: u32,
    /// How neighbours are found: auto (exact up to 50,000 rows, else lists), exact, lists, hnsw
    #[arg(long, value_parser = search, default_value = "auto")]
    pub search: Search,
    /// Samples of more than 8 bits that become black and white: auto for the range of their type (0 to 1 of floats), two
    /// numbers, or clip, as Pillow does
    #[arg(
        long,
        value_name = "auto|LOW,HIGH",
        default_value = "clip",
        allow_hyphen_values = true
    )]
    #[serde(skip_serializing_if = "SampleRange::is_clip")]
    pub sample_range: SampleRange,
}

impl Default for DedupOptions {
    fn default() -> Self {
        Self {
            k: 64,
            threshold: 0.6,
            keep: Keep::First,
            against: None,
            against_list: None,
            pixels: PixelMatch::None,
            hash_bits: 24,
            search: Search::Auto,
            sample_range: SampleRange::Clip,
        }
    }
}

/// Reads the name of a search.
pub(super) fn search(text: &str) -> std::result::Result<Search, String> {
    serde_json::from_value(json!(text))
        .map_err(|_| format!("expected auto, exact, lists or hnsw, found `{text}`"))
}

/// Refuses a threshold that is no cosine.
pub(super) fn check_threshold(name: &str, threshold: f64) -> Result<()> {
    if (-1.0..=1.0).contains(&threshold) {
        return Ok(());
    }
    Err(Error::setting(
        name,
        format!("expected a cosine similarity from -1 to 1, found {threshold}"),
    ))
}

impl Step for DedupOptions {
    fn name(&self) -> &'static str {
        "dedup"
    }

    fn settings(&self) -> Value {
        json!(self)
    }

    fn other_inputs(&self) -> Vec<(&'static str, PathBuf)> {
        let against = self.against.iter().map(|path| ("against", path.clone()));
        against
            .chain(
                self.against_list
                    .iter()
                    .map(|path| ("against_list", path.clone())),
            )
            .collect()
    }

    fn judge(&self, input: &InputOptions, seed: u64) -> Result<Judged> {
        self.judge_with(input, seed, &OneRank)
    }

    /// What needs features; the rest is small beside that, or reads images.
    fn help(&self, input: &InputOptions, seed: u64, ranks: &dyn Ranks) -> Result<()> {
        let mut pool = self.open(input, ranks)?;
        let seed = derived(seed);
        self.join(&pool, &mut Components::new(pool.len()), seed, ranks)?;
        self.known_already(&pool, input, seed, ranks)?;
        Copied::of(&mut pool, &[], ranks)?;
        Ok(())
    }

    fn judge_with(&self, input: &InputOptions, seed: u64, ranks: &dyn Ranks) -> Result<Judged> {
        pixels::check_bits(self.hash_bits)?;
        let mut pool = self.open(input, ranks)?;
        let n = pool.len();
        let seed = derived(seed);

        let mut by_pixels = Components::new(n);
        if self.pixels != PixelMatch::None {
            let source = pool.origin.source("pixels")?;
            let rows: Vec<u64> = (0..n).map(|place| pool.row(place)).collect();
            let decode = DecodeOptions {
                sample_range: self.sample_range,
                ..DecodeOptions::default()
            };
            pixels::join(
                source,
                &rows,
                self.pixels,
                self.hash_bits,
                &decode,
                &mut by_pixels,
            )?;
        }
        let mut components = by_pixels.clone();
        let found = self.join(&pool, &mut components, seed, ranks)?;
        let (numbers, count) = components.numbered();
        let known = self.known_already(&pool, input, seed, ranks)?;
        let copied = Copied::of(&mut pool, &numbers, ranks)?;
        let groups = Groups {
            keepers: self.keepers(&pool, &copied, &numbers, count)?,
            known,
            by_pixels: by_pixels.numbered().0,
            pixel_reason: match self.pixels {
                PixelMatch::Hash => "nearly the same pixels",
                _ => "same pixels",
            },
            numbers,
        };
        let ledger = groups.verdicts(&mut pool, &copied);
        let sizes = sizes(&groups.numbers, count);
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let mut judged = Judged::new(ledger, pool.into_origin());
        judged.count("components", count);
        judged.count(
            "components_of_several",
            sizes.iter().filter(|&&size| size > 1).count(),
        );
        judged.count("largest_component", largest);
        judged.count("edges", found.edges);
        judged.count("search", found.method);
        if let Some(recall) = found.recall {
            judged.count("edge_recall", recall);
        }
        if largest > 100 && largest as f64 > SUSPICIOUS * n as f64 {
            judged.notes.push(format!(
                "one component holds {largest} of {n} rows: with these features a threshold of {} chains what are no copies; \
                 raise --threshold",
                self.threshold
            ));
        }
        Ok(judged)
    }
}

/// Components, and what decides about their rows; everything by place among the judged rows.
struct Groups {
    /// Component of each row.
    numbers: Vec<u32>,
    /// The row of each component that is kept.
    keepers: Vec<u32>,
    /// Component of each row by its pixels alone.
    by_pixels: Vec<u32>,
    /// The reason of a row that is dropped for its pixels.
    pixel_reason: &'static str,
    /// The row of a curated folder that each row is like, and the cosine.
    known: Vec<Option<(u64, f32)>>,
}

impl Groups {
    fn verdicts(&self, pool: &mut Pool, copied: &Copied) -> Ledger {
        let mut known_component = vec![false; self.keepers.len()];
        for (&number, known) in self.numbers.iter().zip(&self.known) {
            known_component[number as usize] |= known.is_some();
        }
        let mut ledger = pool.ledger("component");
        for (place, &number) in self.numbers.iter().enumerate() {
            let all = pool.judged[place];
            let keeper = self.keepers[number as usize] as usize;
            ledger.groups[all] = Some(number);
            if let Some((row, similarity)) = self.known[place] {
                ledger.drop_row(all, "copy of the curated");
                ledger.of[all] = Some(row);
                ledger.similarities[all] = Some(similarity);
            } else if known_component[number as usize] {
                ledger.drop_row(all, "component of a copy of the curated");
            } else if keeper != place {
                let same = self.by_pixels[keeper] == self.by_pixels[place];
                ledger.drop_row(all, if same { self.pixel_reason } else { "copy" });
                ledger.of[all] = Some(ledger.rows[pool.judged[keeper]]);
                ledger.similarities[all] = Some(cosine(copied.row(keeper), copied.row(place)));
            }
        }
        ledger
    }
}

/// How many rows each component has.
fn sizes(numbers: &[u32], count: usize) -> Vec<usize> {
    let mut sizes = vec![0; count];
    numbers.iter().for_each(|&number| sizes[number as usize] += 1);
    sizes
}

/// Features of the rows that have copies, on every rank; of one process, those of all rows.
struct Copied {
    features: Matrix,
    /// The rows by place, rising; none for all.
    places: Option<Vec<usize>>,
}

impl Copied {
    /// Takes the features of `pool`, whose components are `numbers` on the first of `ranks`; the others learn them.
    fn of(pool: &mut Pool, numbers: &[u32], ranks: &dyn Ranks) -> Result<Self> {
        let features = pool.take_features()?;
        if ranks.is_one() {
            let places = None;
            return Ok(Self { features, places });
        }
        let team = OfRanks(ranks);
        let numbers = team.gather_numbers(numbers)?;
        let count = numbers.iter().max().map_or(0, |&last| last as usize + 1);
        let sizes = sizes(&numbers, count);
        let has_copies = |place: &usize| sizes[numbers[*place] as usize] > 1;
        let places: Vec<usize> = (0..numbers.len()).filter(has_copies).collect();
        let share = Share::of_own(features.view(), pool.len(), &team)?;
        Ok(Self {
            features: share.select(&places)?,
            places: Some(places),
        })
    }

    /// Features of the row at `place`, which has copies.
    fn row(&self, place: usize) -> &[f32] {
        let row = match &self.places {
            None => place,
            Some(places) => places.partition_point(|&other| other < place),
        };
        self.features.view().row(row)
    }

    /// The central row of each component, by place.
    fn central(&self, numbers: &[u32], count: usize) -> Vec<u32> {
        let Some(places) = &self.places else {
            return central_rows(self.features.view(), numbers, count);
        };
        let own: Vec<u32> = places.iter().map(|&place| numbers[place]).collect();
        let central = central_rows(self.features.view(), &own, count);
        let mut keepers = vec![0; count];
        // A row without copies is its component's only one.
        for (place, &number) in numbers.iter().enumerate() {
            keepers[number as usize] = place as u32;
        }
        for &number in &own {
            keepers[number as usize] = places[central[number as usize] as usize] as u32;
        }
        keepers
    }
}

/// Joins neighbours above the threshold, which `ranks` look for together, and shows them to `see`; how many (directed) edges there
/// were.
pub(super) fn join_neighbours(
    searcher: &Searcher<'_>,
    components: &mut Components,
    k: usize,
    threshold: f32,
    ranks: &dyn Ranks,
    mut see: impl FnMut(usize, &[Hit]),
) -> Result<u64> {
    let mut edges = 0;
    let mut last = Instant::now();
    let progress = |done| {
        if last.elapsed() > PROGRESS {
            last = Instant::now();
            tracing::info!("neighbours of {done} rows");
        }
    };
    // Edges that join what was apart here: of all that a rank finds these are enough, and no more than rows.
    let mut joined = Vec::new();
    searcher.search_itself(k, threshold, progress, |row, hits| {
        see(row, hits);
        edges += hits.len() as u64;
        for hit in hits {
            if components.join(row as u32, hit.row) && !ranks.is_one() {
                joined.extend([row as u32, hit.row]);
            }
        }
    })?;
    if !ranks.is_one() {
        let all = OfRanks(ranks).gather_numbers(&joined)?;
        for pair in all.as_chunks::<2>().0 {
            components.join(pair[0], pair[1]);
        }
        edges = ranks
            .gather_bytes(&edges.to_le_bytes())?
            .iter()
            .map(|bytes| number(bytes))
            .sum();
    }
    Ok(edges)
}

/// The number that a rank has sent.
fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

fn derived(seed: u64) -> u64 {
    rng::derived_seed(seed, "curate-dedup")
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let sum: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    sum as f32
}

/// What a search for neighbours found.
struct Found {
    edges: u64,
    method: &'static str,
    recall: Option<f64>,
}

impl DedupOptions {
    /// The rows to judge, of which each of `ranks` has the features of some.
    fn open(&self, input: &InputOptions, ranks: &dyn Ranks) -> Result<Pool> {
        check_threshold("threshold", self.threshold)?;
        let pool = Pool::open_share(input, false, &OfRanks(ranks))?;
        pool.agree(self, ranks)?;
        Ok(pool)
    }

    /// Joins the rows of the pool that are copies. No cosine is above 1 but by rounding, so nothing is searched then.
    fn join(&self, pool: &Pool, components: &mut Components, seed: u64, ranks: &dyn Ranks) -> Result<Found> {
        if self.threshold >= 1.0 {
            return Ok(Found {
                edges: 0,
                method: "none",
                recall: None,
            });
        }
        let threshold = self.threshold as f32;
        let team = OfRanks(ranks);
        let share = Share::of_own(pool.unit.view(), pool.len(), &team)?;
        let searcher = Searcher::shared(&share, self.search, seed)?;
        let mut sample = EdgeSample::draw(pool.len(), RECALL_ROWS, seed);
        let see = |row: usize, hits: &[Hit]| sample.see(row, hits);
        let edges = join_neighbours(&searcher, components, self.k, threshold, ranks, see)?;
        let recall = match searcher.method() {
            Search::Exact => None,
            _ => sample.recall(&share, self.k, threshold)?,
        };
        Ok(Found {
            edges,
            method: searcher.method().name(),
            recall,
        })
    }

    /// For each row the nearest row of the curated folder above the threshold: its row there and the cosine. Each of `ranks` looks for
    /// those of its rows.
    fn known_already(
        &self,
        pool: &Pool,
        input: &InputOptions,
        seed: u64,
        ranks: &dyn Ranks,
    ) -> Result<Vec<Option<(u64, f32)>>> {
        let Some(against) = &self.against else {
            return Ok(vec![None; pool.len()]);
        };
        let mut known = vec![None; pool.unit.view().rows()];
        let curated = open_other(
            "against",
            against,
            self.against_list.clone(),
            input.column.as_deref(),
            pool,
        )?;
        let searcher = Searcher::new(curated.unit.view(), self.search, seed)?;
        searcher.search(pool.unit.view(), 1, self.threshold as f32, |row, hits| {
            known[row] = hits
                .first()
                .map(|hit| (curated.row(hit.row as usize), hit.similarity));
        })?;
        if ranks.is_one() {
            return Ok(known);
        }
        // No row has this number.
        let rows = known
            .iter()
            .flat_map(|known| known.map_or(u64::MAX, |known| known.0).to_le_bytes());
        let rows = ranks.gather_bytes(&rows.collect::<Vec<u8>>())?.concat();
        let cosines: Vec<f32> = known
            .iter()
            .map(|known| known.map_or(0., |known| known.1))
            .collect();
        let cosines = ranks.gather_f32(&cosines)?.concat();
        let rows = rows.as_chunks::<8>().0.iter().map(|&row| u64::from_le_bytes(row));
        let known = rows
            .zip(cosines)
            .map(|known| (known.0 != u64::MAX).then_some(known));
        Ok(known.collect())
    }

    /// The row of each component that is kept.
    fn keepers(&self, pool: &Pool, copied: &Copied, numbers: &[u32], count: usize) -> Result<Vec<u32>> {
        let scores: Vec<u64> = match self.keep {
            Keep::Central => return Ok(copied.central(numbers, count)),
            Keep::First => vec![0; pool.len()],
            Keep::Largest => self.scores(pool, numbers, count, file_size)?,
            Keep::HighestResolution => self.scores(pool, numbers, count, pixel_count)?,
        };
        let mut keepers: Vec<Option<u32>> = vec![None; count];
        for (place, &number) in numbers.iter().enumerate() {
            let keeper = &mut keepers[number as usize];
            if keeper.is_none_or(|best| scores[place] > scores[best as usize]) {
                *keeper = Some(place as u32);
            }
        }
        Ok(keepers.into_iter().flatten().collect())
    }

    /// `score` of every row that has copies; 0 of the others, whose images need not be read.
    fn scores(
        &self,
        pool: &Pool,
        numbers: &[u32],
        count: usize,
        score: fn(&dyn Source, u64) -> Result<u64>,
    ) -> Result<Vec<u64>> {
        let source = pool
            .origin
            .source(&format!("keep {}", setting_name(&self.keep)))?;
        let sizes = sizes(numbers, count);
        (0..pool.len())
            .into_par_iter()
            .map(|place| match sizes[numbers[place] as usize] {
                1 => Ok(0),
                _ => score(source, pool.row(place)),
            })
            .collect()
    }
}

fn file_size(source: &dyn Source, row: u64) -> Result<u64> {
    let Some(file) = source.file(row) else {
        let reason = "the source has no files; use first, central or highest-resolution";
        return Err(Error::setting("keep largest", reason));
    };
    Ok(std::fs::metadata(&file).map_err(|e| Error::io(&file, e))?.len())
}

fn pixel_count(source: &dyn Source, row: u64) -> Result<u64> {
    let image = source.load(row, &DecodeOptions::for_size())?;
    Ok(u64::from(image.width()) * u64::from(image.height()))
}
