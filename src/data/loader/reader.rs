//! The image of a place in the run: read, or, where it cannot be, another one in its place. Which one is drawn from the
//! number of the place alone, so that neither threads nor what is already known to be damaged changes it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use super::cache::ImageCache;
use super::order::Image;
use super::{BadRow, LoaderConfig, OnError};
use crate::data::augment::multi_crop;
use crate::data::{DecodeOptions, Image as Decoded, RowError, Source};
use crate::{Error, Result, rng};

/// Rows drawn in place of one that cannot be read, before the source is given up.
const MAX_DRAWS: usize = 1000;

/// Reads images, remembers those that cannot be read, and keeps decoded ones.
pub(super) struct Reader {
    source: Arc<dyn Source>,
    options: DecodeOptions,
    on_error: OnError,
    view_epochs: u64,
    seed: u64,
    cache: ImageCache,
    bad: Mutex<BTreeMap<u64, RowError>>,
}

/// An image and the generator of its crops.
pub(super) struct Loaded {
    /// The row it came from.
    pub row: u64,
    /// The pass that its crops are of, where the generator is of row and pass alone.
    pub view: Option<u64>,
    pub image: Decoded,
    pub rng: ChaCha8Rng,
}

impl Reader {
    /// Reads from `source`, keeping up to `cache_bytes` of samples.
    pub(super) fn new(source: Arc<dyn Source>, config: &LoaderConfig, seed: u64, cache_bytes: usize) -> Self {
        let cache_bytes = if source.in_memory() { 0 } else { cache_bytes };
        Self {
            source,
            options: config.decode(),
            on_error: config.on_error,
            view_epochs: config.view_epochs,
            seed,
            cache: ImageCache::new(cache_bytes),
            bad: Mutex::default(),
        }
    }

    /// The image of a place in the run, or under [`OnError::Skip`] one in its stead.
    ///
    /// # Errors
    /// Names the file when it cannot be read and [`OnError::Fail`] is set, or when no other can be read either.
    pub(super) fn read(&self, place: Image, stopped: &AtomicBool) -> Result<Loaded> {
        // Without a number of passes every pass is its own.
        let view = place.epoch.checked_rem(self.view_epochs).unwrap_or(place.epoch);
        match self.load(place.row) {
            Ok(image) => Ok(Loaded {
                row: place.row,
                view: Some(view),
                image,
                rng: multi_crop::stream(self.seed, view, place.row),
            }),
            Err(error) if self.on_error == OnError::Fail => Err(Error::failed(
                error.path,
                format!("{} (row {})", error.reason, place.row),
            )),
            Err(error) => self.read_another(place, stopped).ok_or_else(|| {
                let row = place.row;
                let reason = format!(
                    "{} (row {row}), and no image drawn in its place can be read either",
                    error.reason
                );
                Error::failed(error.path, reason)
            }),
        }
    }

    /// Every row that could not be read so far, in the source's order.
    pub(super) fn bad_count(&self) -> usize {
        self.bad().len()
    }

    pub(super) fn bad_rows(&self) -> Vec<BadRow> {
        let bad = self.bad();
        let entries = bad.iter();
        entries
            .map(|(&row, error)| BadRow {
                row,
                error: error.clone(),
            })
            .collect()
    }

    /// The first readable image of those drawn for `place`. Its crops are drawn on from the same generator: with those of
    /// its own place in the epoch, a batch could hold the same crops twice.
    fn read_another(&self, place: Image, stopped: &AtomicBool) -> Option<Loaded> {
        let mut rng = rng::stream(self.seed, "replacement", place.number);
        let rows = self.source.len();
        for _ in 0..MAX_DRAWS {
            if stopped.load(Ordering::Relaxed) || self.bad().len() as u64 == rows {
                return None;
            }
            let row = rng.random_range(0..rows);
            if let Ok(image) = self.load(row) {
                return Some(Loaded {
                    row,
                    view: None,
                    image,
                    rng,
                });
            }
        }
        None
    }

    fn load(&self, row: u64) -> std::result::Result<Decoded, RowError> {
        if let Some(image) = self.cache.get(row) {
            return Ok(image);
        }
        if let Some(error) = self.bad().get(&row) {
            return Err(error.clone());
        }
        match self.source.load_image(row, &self.options) {
            Ok(image) => {
                self.cache.put(row, &image);
                Ok(image)
            }
            Err(error) => {
                self.remember(row, &error);
                Err(error)
            }
        }
    }

    /// Enters a row among the bad ones, and names its file the first time.
    fn remember(&self, row: u64, error: &RowError) {
        if self.bad().insert(row, error.clone()).is_none() && self.on_error == OnError::Skip {
            tracing::warn!("{error} (row {row}); another image takes its place");
        }
    }

    fn bad(&self) -> MutexGuard<'_, BTreeMap<u64, RowError>> {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
