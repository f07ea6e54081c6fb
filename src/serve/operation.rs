//! A server's life: opened, ready, reloaded on SIGHUP, and stopped on SIGTERM or SIGINT so that no request is lost.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{SigId, flag, low_level};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::access::Ids;
use super::auth::Keys;
use super::body::Receiver;
use super::config::ServeConfig;
use super::connections::{Connections, Stage};
use super::decode::Workers;
use super::metrics::Metrics;
use super::models::Models;
use super::routes::{self, App};
use super::search::Search;
use super::tls::Tls;
use crate::{Error, Result};

/// How often signals are looked for.
const LOOK: Duration = Duration::from_millis(50);
/// The most threads that connections are served by; images are decoded elsewhere.
const MOST_THREADS: usize = 4;

/// Signals since they were looked for last.
struct Signals {
    /// Whether there is nothing to stop yet: a signal then ends the process, as it would without us.
    starting: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    handlers: Vec<SigId>,
}

/// Serves until it is asked to stop. The address is printed once connections are taken.
///
/// The first SIGTERM or SIGINT makes it not ready, closes connections behind their answers, and ends when every request is answered; a
/// second one ends it at once. SIGHUP reads keys, certificate and index again.
///
/// # Errors
/// A setting that cannot be used, a model that cannot be opened, an address that is taken; requests that were cut off by a second
/// signal or after the time of grace.
pub fn serve(config: &ServeConfig) -> Result<()> {
    config.limits.validate()?;
    let signals = Signals::listen()?;
    let keys = Keys::read(&config.secrets)?;
    let tls = Tls::read(&config.listen)?.map(Arc::new);
    let address = SocketAddr::new(config.listen.host, config.listen.port);
    let listener =
        TcpListener::bind(address).map_err(|e| Error::input(address.to_string(), e.to_string()))?;
    let metrics = Arc::new(Metrics::default());
    let models = Models::open(config, &metrics)?;
    let search = Search::open(config, &models)?;
    let (stage, told) = watch::channel(Stage::Serving);
    let seconds = Duration::from_secs_f64;
    let limits = &config.limits;
    let app = Arc::new(App {
        models,
        search,
        by_address: keys.open() && config.listen.host.is_loopback(),
        keys,
        workers: Workers::start(config.options.threads, Arc::clone(&metrics))?,
        receiver: Receiver::new(
            limits.max_body << 20,
            seconds(limits.body_timeout),
            limits.body_memory << 20,
        ),
        metrics: Arc::clone(&metrics),
        ids: Ids::new(),
        limits: limits.clone(),
        log_format: config.log_format,
        stage: told.clone(),
    });
    let connections = Connections {
        router: routes::router(&app),
        tls: tls.clone(),
        metrics,
        most: limits.connections,
        header_timeout: seconds(limits.header_timeout),
        write_timeout: seconds(limits.body_timeout),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(MOST_THREADS))
        .thread_name("connections")
        .enable_all()
        .build()
        .map_err(|e| Error::failed("threads for connections", e.to_string()))?;
    let life = Life {
        app: Arc::clone(&app),
        tls,
        config,
        stage,
        signals,
    };
    let cut = runtime.block_on(life.run(connections, listener, told));
    app.models.close();
    // Whatever still computes is of no use to anybody.
    runtime.shutdown_background();
    match cut? {
        0 => {
            tracing::info!("stopped: every request was answered");
            Ok(())
        }
        cut => Err(Error::failed(
            "serve",
            format!("stopped before every request was answered: {cut} connections were cut off"),
        )),
    }
}

/// A server while it runs.
struct Life<'a> {
    app: Arc<App>,
    tls: Option<Arc<Tls>>,
    config: &'a ServeConfig,
    stage: watch::Sender<Stage>,
    signals: Signals,
}

