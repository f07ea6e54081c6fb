//! Threads of one process that stand for ranks, with the time that a network would take: every collective, and a step or a run made
//! of them, can be tested without MPI.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::ranks::{Ranks, Reduction};
use crate::{Error, Result};

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

/// Longest wait for the others, in tests that are wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// One rank of a [`team`].
pub(crate) struct ThreadRank {
    rank: usize,
    network: Network,
    meeting: Arc<Meeting>,
}

/// Where the ranks of a team lay down what they bring to a call.
struct Meeting {
    size: usize,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    /// Number of the call that is collected.
    call: u64,
    /// What is called, and what each rank brings.
    name: Option<String>,
    brought: Vec<Option<Vec<u8>>>,
    /// What the last call collected, and how many ranks have yet to read it.
    collected: Arc<Vec<Vec<u8>>>,
    unread: usize,
    /// Why there are no more calls.
    ended: Option<String>,
}

/// As many ranks, one for each thread.
pub(crate) fn team(size: usize, network: Network) -> Vec<ThreadRank> {
    let meeting = Arc::new(Meeting {
        size,
        table: Mutex::new(Table {
            brought: vec![None; size],
            ..Table::default()
        }),
        changed: Condvar::new(),
    });
    (0..size)
        .map(|rank| ThreadRank {
            rank,
            network,
            meeting: Arc::clone(&meeting),
        })
        .collect()
}

/// What `work` gives on each of `size` ranks, in rank order. Each has a pool of `rayon` of its own, as a process does: a rank that
/// waits in a shared one would keep the others from the threads they need.
pub(crate) fn on_ranks<T: Send>(
    size: usize,
    network: Network,
    work: impl Fn(Arc<dyn Ranks>) -> T + Sync,
) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |rank: ThreadRank| {
            scope.spawn(move || {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                let rank = Arc::new(rank);
                let guard = EndsTheTeam(Arc::clone(&rank));
                let done = pool.unwrap().install(|| work(rank));
                std::mem::forget(guard);
                done
            })
        };
        let threads: Vec<_> = team(size, network).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Ends the calls of the others when its rank panics, as MPI's launcher ends a job.
struct EndsTheTeam(Arc<ThreadRank>);

impl Drop for EndsTheTeam {
    fn drop(&mut self) {
        self.0.abort(1);
    }
}

impl ThreadRank {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.meeting.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all ranks bring to the call `name`, in rank order, after the time of as many messages of as many bytes.
    fn meet(&self, name: &str, own: Vec<u8>, (count, bytes): (usize, f64)) -> Result<Arc<Vec<Vec<u8>>>> {
        let mut table = self.table();
        let size = self.meeting.size;
        // The last call's have been read by all.
        table = self.wait(table, |table| table.unread == 0)?;
        match &table.name {
            Some(other) if other != name => {
                let reason = format!("rank {} calls {name}, others {other}", self.rank);
                table.ended = Some(reason.clone());
                self.meeting.changed.notify_all();
                return Err(Error::failed("ranks", reason));
            }
            Some(_) => {}
            None => table.name = Some(name.to_owned()),
        }
        let call = table.call;
        table.brought[self.rank] = Some(own);
        if table.brought.iter().all(Option::is_some) {
            let all = table.brought.iter_mut().filter_map(Option::take).collect();
            table.collected = Arc::new(all);
            table.unread = size;
            table.name = None;
            table.call += 1;
            self.meeting.changed.notify_all();
        } else {
            table = self.wait(table, |table| table.call > call)?;
        }
        let all = Arc::clone(&table.collected);
        table.unread -= 1;
        self.meeting.changed.notify_all();
        drop(table);
        std::thread::sleep(self.network.messages(count, bytes));
        Ok(all)
    }

    fn wait<'a>(
        &'a self,
        mut table: MutexGuard<'a, Table>,
        until: impl Fn(&Table) -> bool,
    ) -> Result<MutexGuard<'a, Table>> {
        loop {
            if let Some(reason) = &table.ended {
                return Err(Error::failed("ranks", reason.clone()));
            }
            if until(&table) {
                return Ok(table);
            }
            let (next, timed_out) = self
                .meeting
                .changed
                .wait_timeout(table, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            table = next;
            if timed_out.timed_out() && !until(&table) {
                return Err(Error::failed(
                    "ranks",
                    format!("rank {} waits in vain", self.rank),
                ));
            }
        }
    }

    /// The messages of `bytes` that go once around a ring in as many parts as there are ranks.
    fn around(&self, bytes: usize) -> (usize, f64) {
        let size = self.meeting.size;
        (size - 1, bytes as f64 / size as f64)
    }

    fn reduce<const N: usize, T: Copy>(
        &self,
        values: &mut [T],
        (to, from): (impl Fn(T) -> [u8; N], impl Fn([u8; N]) -> T),
        join: impl Fn(T, T) -> T,
    ) -> Result<()> {
        let own: Vec<u8> = values.iter().flat_map(|&value| to(value)).collect();
        let name = format!("a reduction of {} values of {N} bytes", values.len());
        // Once around to add up a part each, and once more to tell the sums.
        let (count, bytes) = self.around(own.len());
        let all = self.meet(&name, own, (2 * count, bytes))?;
        for (place, value) in values.iter_mut().enumerate() {
            let of_rank = |bytes: &Vec<u8>| from(bytes.as_chunks::<N>().0[place]);
            let mut of_ranks = all.iter().map(of_rank);
            *value = of_ranks
                .next()
                .map_or(*value, |first| of_ranks.fold(first, &join));
        }
        Ok(())
    }
}

