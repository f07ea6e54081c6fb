//! Decoding on threads of their own, so that neither connections nor models wait for a large image: each image becomes the network
//! input that `extract` would make of it.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use super::body::Share;
use super::error::{ApiError, ApiResult};
use super::metrics::Metrics;
use crate::data::{DecodeOptions, Preprocess, decode};
use crate::quiet::quietly;
use crate::{Error, Result};

/// Threads that decode, and read and write large bodies.
#[derive(Clone)]
pub(super) struct Workers {
    pool: Arc<ThreadPool>,
    metrics: Arc<Metrics>,
}

/// How the images of a model are made.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    /// Bytes to pixels.
    pub decode: DecodeOptions,
    /// Pixels to network input; it has a crop.
    pub preprocess: Preprocess,
    /// Values of one image, `3 * H * W`.
    pub len: usize,
}

impl Workers {
    /// `threads` of them; 0 for as many as there are cores.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(threads: usize, metrics: Arc<Metrics>) -> Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("decode-{number}"))
            .build()
            .map_err(|e| Error::failed("threads for decoding", e.to_string()))?;
        Ok(Self {
            pool: Arc::new(pool),
            metrics,
        })
    }

    /// Runs `work` there; a panic of it is an error of this request alone. Work whose request is gone is not begun.
    ///
    /// # Errors
    /// What `work` says.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let (answer, result) = oneshot::channel();
        let metrics = Arc::clone(&self.metrics);
        self.pool.spawn(move || {
            if answer.is_closed() {
                return;
            }
            let done = quietly(work).unwrap_or_else(|_| {
                metrics.panics.add(1);
                Err(ApiError::server(
                    "this request made the server stumble; others were not touched",
                ))
            });
            // Nobody may be left to be told.
            let _ = answer.send(done);
        });
        result
            .await
            .unwrap_or_else(|_| Err(ApiError::unavailable("the server stops")))
    }

    /// The network input of each image, `[3, H, W]`, in order. The images' share of the memory is held until the last of them is
    /// gone, also where nobody waits for them any more.
    ///
    /// # Errors
    /// The first image that cannot be read, by its place.
    pub async fn prepare(
        &self,
        images: Vec<Vec<u8>>,
        share: Share,
        recipe: &Arc<Recipe>,
    ) -> ApiResult<Vec<Vec<f32>>> {
        let share = Arc::new(share);
        let work = images.into_iter().enumerate().map(|(place, bytes)| {
            let (recipe, metrics, share) =
                (Arc::clone(recipe), Arc::clone(&self.metrics), Arc::clone(&share));
            self.run(move || {
                let _share = share;
                metrics.decode_seconds.time(|| prepared(place, bytes, &recipe))
            })
        });
        let prepared = futures_util::future::join_all(work).await;
        prepared.into_iter().collect()
    }
}

/// The network input of one image.
fn prepared(place: usize, bytes: Vec<u8>, recipe: &Recipe) -> ApiResult<Vec<f32>> {
    let field = || format!("input[{place}]");
    let refused = |message: String| ApiError {
        code: "invalid_image",
        ..ApiError::field(field(), message)
    };
    let image = decode(&bytes, &recipe.decode).map_err(|error| refused(error.to_string()))?;
    drop(bytes);
    let mut pixels = vec![0.0; recipe.len]; // [3, H, W]
    let written = recipe.preprocess.write_tensor(&image, &mut pixels);
    written.map_err(|error| refused(error.to_string()))?;
    Ok(pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_answer_and_its_thread_goes_on() {
        let metrics = Arc::new(Metrics::default());
        let workers = Workers::start(1, Arc::clone(&metrics)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let panicked = runtime.block_on(workers.run::<()>(|| panic!("as asked")));
        assert_eq!(panicked.unwrap_err().status.as_u16(), 500);
        assert_eq!(metrics.panics.get(), 1);
        assert_eq!(runtime.block_on(workers.run(|| Ok(7))).unwrap(), 7);
    }
}