impl Life<'_> {
    /// Serves until the end; gives the number of connections that were cut off.
    async fn run(
        self,
        connections: Connections,
        listener: TcpListener,
        told: watch::Receiver<Stage>,
    ) -> Result<usize> {
        let failed = |e: std::io::Error| Error::failed("listen", e.to_string());
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        self.signals.started();
        self.announce(address)?;
        let serving = std::pin::pin!(connections.serve(listener, told));
        let watching = std::pin::pin!(self.watch());
        match select(serving, watching).await {
            Either::Left((cut, _)) => Ok(cut),
            Either::Right(((), serving)) => Ok(serving.await),
        }
    }

    fn announce(&self, address: SocketAddr) -> Result<()> {
        for lane in self.app.models.lanes() {
            let outputs: Vec<String> = lane
                .outputs
                .iter()
                .map(|output| format!("{} {:?}", output.name, output.shape))
                .collect();
            let (height, width) = lane.size;
            tracing::info!(
                "model {}: images of {height}x{width}, outputs {}, a queue of {}",
                lane.name,
                outputs.join(", "),
                lane.room
            );
        }
        if self.app.keys.open() && !address.ip().is_loopback() {
            tracing::warn!(
                "{address} can be reached from elsewhere, and there is no --api-key: everyone may ask"
            );
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut stdout = std::io::stdout().lock();
        // Whoever started it may not listen.
        let _ = writeln!(stdout, "{scheme}://{address}");
        let _ = stdout.flush();
        Ok(())
    }

    /// Looks for signals, and ends the server stage by stage.
    async fn watch(&self) {
        while !self.signals.stopped() {
            if self.signals.reloads() {
                self.reload().await;
            }
            sleep(LOOK).await;
        }
        tracing::info!("asked to stop: not ready any more");
        let limits = &self.config.limits;
        self.stage.send_replace(Stage::Draining);
        if self.again_within(limits.drain).await {
            return self.end();
        }
        self.stage.send_replace(Stage::Closing);
        self.again_within(limits.grace).await;
        self.end();
    }

    fn end(&self) {
        self.stage.send_replace(Stage::Ended);
    }

    /// Whether a second signal came within so many seconds.
    async fn again_within(&self, seconds: f64) -> bool {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < until {
            if self.signals.stopped() {
                return true;
            }
            sleep(LOOK.min(until.saturating_duration_since(Instant::now()))).await;
        }
        false
    }

    /// Reads keys, certificate and index again, each for itself: one that cannot be used leaves what was there.
    async fn reload(&self) {
        let (app, tls, config) = (Arc::clone(&self.app), self.tls.clone(), self.config.clone());
        let done = tokio::task::spawn_blocking(move || {
            let said = |what: &str, result: Result<String>| match result {
                Ok(done) => tracing::info!("reload: {what}: {done}"),
                Err(error) => tracing::warn!("reload: {what}: {error}; what was there stays"),
            };
            said("keys", app.keys.reload().map(|count| count.to_string()));
            if let Some(tls) = &tls {
                said("certificate", tls.reload().map(|()| "read".to_owned()));
            }
            if let Some(search) = &app.search {
                said(
                    "index",
                    search
                        .reload(&app.models, &config)
                        .map(|rows| format!("{rows} rows")),
                );
            }
        });
        if done.await.is_err() {
            tracing::warn!("reload: given up; what was there stays");
        }
    }
}

impl Signals {
    /// Listens from now on. Opening models may take long: until [`Self::started`] the first signal ends the process.
    fn listen() -> Result<Self> {
        let mut signals = Self {
            starting: Arc::new(AtomicBool::new(true)),
            stop: Arc::default(),
            reload: Arc::default(),
            handlers: Vec::new(),
        };
        for signal in [SIGINT, SIGTERM] {
            let handler = flag::register_conditional_default(signal, Arc::clone(&signals.starting));
            signals
                .handlers
                .push(handler.map_err(|e| Error::failed("signals", e.to_string()))?);
            signals.add(signal, Arc::clone(&signals.stop))?;
        }
        #[cfg(unix)]
        signals.add(signal_hook::consts::SIGHUP, Arc::clone(&signals.reload))?;
        Ok(signals)
    }

    fn add(&mut self, signal: i32, told: Arc<AtomicBool>) -> Result<()> {
        let handler = flag::register(signal, told);
        self.handlers
            .push(handler.map_err(|e| Error::failed("signals", e.to_string()))?);
        Ok(())
    }

    /// From now on a signal asks to stop.
    fn started(&self) {
        self.starting.store(false, Ordering::SeqCst);
    }

    fn stopped(&self) -> bool {
        self.stop.swap(false, Ordering::SeqCst)
    }

    fn reloads(&self) -> bool {
        self.reload.swap(false, Ordering::SeqCst)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            low_level::unregister(handler);
        }
    }
}
