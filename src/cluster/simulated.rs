//! Ranks of tests: threads that stand for processes, with the time that a network would take. Every collective, and a step or a run
//! made of them, can be tested without MPI.

use std::sync::Arc;
use std::time::Duration;

use super::ranks::{Ranks, Reduction};
use super::threads;
use crate::Result;

/// What a message from one rank to another costs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Network {
    /// Time of every message, however small.
    pub(crate) latency: Duration,
    /// Bytes a second that a rank sends; 0 for no limit.
    pub(crate) bandwidth: f64,
}

impl Network {
    /// The time of `count` messages of `bytes` each, one behind the other.
    fn messages(&self, count: usize, bytes: f64) -> Duration {
        let sending = match self.bandwidth > 0. {
            true => Duration::from_secs_f64(count as f64 * bytes / self.bandwidth),
            false => Duration::ZERO,
        };
        self.latency * count as u32 + sending
    }

    /// The model of `docs/clusters.md`: seconds in which `ranks` reduce `bytes` in `calls`, around a ring.
    pub(crate) fn reduction_seconds(&self, ranks: usize, bytes: f64, calls: usize) -> f64 {
        let others = (ranks - 1) as f64;
        2. * others / ranks as f64 * bytes / self.bandwidth
            + 2. * others * calls as f64 * self.latency.as_secs_f64()
    }
}

/// What `work` gives on each of `size` ranks of one thread, in rank order.
pub(crate) fn on_ranks<T: Send>(
    size: usize,
    network: Network,
    work: impl Fn(Arc<dyn Ranks>) -> T + Sync,
) -> Vec<T> {
    let work = |ranks| Ok(work(Arc::new(OverNetwork { ranks, network })));
    threads::on_ranks(size, 1, work).unwrap()
}

/// A rank whose messages take their time.
struct OverNetwork {
    ranks: Arc<dyn Ranks>,
    network: Network,
}

impl OverNetwork {
    /// Takes the time of `count` messages of `bytes`.
    fn send(&self, count: usize, bytes: f64) {
        std::thread::sleep(self.network.messages(count, bytes));
    }

    /// Takes the time of `bytes` that go around a ring `times`, in as many parts as there are ranks.
    fn send_around(&self, times: usize, bytes: usize) {
        let size = self.size();
        self.send(times * (size - 1), bytes as f64 / size as f64);
    }
}

impl Ranks for OverNetwork {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    // Once around to add up a part each, and once more to tell the sums.
    fn reduce_f32(&self, values: &mut [f32], reduction: Reduction) -> Result<()> {
        self.ranks.reduce_f32(values, reduction)?;
        self.send_around(2, size_of_val(values));
        Ok(())
    }

    fn reduce_f64(&self, values: &mut [f64], reduction: Reduction) -> Result<()> {
        self.ranks.reduce_f64(values, reduction)?;
        self.send_around(2, size_of_val(values));
        Ok(())
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let all = self.ranks.gather_bytes(own)?;
        self.send(self.size() - 1, own.len() as f64);
        Ok(all)
    }

    fn trade(&self, parts: &[u8]) -> Result<Vec<u8>> {
        let own = self.ranks.trade(parts)?;
        self.send_around(1, parts.len());
        Ok(own)
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        self.ranks.broadcast(bytes, from)?;
        self.send(1, bytes.len() as f64);
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.ranks.barrier()?;
        self.send(1, 0.);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.ranks.finish()
    }

    fn abort(&self, code: u8) {
        self.ranks.abort(code);
    }

    fn library(&self) -> String {
        self.ranks.library()
    }
}

mod tests {
    use std::time::Instant;

    use super::*;

    /// The table of `docs/clusters.md`: 30 million weights in 5 buckets, over networks that carry 94 % of their bits.
    #[test]
    fn the_model_gives_the_table_of_the_documents() {
        let text = include_str!("../../docs/clusters.md");
        let network = |gigabits: f64, microseconds| Network {
            latency: Duration::from_micros(microseconds),
            bandwidth: gigabits * 0.118e9,
        };
        let networks = [network(1., 50), network(10., 30), network(100., 2)];
        for ranks in [8, 64, 512] {
            let seconds = networks.map(|network| network.reduction_seconds(ranks, 0.12e9, 5));
            let row = format!(
                "| {ranks} | {:.1} s | {:.2} s | {:.2} s |",
                seconds[0], seconds[1], seconds[2]
            );
            assert!(text.contains(&row), "no row {row}");
        }
    }

    #[test]
    fn a_network_takes_its_time() {
        let network = Network {
            latency: Duration::from_millis(5),
            bandwidth: 1e6,
        };
        let start = Instant::now();
        on_ranks(2, network, |ranks| {
            // Two messages of 20,000 bytes at a megabyte a second, each with its latency.
            ranks.reduce_f32(&mut vec![0.; 10_000], Reduction::Sum).unwrap();
        });
        assert!(
            start.elapsed() >= Duration::from_millis(50),
            "{:?}",
            start.elapsed()
        );
    }
}
