//! An index folder that is searched by images or vectors, read again when it is replaced.

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use axum::http::StatusCode;
use image::ImageFormat;
use macula_eval::MatrixView;

use super::config::ServeConfig;
use super::error::{ApiError, ApiResult};
use super::models::{Lane, Models};
use super::wire::{Found, Neighbour, Neighbours, Vectors};
use crate::data::{self, DecodeOptions, Interpolation, Source, resize};
use crate::identity::{self, Made};
use crate::index::{Manifest, OpenIndex};
use crate::{Error, Result};

/// The most neighbours of one query.
const MOST_NEIGHBOURS: usize = 1000;
/// Neighbours of a request that asks for no number.
const USUAL_NEIGHBOURS: usize = 10;
/// The longer side of a picture of what was found, in pixels.
const PICTURE: u32 = 192;

/// The index of a server.
pub(super) struct Search {
    path: PathBuf,
    opened: RwLock<Arc<Opened>>,
    images: Option<Box<dyn Source>>,
    max_pixels: u64,
}

/// An index as it was when it was read.
pub(super) struct Opened {
    index: OpenIndex,
    /// The model and its output by which images are searched, where one fits.
    by: Option<(Arc<Lane>, usize)>,
}

impl Search {
    /// Opens the index of `config`, where it names one.
    ///
    /// # Errors
    /// A folder that is no index or damaged; images of the index that cannot be opened.
    pub fn open(config: &ServeConfig, models: &Models) -> Result<Option<Self>> {
        let Some(path) = &config.index else {
            return match &config.index_images {
                Some(_) => Err(Error::setting("index_images", "expected --index too, found none")),
                None => Ok(None),
            };
        };
        let opened = Opened::read(path, models, config)?;
        let images = config.index_images.as_deref().map(data::open).transpose()?;
        Ok(Some(Self {
            path: path.clone(),
            opened: RwLock::new(Arc::new(opened)),
            images,
            max_pixels: config.decode.max_pixels,
        }))
    }

    /// Reads the index again; the old one stays where that fails. Gives its number of rows.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn reload(&self, models: &Models, config: &ServeConfig) -> Result<usize> {
        let new = Arc::new(Opened::read(&self.path, models, config)?);
        let rows = new.index.rows.len();
        *self.opened.write().unwrap_or_else(|e| e.into_inner()) = new;
        Ok(rows)
    }

    /// The index as it is now; a request keeps it while another takes its place.
    pub fn now(&self) -> Arc<Opened> {
        Arc::clone(&self.opened.read().unwrap_or_else(|e| e.into_inner()))
    }

    /// A small PNG of the image of `row` of the index's source.
    ///
    /// # Errors
    /// 404 where the images are not here, not those of the index, or not to be read.
    pub fn picture(&self, row: u64) -> ApiResult<Vec<u8>> {
        let missing = |message: &str| ApiError::new(StatusCode::NOT_FOUND, "not_found", message);
        let images = self
            .images
            .as_ref()
            .ok_or_else(|| missing("no images of the index are served"))?;
        let now = self.now();
        let place = now.index.rows.iter().position(|known| *known == row);
        let place = place.ok_or_else(|| missing("the index has no such row"))?;
        if row >= images.len() || images.record(row).path != now.index.paths[place] {
            return Err(missing("the images that are served are not those of the index"));
        }
        let options = DecodeOptions {
            max_pixels: self.max_pixels,
            ..DecodeOptions::default()
        };
        let image = images
            .load(row, &options)
            .map_err(|_| missing("this image cannot be read"))?;
        let (width, height) = (image.width(), image.height());
        let longer = f64::from(width.max(height));
        let scale = (f64::from(PICTURE) / longer).min(1.0);
        let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let small = resize(&image.view(), side(width), side(height), Interpolation::Bilinear);
        let small = small.ok_or_else(|| ApiError::server("a picture without pixels"))?;
        let (width, height) = (small.width(), small.height());
        let buffer = image::RgbImage::from_raw(width, height, small.into_data());
        let buffer = buffer.ok_or_else(|| ApiError::server("a picture without pixels"))?;
        let mut png = Cursor::new(Vec::new());
        buffer
            .write_to(&mut png, ImageFormat::Png)
            .map_err(|e| ApiError::server(format!("picture: {e}")))?;
        Ok(png.into_inner())
    }

    /// Whether pictures can be had.
    pub fn has_pictures(&self) -> bool {
        self.images.is_some()
    }
}

