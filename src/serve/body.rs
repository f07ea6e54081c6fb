//! The bodies of requests: received in full within limits on size and time, and within what all of them may hold together.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error::{ApiError, ApiResult};

/// Bytes of one unit of memory.
const UNIT: usize = 1024;
/// How much of a body that is too large is received and thrown away, so that the client reads the answer.
const LINGER_BYTES: usize = 64 << 20;
/// For how long.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// What all bodies and answers may hold together.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    /// Bytes of all of it.
    pub bytes: usize,
    /// What is left, in units of 1 KiB.
    room: Arc<Semaphore>,
}

/// A share of the memory, given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Share(Option<OwnedSemaphorePermit>);

/// Receives bodies.
#[derive(Debug, Clone)]
pub(super) struct Receiver {
    /// Bytes of one body.
    pub most: usize,
    /// Time for one body.
    pub limit: Duration,
    /// What bodies and answers may hold.
    pub memory: Memory,
}

/// A body, and its share of the memory for as long as it is held.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub bytes: Vec<u8>,
    pub share: Share,
}

impl Memory {
    /// `bytes` of it.
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes,
            room: Arc::new(Semaphore::new(bytes.div_ceil(UNIT))),
        }
    }

    /// A share of `bytes`.
    ///
    /// # Errors
    /// 429 where there is no room.
    pub fn take(&self, bytes: usize) -> ApiResult<Share> {
        let mut share = Share::default();
        self.grow(&mut share, bytes)?;
        Ok(share)
    }

    /// Makes `share` one of at least `bytes`.
    fn grow(&self, share: &mut Share, bytes: usize) -> ApiResult<()> {
        let held = share.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = bytes.div_ceil(UNIT).saturating_sub(held);
        if missing == 0 {
            return Ok(());
        }
        let more = u32::try_from(missing)
            .ok()
            .and_then(|missing| Arc::clone(&self.room).try_acquire_many_owned(missing).ok());
        let more =
            more.ok_or_else(|| ApiError::busy("too many bodies and answers at once: come back in a second"))?;
        match &mut share.0 {
            Some(share) => share.merge(more),
            None => share.0 = Some(more),
        }
        Ok(())
    }
}

impl Share {
    /// Gives back what is more than `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        if let Some(share) = &mut self.0 {
            let more = share.num_permits().saturating_sub(bytes.div_ceil(UNIT));
            drop(share.split(more));
        }
    }
}

impl Receiver {
    /// For bodies of at most `most` bytes within `limit`, and `memory` bytes of bodies and answers together.
    pub fn new(most: usize, limit: Duration, memory: usize) -> Self {
        Self {
            most,
            limit,
            memory: Memory::new(memory),
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
            // Whoever waits to be told to go on is told no instead.
            if !headers.contains_key(header::EXPECT) {
                linger(&mut stream).await;
            }
            return Err(self.too_large());
        }
        let mut received = Received::default();
        let read = self.read(&mut stream, &mut received);
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

    /// Memory is taken as bytes come: what a client merely announces holds none.
    async fn read(&self, stream: &mut BodyDataStream, received: &mut Received) -> ApiResult<()> {
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| ApiError::body(format!("body: cut short: {error}")))?;
            let length = received.bytes.len() + chunk.len();
            if length > self.most {
                return Err(self.too_large());
            }
            self.memory.grow(&mut received.share, length)?;
            received.bytes.extend_from_slice(&chunk);
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
pub(super) async fn linger(stream: &mut BodyDataStream) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_taken_grown_and_given_back() {
        let memory = Memory::new(10 * UNIT);
        let mut first = memory.take(1).unwrap();
        assert_eq!(memory.room.available_permits(), 9);
        memory.grow(&mut first, 6 * UNIT + 1).unwrap();
        assert_eq!(memory.room.available_permits(), 3);
        let error = memory.take(4 * UNIT).unwrap_err();
        assert_eq!(error.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(memory.take(usize::MAX).is_err());
        first.shrink(2 * UNIT);
        first.shrink(5 * UNIT);
        assert_eq!(memory.room.available_permits(), 8);
        let second = memory.take(4 * UNIT).unwrap();
        drop((first, second));
        assert_eq!(memory.room.available_permits(), 10);
        assert!(memory.take(0).unwrap().0.is_none());
    }
}
