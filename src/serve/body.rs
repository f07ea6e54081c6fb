//! The bodies of requests: received in full within limits on size and time, and within what all of them may hold together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::{ApiError, ApiResult};

/// Bytes of one unit of the memory for bodies.
const UNIT: usize = 1024;
/// How much of a body that is too large is received and thrown away, so that the client reads the answer.
const LINGER_BYTES: usize = 64 << 20;
/// For how long.
const LINGER: Duration = Duration::from_secs(5);

/// Receives bodies.
#[derive(Debug, Clone)]
pub(super) struct Receiver {
    /// Bytes of one body.
    pub most: usize,
    /// Time for one body.
    pub limit: Duration,
    /// What all bodies may hold, in units of 1 KiB.
    memory: Arc<Semaphore>,
}

/// A body, and its share of the memory for as long as it is held.
#[derive(Debug)]
pub(super) struct Received {
    pub bytes: Vec<u8>,
    pub share: Option<OwnedSemaphorePermit>,
}

impl Receiver {
    /// For bodies of at most `most` bytes within `limit`, and `memory` bytes together.
    pub fn new(most: usize, limit: Duration, memory: usize) -> Self {
        Self {
            most,
            limit,
            memory: Arc::new(Semaphore::new(memory.div_ceil(UNIT))),
        }
    }

    /// Receives `body`.
    ///
    /// # Errors
    /// 413 for one that is too large, 415 for one that is compressed, 408 for one that is too slow, 429 where there is no room, 400
    /// for one that ends early.
    pub async fn receive(&self, headers: &HeaderMap, body: Body) -> ApiResult<Received> {
        if let Some(coding) = headers.get(header::CONTENT_ENCODING)
            && coding != "identity"
        {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_encoding",
                "Content-Encoding: expected none, found one: send bodies as they are",
            ));
        }
        let mut stream = body.into_data_stream();
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > self.most) {
            linger(&mut stream).await;
            return Err(self.too_large());
        }
        let mut received = Received {
            bytes: Vec::new(),
            share: None,
        };
        let read = self.read(&mut stream, announced, &mut received);
        match timeout(self.limit, read).await {
            Ok(Ok(())) => Ok(received),
            Ok(Err(error)) => {
                drop(received);
                if error.status == StatusCode::PAYLOAD_TOO_LARGE
                    || error.status == StatusCode::TOO_MANY_REQUESTS
                {
                    linger(&mut stream).await;
                }
                Err(error)
            }
            Err(_) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                format!(
                    "expected the whole body within {} seconds",
                    self.limit.as_secs_f64()
                ),
            )),
        }
    }

    async fn read(
        &self,
        stream: &mut BodyDataStream,
        announced: Option<usize>,
        received: &mut Received,
    ) -> ApiResult<()> {
        if let Some(length) = announced {
            self.reserve(received, length)?;
        }
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| ApiError::body(format!("body: cut short: {error}")))?;
            let length = received.bytes.len() + chunk.len();
            if length > self.most {
                return Err(self.too_large());
            }
            self.reserve(received, length)?;
            received.bytes.extend_from_slice(&chunk);
        }
        Ok(())
    }

    /// Takes what is missing of the memory for `length` bytes.
    fn reserve(&self, received: &mut Received, length: usize) -> ApiResult<()> {
        let held = received
            .share
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = length.div_ceil(UNIT).saturating_sub(held);
        if missing == 0 {
            return Ok(());
        }
        let more = Arc::clone(&self.memory).try_acquire_many_owned(missing as u32);
        let more = more.map_err(|_| ApiError::busy("too many bodies at once: come back in a second"))?;
        match &mut received.share {
            Some(share) => share.merge(more),
            None => received.share = Some(more),
        }
        Ok(())
    }

    fn too_large(&self) -> ApiError {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("expected a body of at most {} bytes, found more", self.most),
        )
    }
}

/// Throws away some of what is left, since a client that is still sending would not read the answer.
async fn linger(stream: &mut BodyDataStream) {
    let rest = async {
        let mut thrown = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            thrown += chunk.len();
            if thrown > LINGER_BYTES {
                return;
            }
        }
    };
    // What is left after that is the client's trouble.
    let _ = timeout(LINGER, rest).await;
}