impl Opened {
    fn read(path: &std::path::Path, models: &Models, config: &ServeConfig) -> Result<Self> {
        let manifest = Manifest::read(path)?;
        let index = OpenIndex::open(path, manifest.dim)?;
        let name = path.display().to_string();
        let fits: Vec<(Arc<Lane>, usize)> = models
            .lanes()
            .iter()
            .filter_map(|lane| {
                let place = lane.output(Some(&manifest.column)).ok()?;
                (lane.outputs[place].width() == manifest.dim).then(|| (Arc::clone(lane), place))
            })
            .collect();
        let mut judged = Vec::new();
        for (lane, place) in fits {
            judged.push((unfair(&lane, &manifest, &name, config)?, lane, place));
        }
        judged.sort_by_key(|(notices, ..)| notices.len());
        let by = judged.into_iter().next().map(|(notices, lane, place)| {
            for notice in notices {
                tracing::warn!("{notice}");
            }
            (lane, place)
        });
        if by.is_none() {
            tracing::warn!(
                "{name}: no model has an output `{}` of width {}: it is searched by vectors alone",
                manifest.column,
                manifest.dim
            );
        }
        Ok(Self { index, by })
    }

    /// The model and the place of its output by which images are searched.
    ///
    /// # Errors
    /// 400 where no model fits.
    pub fn by(&self) -> ApiResult<(&Arc<Lane>, usize)> {
        self.by
            .as_ref()
            .map(|(lane, place)| (lane, *place))
            .ok_or_else(|| {
                let found = &self.index.manifest;
                ApiError::field(
                    "input",
                    format!(
                        "no model here has an output `{}` of width {}: search by `vector`",
                        found.column, found.dim
                    ),
                )
            })
    }

    /// The nearest rows of each of `queries`.
    ///
    /// # Errors
    /// 400 for vectors of another width or a number of neighbours out of range.
    pub fn search(&self, queries: &Vectors, k: Option<usize>, model: Option<String>) -> ApiResult<Found> {
        let (index, dim) = (&self.index, self.index.manifest.dim);
        let found = queries.data.len() / queries.n.max(1);
        if found != dim {
            return Err(ApiError::field(
                "vector",
                format!("expected {dim} numbers, the width of the index, found {found}"),
            ));
        }
        let most = index.rows.len().min(MOST_NEIGHBOURS);
        let k = k.unwrap_or(USUAL_NEIGHBOURS.min(most));
        if !(1..=most).contains(&k) {
            return Err(ApiError::field("k", format!("expected 1 to {most}, found {k}")));
        }
        let failed = |e: macula_eval::Error| ApiError::field("vector", e.to_string());
        let view = MatrixView::new(&queries.data, queries.n, dim).map_err(failed)?;
        let hits = index.index.search(view, k, index.ef(None, k)).map_err(failed)?;
        let data = hits.into_iter().enumerate().map(|(place, hits)| Neighbours {
            object: "neighbours",
            index: place,
            hits: hits
                .into_iter()
                .map(|hit| {
                    let row = hit.row as usize;
                    Neighbour {
                        row: index.rows[row],
                        path: index.paths[row].clone(),
                        label: index.labels[row].clone(),
                        similarity: hit.similarity,
                    }
                })
                .collect(),
        });
        Ok(Found {
            object: "list",
            data: data.collect(),
            model,
        })
    }
}

/// Why rows of an index and images of a model are not made alike, a line each. How many pixels an image may have changes none.
fn unfair(lane: &Lane, manifest: &Manifest, name: &str, config: &ServeConfig) -> Result<Vec<String>> {
    let made = manifest.fingerprint.as_ref();
    let max_pixels = made.and_then(|made| made.decoding()["max_pixels"].as_u64());
    let decode = DecodeOptions {
        max_pixels: max_pixels.unwrap_or(config.decode.max_pixels),
        ..lane.recipe.preprocess.decode_options(&config.decode)
    };
    let own = identity::preprocess_of(&lane.recipe.preprocess, &decode)?;
    let model = Made {
        name: &lane.name,
        model: &lane.description,
        preprocess: Some(&own),
    };
    let rows = Made {
        name,
        model: &manifest.model,
        preprocess: made.map(|made| &made.preprocess),
    };
    Ok(identity::unfair(&model, &rows))
}
