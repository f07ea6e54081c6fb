//! Connections: accepted up to a number, made secret, and given HTTP/1 with limits on the time that a client may take for its headers
//! and for reading what it is sent. What a request may take beyond that is for its route.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use futures_util::future::{Either, select};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::metrics::Metrics;
use super::tls::Tls;

/// The most headers of a request.
const MOST_HEADERS: usize = 64;
/// No more is read of headers that are this long and not at their end. The last read may bring half as much again.
const HEADER_BYTES: usize = 32 << 10;
/// Pause after a connection could not be accepted, for instance since there are too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// How long nobody must have come before a server that stops hangs up.
const LAST: Duration = Duration::from_millis(5);

/// How far a server is in stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Serves.
    Serving,
    /// Is not ready any more, still accepts, and closes each connection behind its next answer.
    Draining,
    /// Accepts nothing more and answers what it has.
    Closing,
    /// Ends at once.
    Ended,
}

/// What every connection needs.
pub(super) struct Connections {
    pub router: Router,
    pub tls: Option<Arc<Tls>>,
    pub metrics: Arc<Metrics>,
    /// Connections at a time.
    pub most: usize,
    /// Time for headers and for a TLS handshake.
    pub header_timeout: Duration,
    /// Time for a client to take something of what it is sent.
    pub write_timeout: Duration,
}

impl Connections {
    /// Serves `listener` until `stage` ends it; gives the number of connections that were cut off.
    pub async fn serve(self, listener: TcpListener, stage: watch::Receiver<Stage>) -> usize {
        let room = Arc::new(Semaphore::new(self.most));
        let own = Arc::new(self);
        let mut tasks = JoinSet::new();
        loop {
            let closing = std::pin::pin!(reached(stage.clone(), Stage::Closing));
            let next = std::pin::pin!(accept(&listener, &room));
            match select(next, closing).await {
                Either::Left((Some((stream, place)), _)) => {
                    tasks.spawn(Arc::clone(&own).connection(stream, place, stage.clone()));
                }
                Either::Left((None, _)) => sleep(PAUSE).await,
                Either::Right(_) => break,
            }
            while tasks.try_join_next().is_some() {}
        }
        // Whoever was let in by the system already is served; a connection after that is refused by it.
        let until = Instant::now() + 4 * PAUSE;
        while Instant::now() < until
            && let Ok(Ok((stream, _))) = timeout(LAST, listener.accept()).await
        {
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                break;
            };
            tasks.spawn(Arc::clone(&own).connection(stream, place, stage.clone()));
        }
        drop(listener);
        let ended = std::pin::pin!(reached(stage, Stage::Ended));
        let all = std::pin::pin!(async { while tasks.join_next().await.is_some() {} });
        match select(all, ended).await {
            Either::Left(_) => 0,
            Either::Right(_) => own.metrics.connections.get().max(0) as usize,
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        stage: watch::Receiver<Stage>,
    ) {
        let _place = place;
        let _held = self.metrics.connections.hold();
        // Answers are written whole: there is nothing to wait for.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.http(stream, stage).await,
            Some(tls) => {
                let secret = timeout(self.header_timeout, tls.acceptor().accept(stream)).await;
                if let Ok(Ok(stream)) = secret {
                    self.http(stream, stage).await;
                }
            }
        }
    }

    async fn http<S>(&self, stream: S, stage: watch::Receiver<Stage>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(Patient::new(stream, self.write_timeout));
        let service = TowerToHyperService::new(self.router.clone());
        let mut connection = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.header_timeout)
                .max_headers(MOST_HEADERS)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(stream, service)
        );
        let closing = std::pin::pin!(reached(stage, Stage::Closing));
        // What a client does wrong on its connection is its own trouble: the connection ends.
        if let Either::Right(_) = select(connection.as_mut(), closing).await {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Waits until a server is as far in stopping as `least`, or gone.
pub(super) async fn reached(mut stage: watch::Receiver<Stage>, least: Stage) {
    // An error: whoever would tell it is gone.
    let _ = stage.wait_for(|stage| *stage >= least).await;
}

/// The next connection, once there is room for it; none where the system refuses.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!("accept: {error}");
            None
        }
    }
}

/// A stream whose writes fail when the other side does not take within the limit what is buffered for it, however little at a time
/// it takes. Long answers come in pieces, so that is never much.
struct Patient<S> {
    stream: S,
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S> Patient<S> {
    fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            sleep: Box::pin(sleep(limit)),
            waiting: false,
        }
    }

    /// `done`, or an error where the other side has been waited for too long.
    fn within<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            return done;
        }
        if !self.waiting {
            self.waiting = true;
            let until = Instant::now() + self.limit;
            self.sleep.as_mut().reset(until);
        }
        match self.sleep.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The same for what says that all is taken.
    fn finished(&mut self, context: &mut Context<'_>, done: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if done.is_ready() {
            self.waiting = false;
        }
        self.within(context, done)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.finished(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.finished(context, ended)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.within(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
