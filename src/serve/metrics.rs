//! What happened, in numbers, as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Upper bounds of times, in seconds.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Upper bounds of batches, in images.
const IMAGES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// A number that grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicI64);

/// How values are spread.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// Values up to each bound, and above all of them.
    counts: Vec<AtomicU64>,
    /// Sum in millionths.
    sum: AtomicU64,
}

/// A gauge that is one higher while this lives.
pub(super) struct Held<'a>(&'a Gauge);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more until the answer is dropped.
    pub fn hold(&self) -> Held<'_> {
        self.add(1);
        Held(self)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.add(-1);
    }
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Takes up a value of at least 0.
    pub fn observe(&self, value: f64) {
        let place = self.bounds.iter().position(|bound| value <= *bound);
        self.counts[place.unwrap_or(self.bounds.len())].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    /// Takes up a time.
    pub fn took(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    /// Takes up the time of `work`.
    pub fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.took(start.elapsed());
        done
    }

    fn write(&self, name: &str, help: &str, text: &mut String) {
        head(name, help, "histogram", text);
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        let all = below + self.counts[self.bounds.len()].load(Ordering::Relaxed);
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(
            text,
            "{name}_bucket{{le=\"+Inf\"}} {all}\n{name}_sum {sum}\n{name}_count {all}"
        );
    }
}

/// The numbers of one server.
#[derive(Debug)]
pub(super) struct Metrics {
    /// Answers by route and status; routes are those that there are, so the table is small.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// From the first byte of a request's body to its answer.
    pub request_seconds: Histogram,
    /// Images that were answered with features.
    pub images: Counter,
    /// Decoding and preparing one image.
    pub decode_seconds: Histogram,
    /// From the queue to the model, for each image.
    pub queue_seconds: Histogram,
    /// One run of a model.
    pub model_seconds: Histogram,
    /// Images of one run.
    pub batch_size: Histogram,
    /// Images that were not computed since their client had left.
    pub abandoned: Counter,
    /// Panics that were caught.
    pub panics: Counter,
    /// Images that are admitted and not yet answered.
    pub queued: Gauge,
    /// Open connections.
    pub connections: Gauge,
    started: Instant,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            request_seconds: Histogram::new(SECONDS),
            images: Counter::default(),
            decode_seconds: Histogram::new(SECONDS),
            queue_seconds: Histogram::new(SECONDS),
            model_seconds: Histogram::new(SECONDS),
            batch_size: Histogram::new(IMAGES),
            abandoned: Counter::default(),
            panics: Counter::default(),
            queued: Gauge::default(),
            connections: Gauge::default(),
            started: Instant::now(),
        }
    }
}

impl Metrics {
    /// Takes up an answer.
    pub fn answered(&self, route: &'static str, status: u16, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(|e| e.into_inner());
        *requests.entry((route, status)).or_default() += 1;
        drop(requests);
        self.request_seconds.took(took);
    }

    /// Everything, as Prometheus reads it.
    pub fn text(&self, ready: bool) -> String {
        let mut text = String::new();
        head("macula_requests_total", "Answers.", "counter", &mut text);
        let requests = self.requests.lock().unwrap_or_else(|e| e.into_inner());
        for ((route, code), count) in requests.iter() {
            let _ = writeln!(
                text,
                "macula_requests_total{{route=\"{route}\",code=\"{code}\"}} {count}"
            );
        }
        drop(requests);
        for (name, help, value) in [
            (
                "macula_images_total",
                "Images that were answered with features.",
                &self.images,
            ),
            (
                "macula_abandoned_images_total",
                "Images that were not computed since their client had left.",
                &self.abandoned,
            ),
            ("macula_panics_total", "Panics that were caught.", &self.panics),
        ] {
            head(name, help, "counter", &mut text);
            let _ = writeln!(text, "{name} {}", value.get());
        }
        for (name, help, histogram) in [
            (
                "macula_request_seconds",
                "From a request's headers to its answer.",
                &self.request_seconds,
            ),
            (
                "macula_decode_seconds",
                "Decoding and preparing one image.",
                &self.decode_seconds,
            ),
            (
                "macula_queue_seconds",
                "From the queue to the model, one image.",
                &self.queue_seconds,
            ),
            ("macula_model_seconds", "One run of a model.", &self.model_seconds),
            ("macula_batch_size", "Images of one run.", &self.batch_size),
        ] {
            histogram.write(name, help, &mut text);
        }
        let gauges = [
            ("macula_ready", "1 while requests are taken.", i64::from(ready)),
            (
                "macula_queued_images",
                "Images that are admitted and not yet answered.",
                self.queued.get(),
            ),
            ("macula_connections", "Open connections.", self.connections.get()),
            (
                "macula_uptime_seconds",
                "Since the start.",
                self.started.elapsed().as_secs() as i64,
            ),
        ];
        let process = [
            (
                "process_resident_memory_bytes",
                "Memory of the process.",
                resident_bytes(),
            ),
            ("process_open_fds", "Open descriptors.", open_descriptors()),
        ];
        let process = process
            .into_iter()
            .filter_map(|(name, help, value)| Some((name, help, value?)));
        for (name, help, value) in gauges.into_iter().chain(process) {
            head(name, help, "gauge", &mut text);
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }
}

fn head(name: &str, help: &str, kind: &str, text: &mut String) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Memory of this process, where the system says it as Linux does.
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<i64>().ok()? * 1024)
}

/// Descriptors of this process, where the system says it as Linux does.
fn open_descriptors() -> Option<i64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_from_below() {
        let metrics = Metrics::default();
        for size in [1.0, 2.0, 3.0, 1000.0] {
            metrics.batch_size.observe(size);
        }
        metrics.answered("/v1/embeddings", 200, Duration::from_millis(3));
        metrics.answered("/v1/embeddings", 200, Duration::from_millis(3));
        let held = metrics.queued.hold();
        let text = metrics.text(true);
        for line in [
            "macula_requests_total{route=\"/v1/embeddings\",code=\"200\"} 2",
            "macula_batch_size_bucket{le=\"1\"} 1",
            "macula_batch_size_bucket{le=\"2\"} 2",
            "macula_batch_size_bucket{le=\"256\"} 3",
            "macula_batch_size_bucket{le=\"+Inf\"} 4",
            "macula_batch_size_sum 1006",
            "macula_batch_size_count 4",
            "macula_ready 1",
            "macula_queued_images 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        drop(held);
        assert_eq!(metrics.queued.get(), 0);
    }
}
