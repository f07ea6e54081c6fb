//! What lies beside what: rows and their nearest by cosine, as pictures. A neighbour with the row's label is right, another
//! wrong; without labels nothing is marked.

use std::path::{Path, PathBuf};

use macula_eval::linalg::nearest_neighbours;
use macula_eval::linalg::normalise::l2_normalise;

use super::images::Choice;
use crate::data::{DecodeOptions, RgbImage, SampleRange, Source};
use crate::draw::{Mark, Sheet, Tile};
use crate::extract::FeatureFolder;
use crate::extract::folder::Features;
use crate::extract::{default_column, read_column};
use crate::{Error, Result, data};

/// A feature folder and the images it was made from.
#[derive(Debug, Clone)]
pub struct Pictured {
    /// The feature folder.
    pub features: PathBuf,
    /// The source of its images.
    pub data: String,
}

/// How the picture is made.
#[derive(Debug, Clone)]
pub struct NeighboursOptions {
    /// The rows that are searched.
    pub database: Pictured,
    /// The rows that are searched for; the database's own, each without itself, where there are none.
    pub queries: Option<Pictured>,
    /// Column of features; `cls`, or else the first, where there is none.
    pub column: Option<String>,
    /// Neighbours of a query, at least 1.
    pub k: usize,
    /// Side of a tile in pixels.
    pub side: u32,
}

/// How many neighbours have their query's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// Neighbours with the query's label.
    pub right: usize,
    /// Neighbours that have a label, as their query has.
    pub labelled: usize,
}

/// A side of the search: features, and the images they belong to.
struct Side {
    name: String,
    features: Features,
    source: Box<dyn Source>,
    /// What samples of more than 8 bits were for the features.
    sample_range: SampleRange,
}

/// Draws chosen rows and their nearest into `out`.
///
/// # Errors
/// Folders that do not fit each other or their sources, a k that is out of range, or images that cannot be read.
pub fn neighbours(
    choice: &Choice,
    decode: &DecodeOptions,
    options: &NeighboursOptions,
    out: &Path,
) -> Result<Right> {
    let folder = FeatureFolder::open(&options.database.features)?;
    let column = options.column.clone().unwrap_or_else(|| default_column(&folder));
    let database = Side::open(&options.database, &folder, &column)?;
    let queries = match &options.queries {
        Some(pictured) => {
            let asking = FeatureFolder::open(&pictured.features)?;
            asking.notice_unfair(&folder);
            Some(Side::open(pictured, &asking, &column)?)
        }
        None => None,
    };
    let query_side = queries.as_ref().unwrap_or(&database);
    let places = query_side.places(choice)?;
    let left_out = usize::from(queries.is_none());
    let n = database.features.rows.len();
    if options.k == 0 || options.k + left_out > n {
        let max = n - left_out.min(n);
        return Err(Error::setting(
            "k",
            format!("expected 1 to {max} neighbours, found {}", options.k),
        ));
    }
    let rows = query_side.features.matrix.view().select(&places);
    let (rows, base) = (
        l2_normalise(rows.view())?,
        l2_normalise(database.features.matrix.view())?,
    );
    let found = nearest_neighbours(rows.view(), base.view(), options.k + left_out)?;
    let mut right = Right {
        right: 0,
        labelled: 0,
    };
    let mut sheet_rows = Vec::with_capacity(places.len());
    for (query, &place) in places.iter().enumerate() {
        let label = &query_side.features.labels[place];
        let mut tiles = vec![Tile::new(
            query_side.picture(place, decode)?,
            query_side.name_of(place),
        )];
        let hits = found.indices_of(query).iter().zip(found.similarities_of(query));
        let others = hits.filter(|(hit, _)| left_out == 0 || **hit as usize != place);
        for (&hit, similarity) in others.take(options.k) {
            let hit = hit as usize;
            let mark = match (label, &database.features.labels[hit]) {
                (Some(label), Some(found)) if label == found => Mark::Right,
                (Some(_), Some(_)) => Mark::Wrong,
                _ => Mark::None,
            };
            right.right += usize::from(mark == Mark::Right);
            right.labelled += usize::from(mark != Mark::None);
            tiles.push(Tile {
                mark,
                ..Tile::new(
                    database.picture(hit, decode)?,
                    format!("{} · {similarity:.2}", database.name_of(hit)),
                )
            });
        }
        sheet_rows.push(tiles);
    }
    sheet(&folder, &column, right, sheet_rows, options).save(out)?;
    Ok(right)
}

impl Side {
    fn open(pictured: &Pictured, folder: &FeatureFolder, column: &str) -> Result<Self> {
        let features = read_column(folder, column)?;
        let source = data::open(&pictured.data)?;
        let sample_range = folder.meta().preprocess.get("sample_range").cloned();
        let sample_range = sample_range.and_then(|range| serde_json::from_value(range).ok());
        folder.check_source((&features.rows, &features.paths), source.as_ref(), &pictured.data)?;
        Ok(Self {
            sample_range: sample_range.unwrap_or_default(),
            name: folder.path().display().to_string(),
            features,
            source,
        })
    }

    /// Places among the features of the chosen rows of the source.
    fn places(&self, choice: &Choice) -> Result<Vec<usize>> {
        if choice.rows.is_empty() {
            // Drawn among the rows that have features.
            let drawn = choice.rows_in(self.features.rows.len() as u64, &self.name)?;
            return Ok(drawn.into_iter().map(|place| place as usize).collect());
        }
        let find = |row: u64| {
            let place = self.features.rows.binary_search(&row);
            place.map_err(|_| {
                Error::setting(
                    "rows",
                    format!(
                        "expected rows of {}, found {row}, which has no features",
                        self.name
                    ),
                )
            })
        };
        choice
            .rows_in(self.source.len(), &self.name)?
            .into_iter()
            .map(find)
            .collect()
    }

    fn picture(&self, place: usize, decode: &DecodeOptions) -> Result<RgbImage> {
        let decode = DecodeOptions {
            sample_range: self.sample_range,
            ..*decode
        };
        Ok(self.source.load(self.features.rows[place], &decode)?)
    }

    fn name_of(&self, place: usize) -> &str {
        self.features.labels[place]
            .as_deref()
            .unwrap_or(&self.features.paths[place])
    }
}

fn sheet(
    folder: &FeatureFolder,
    column: &str,
    right: Right,
    rows: Vec<Vec<Tile>>,
    options: &NeighboursOptions,
) -> Sheet {
    let model = folder.meta().model.clone();
    let model = model
        .get("file")
        .or(model.get("kind"))
        .and_then(|name| name.as_str())
        .unwrap_or("features")
        .to_owned();
    let mut notes = vec![format!(
        "each row: an image and its {} nearest by cosine, from near to far",
        options.k
    )];
    if right.labelled > 0 {
        notes.push(format!(
            "{} of {} neighbours have the image's label: blue border and tick; the others: dashed border and cross",
            right.right, right.labelled
        ));
    }
    Sheet {
        title: format!("Nearest neighbours · {model}, {column}"),
        notes,
        rows,
        side: options.side,
        lead: true,
        ..Sheet::default()
    }
}
