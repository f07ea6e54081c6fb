//! Pairs of a row of the pool and a row it matches, as a table and as pictures to judge them by.

use polars::prelude::{DataFrame, df};

use macula_eval::Error as EvalError;

use super::input::Pool;
use super::origin::Origin;
use crate::Result;
use crate::data::{DecodeOptions, RgbImage};
use crate::draw::{Sheet, Tile};

/// Pairs on a sheet.
const SHOWN: usize = 36;
/// Pairs in a row of the sheet.
const ACROSS: usize = 3;
/// Side of a picture on the sheet, in pixels.
const SIDE: u32 = 112;

/// A row of the pool beside a row of another folder.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// Place among the judged rows of the pool.
    pub(crate) place: usize,
    /// Number of the other folder, and place in it.
    pub(crate) other: (usize, usize),
    /// Cosine similarity.
    pub(crate) similarity: f32,
}

/// `row`, `path`, `against`, `against_row`, `against_path`, `similarity`, from the most similar down.
///
/// # Errors
/// What Polars says.
pub(crate) fn table(pairs: &[Pair], pool: &Pool, others: &[(String, Pool)]) -> Result<DataFrame> {
    let other = |pair: &Pair| (&others[pair.other.0], pair.other.1);
    let table = df!(
        "row" => pairs.iter().map(|pair| pool.row(pair.place)).collect::<Vec<u64>>(),
        "path" => pairs.iter().map(|pair| located(&pool.origin, pool, pair.place)).collect::<Vec<_>>(),
        "against" => pairs.iter().map(|pair| other(pair).0.0.as_str()).collect::<Vec<_>>(),
        "against_row" => pairs.iter().map(|pair| other(pair).0.1.row(other(pair).1)).collect::<Vec<u64>>(),
        "against_path" => pairs
            .iter()
            .map(|pair| located(&other(pair).0.1.origin, &other(pair).0.1, other(pair).1))
            .collect::<Vec<_>>(),
        "similarity" => pairs.iter().map(|pair| pair.similarity).collect::<Vec<f32>>(),
    );
    Ok(table.map_err(EvalError::from)?)
}

fn located(origin: &Origin, pool: &Pool, place: usize) -> String {
    origin.locate(pool.row(place), pool.path(place)).0
}

/// Pictures of pairs spread evenly from the most to the least similar, so that both the sure ones and those at the threshold
/// are seen.
///
/// # Errors
/// Images that cannot be read, with the reason.
pub(crate) fn sheet(pairs: &[Pair], pool: &Pool, others: &[(String, Pool)], title: String) -> Result<Sheet> {
    let step = pairs.len().div_ceil(SHOWN).max(1);
    let picture = |pool: &Pool, place: usize| -> Result<RgbImage> {
        Ok(pool
            .origin
            .source("contact sheet")?
            .load(pool.row(place), &DecodeOptions::default())?)
    };
    let mut tiles: Vec<Tile> = Vec::new();
    for pair in pairs.iter().step_by(step) {
        let (other, place) = (&others[pair.other.0].1, pair.other.1);
        tiles.push(Tile::new(
            picture(pool, pair.place)?,
            format!("row {}", pool.row(pair.place)),
        ));
        let caption = format!("{} · {:.3}", other.row(place), pair.similarity);
        tiles.push(Tile::new(picture(other, place)?, caption));
    }
    let headings: Vec<String> = (0..ACROSS)
        .flat_map(|_| ["pool", "match"])
        .map(str::to_owned)
        .collect();
    Ok(Sheet {
        title,
        notes: vec![format!(
            "{} of {} pairs, from the most similar to the least; row numbers and cosine",
            tiles.len() / 2,
            pairs.len()
        )],
        headings,
        rows: tiles.chunks(2 * ACROSS).map(<[Tile]>::to_vec).collect(),
        side: SIDE,
        lead: false,
    })
}