impl Ranks for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.size
    }

    fn reduce_f32(&self, values: &mut [f32], reduction: Reduction) -> Result<()> {
        self.reduce(
            values,
            (f32::to_le_bytes, f32::from_le_bytes),
            |a, b| match reduction {
                Reduction::Sum => a + b,
                Reduction::Max => a.max(b),
            },
        )
    }

    fn reduce_f64(&self, values: &mut [f64], reduction: Reduction) -> Result<()> {
        self.reduce(
            values,
            (f64::to_le_bytes, f64::from_le_bytes),
            |a, b| match reduction {
                Reduction::Sum => a + b,
                Reduction::Max => a.max(b),
            },
        )
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let sent = (self.meeting.size - 1, own.len() as f64);
        Ok(self.meet("a gathering", own.to_vec(), sent)?.to_vec())
    }

    fn trade(&self, parts: &[u8]) -> Result<Vec<u8>> {
        let length = parts.len() / self.meeting.size;
        let name = format!("a trade of parts of {length} bytes");
        let all = self.meet(&name, parts.to_vec(), self.around(parts.len()))?;
        let own = self.rank * length..(self.rank + 1) * length;
        Ok(all
            .iter()
            .flat_map(|of_rank| &of_rank[own.clone()])
            .copied()
            .collect())
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        let own = if self.rank == from {
            bytes.clone()
        } else {
            Vec::new()
        };
        let sent = (1, own.len() as f64);
        let name = format!("a broadcast from rank {from}");
        *bytes = self.meet(&name, own, sent)?[from].clone();
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.meet("a barrier", Vec::new(), (1, 0.)).map(drop)
    }

    fn finish(&self) -> Result<()> {
        self.barrier()
    }

    fn abort(&self, code: u8) {
        let mut table = self.table();
        let reason = format!("rank {} ended the job with code {code}", self.rank);
        table.ended.get_or_insert(reason);
        self.meeting.changed.notify_all();
    }

    fn library(&self) -> String {
        "threads".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn collectives_give_every_rank_the_same() {
        for size in [1, 2, 3, 5] {
            let found = on_ranks(size, Network::default(), |ranks| {
                let own = ranks.rank() as f32;
                let mut sums = [own, 1., -own];
                ranks.reduce_f32(&mut sums, Reduction::Sum).unwrap();
                let mut largest = [f64::from(own), -f64::from(own)];
                ranks.reduce_f64(&mut largest, Reduction::Max).unwrap();
                let gathered = ranks
                    .gather_bytes(&vec![ranks.rank() as u8; ranks.rank()])
                    .unwrap();
                let parts: Vec<u8> = (0..size).map(|to| (10 * ranks.rank() + to) as u8).collect();
                let traded = ranks.trade(&parts).unwrap();
                let all = (0..size).map(|from| (10 * from + ranks.rank()) as u8);
                assert_eq!(traded, all.collect::<Vec<u8>>());
                let mut told = vec![7; ranks.rank() + 1];
                ranks.broadcast(&mut told, size - 1).unwrap();
                ranks.barrier().unwrap();
                let any = ranks.any(ranks.rank() + 1 == size).unwrap();
                (sums, largest, gathered, told, any)
            });
            let total = (size * (size - 1) / 2) as f32;
            let last = (size - 1) as f64;
            let gathered: Vec<Vec<u8>> = (0..size).map(|rank| vec![rank as u8; rank]).collect();
            for found in found {
                let expected = (
                    [total, size as f32, -total],
                    [last, 0.],
                    gathered.clone(),
                    vec![7; size],
                    true,
                );
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn tensors_are_reduced_and_gathered_in_rank_order() {
        let found = on_ranks(3, Network::default(), |ranks| {
            let own = ranks.rank();
            let rows = Tensor::full(own as f32, (own, 2), &Device::Cpu).unwrap();
            let all = ranks.gather(&rows).unwrap().to_vec2::<f32>().unwrap();
            let one = Tensor::new(&[[own as f32, 1.]], &Device::Cpu).unwrap();
            let sum = ranks.sum(&one).unwrap().to_vec2::<f32>().unwrap();
            let max = ranks.max(&one).unwrap().to_vec2::<f32>().unwrap();
            (all, sum, max)
        });
        for (all, sum, max) in found {
            assert_eq!(all, [[1., 1.], [2., 2.], [2., 2.]]);
            assert_eq!((sum, max), (vec![vec![3., 3.]], vec![vec![2., 1.]]));
        }
    }

    #[test]
    fn what_ranks_do_not_agree_on_is_named() {
        let found = on_ranks(3, Network::default(), |ranks| {
            let seed = if ranks.rank() == 2 { 5 } else { 4 };
            let text = format!("steps = 9\nseed = {seed}\n");
            ranks.agree("settings", &text).unwrap_err().to_string()
        });
        for message in found {
            assert_eq!(
                message,
                "settings: expected the same on all 3 ranks, found `seed = 4` on rank 0 and `seed = 5` on rank 2"
            );
        }
    }

    #[test]
    fn ranks_that_call_differently_fail_instead_of_waiting() {
        let failed = on_ranks(2, Network::default(), |ranks| {
            let mut values = vec![0f32; 1 + ranks.rank()];
            ranks
                .reduce_f32(&mut values, Reduction::Sum)
                .unwrap_err()
                .to_string()
        });
        assert!(failed[0].contains("a reduction of"), "{failed:?}");
    }

    #[test]
    fn a_rank_that_ends_the_job_frees_the_others() {
        let failed = on_ranks(3, Network::default(), |ranks| match ranks.rank() {
            1 => {
                ranks.abort(3);
                String::new()
            }
            _ => ranks.barrier().unwrap_err().to_string(),
        });
        assert_eq!(failed[0], "ranks: rank 1 ended the job with code 3");
        assert_eq!(failed[2], failed[0]);
    }

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
