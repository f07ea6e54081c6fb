//! Ranks that are threads of this process: each works on a pool of its own, and they meet in its memory.

use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use candle_core::{DType, Tensor};

use super::ranks::{Ranks, Reduction};
use crate::{Error, Result};

/// Longest wait for the others in tests, which are wrong where it passes; elsewhere another rank may take as long as it needs.
const PATIENCE: Option<Duration> = if cfg!(test) {
    Some(Duration::from_secs(60))
} else {
    None
};

/// From so many values on each rank adds up a part of them and takes the others' parts from them; fewer are added up by every rank.
const DIVIDED: usize = 1 << 12;

/// What `work` gives on each of `size` ranks, in rank order. Each has a pool of `rayon` of its own of `threads` threads, as a process
/// does: a rank that waits in a shared one would keep the others from the threads they need. What its caller's thread logs to it logs to
/// as well.
///
/// # Errors
/// What `work` ends with on the first rank that has an error of its own, threads that cannot be had.
pub fn on_ranks<T: Send>(
    size: usize,
    threads: usize,
    work: impl Fn(Arc<dyn Ranks>) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let work = &work;
    let team = team(size);
    let meeting = team.first().map(|rank| Arc::clone(&rank.meeting));
    let log = tracing::dispatcher::get_default(Clone::clone);
    let done: Vec<Result<T>> = std::thread::scope(|scope| {
        let start = |rank: ThreadRank| {
            let log = log.clone();
            scope.spawn(move || {
                let rank = Arc::new(rank);
                let guard = EndsTheTeam(Arc::clone(&rank));
                let done = pool(threads)
                    .and_then(|pool| pool.install(|| tracing::dispatcher::with_default(&log, || work(rank))));
                if done.is_ok() {
                    std::mem::forget(guard);
                }
                done
            })
        };
        let threads: Vec<_> = team.into_iter().map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T>>| thread.join();
        let done: Vec<_> = threads.into_iter().map(join).collect();
        let done = done
            .into_iter()
            .map(|done| done.unwrap_or_else(|panic| resume_unwind(panic)));
        done.collect()
    });
    let ended = meeting.and_then(|meeting| meeting.lock().ended.clone());
    let mut found = Vec::with_capacity(size);
    let mut failed = Vec::new();
    for done in done {
        match done {
            Ok(done) => found.push(done),
            Err(error) => failed.push(error),
        }
    }
    // What all have to tell the first tells; some only say that another has ended the job.
    let says_why = |error: &Error| {
        ended
            .as_ref()
            .is_none_or(|ended| !error.to_string().contains(ended))
    };
    let teller = failed.iter().position(says_why).unwrap_or(0);
    match failed.is_empty() {
        true => Ok(found),
        false => Err(failed.swap_remove(teller)),
    }
}

fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Error::failed("threads", error.to_string()))
}

/// One rank of a [`team`].
pub(super) struct ThreadRank {
    rank: usize,
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
    named: Option<Call>,
    brought: Vec<Option<Values>>,
    /// What the last call collected, and how many ranks have yet to read it.
    collected: Arc<Vec<Values>>,
    unread: usize,
    /// Why there are no more calls.
    ended: Option<String>,
}

/// What all ranks have to call alike.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Call {
    name: &'static str,
    length: usize,
}

/// What a rank brings.
#[derive(Clone)]
enum Values {
    Bytes(Vec<u8>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Tensors(Vec<Option<Tensor>>),
}

/// A number that is reduced.
trait Value: Copy + PartialOrd + std::ops::Add<Output = Self> {
    const REDUCTION: &'static str;
    const PARTS: &'static str;

    fn bring(values: Vec<Self>) -> Values;

    fn of(values: &Values) -> &[Self];
}

impl Value for f32 {
    const REDUCTION: &'static str = "a reduction of f32";
    const PARTS: &'static str = "the parts of a reduction of f32";

    fn bring(values: Vec<Self>) -> Values {
        Values::F32(values)
    }

    fn of(values: &Values) -> &[Self] {
        match values {
            Values::F32(values) => values,
            _ => &[],
        }
    }
}

impl Value for f64 {
    const REDUCTION: &'static str = "a reduction of f64";
    const PARTS: &'static str = "the parts of a reduction of f64";

    fn bring(values: Vec<Self>) -> Values {
        Values::F64(values)
    }

    fn of(values: &Values) -> &[Self] {
        match values {
            Values::F64(values) => values,
            _ => &[],
        }
    }
}

impl Values {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    fn tensors(&self) -> &[Option<Tensor>] {
        match self {
            Self::Tensors(tensors) => tensors,
            _ => &[],
        }
    }
}

/// As many ranks, one for each thread.
pub(super) fn team(size: usize) -> Vec<ThreadRank> {
    let meeting = Arc::new(Meeting {
        size,
        table: Mutex::new(Table {
            brought: vec![None; size],
            ..Table::default()
        }),
        changed: Condvar::new(),
    });
    let rank = |rank| ThreadRank {
        rank,
        meeting: Arc::clone(&meeting),
    };
    (0..size).map(rank).collect()
}

/// Ends the calls of the others when its rank fails or panics, as MPI's launcher ends a job.
struct EndsTheTeam(Arc<ThreadRank>);

impl Drop for EndsTheTeam {
    fn drop(&mut self) {
        self.0.abort(1);
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, table: &mut Table, reason: String) {
        table.ended.get_or_insert(reason);
        self.changed.notify_all();
    }

    /// Waits on behalf of `rank`.
    fn wait<'a>(
        &'a self,
        mut table: MutexGuard<'a, Table>,
        rank: usize,
        until: impl Fn(&Table) -> bool,
    ) -> Result<MutexGuard<'a, Table>> {
        loop {
            if let Some(reason) = &table.ended {
                return Err(Error::failed("ranks", reason.clone()));
            }
            if until(&table) {
                return Ok(table);
            }
            let Some(patience) = PATIENCE else {
                table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let waited = self.changed.wait_timeout(table, patience);
            let (next, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            table = next;
            if timed_out.timed_out() && !until(&table) {
                return Err(Error::failed("ranks", format!("rank {rank} waits in vain")));
            }
        }
    }
}

impl ThreadRank {
    /// What all ranks bring to `call`, in rank order.
    fn meet(&self, call: Call, own: Values) -> Result<Arc<Vec<Values>>> {
        let meeting = &self.meeting;
        // The last call's have been read by all.
        let mut table = meeting.wait(meeting.lock(), self.rank, |table| table.unread == 0)?;
        match table.named {
            Some(other) if other != call => {
                let named = |call: Call| format!("{} of length {}", call.name, call.length);
                let (rank, call, other) = (self.rank, named(call), named(other));
                let reason = format!("rank {rank} calls {call}, others {other}");
                meeting.end(&mut table, reason.clone());
                return Err(Error::failed("ranks", reason));
            }
            Some(_) => {}
            None => table.named = Some(call),
        }
        let number = table.call;
        table.brought[self.rank] = Some(own);
        if table.brought.iter().all(Option::is_some) {
            let all = table.brought.iter_mut().filter_map(Option::take).collect();
            table.collected = Arc::new(all);
            table.unread = meeting.size;
            table.named = None;
            table.call += 1;
            meeting.changed.notify_all();
        } else {
            table = meeting.wait(table, self.rank, |table| table.call > number)?;
        }
        table.unread -= 1;
        if table.unread > 0 {
            return Ok(Arc::clone(&table.collected));
        }
        // The last to read leaves nothing behind.
        meeting.changed.notify_all();
        Ok(std::mem::take(&mut table.collected))
    }

    fn reduce<T: Value>(&self, values: &mut [T], reduction: Reduction) -> Result<()> {
        let length = values.len();
        let call = |name| Call { name, length };
        let all = self.meet(call(T::REDUCTION), T::bring(values.to_vec()))?;
        if length < DIVIDED {
            reduce_into(values, &all, 0, reduction);
            return Ok(());
        }
        let size = self.meeting.size;
        let mut own = values[self.rank * length / size..(self.rank + 1) * length / size].to_vec();
        reduce_into(&mut own, &all, self.rank * length / size, reduction);
        drop(all);
        let parts = self.meet(call(T::PARTS), T::bring(own))?;
        let mut rest = values;
        for part in parts.iter().map(T::of) {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = after;
        }
        Ok(())
    }
}

/// Who of `size` ranks adds up which of tensors of so many values each: all have about as much to do.
fn owners(counts: impl Iterator<Item = usize>, size: usize) -> Vec<usize> {
    let mut load = vec![0; size];
    let owner = |count| {
        let (owner, least) = load.iter_mut().enumerate().min_by_key(|(_, load)| **load)?;
        *least += count;
        Some(owner)
    };
    counts.map_while(owner).collect()
}

/// The mean over ranks of tensor number `place` of each, added up in rank order.
fn mean(all: &[Values], place: usize) -> Result<Tensor> {
    let parts = all
        .iter()
        .filter_map(|values| values.tensors().get(place)?.as_ref());
    let mut sum: Option<Tensor> = None;
    for part in parts {
        let part = part.detach().to_dtype(DType::F32)?;
        sum = Some(match sum {
            None => part.contiguous()?,
            Some(sum) => (sum + part)?,
        });
    }
    let sum = sum.ok_or_else(|| Error::failed("ranks", format!("no rank has tensor {place}")))?;
    Ok((sum / all.len() as f64)?)
}

/// Puts into `place` what the values of `all` from number `first` on are together: rank by rank, so that it is the same whoever does so.
fn reduce_into<T: Value>(place: &mut [T], all: &[Values], first: usize, reduction: Reduction) {
    let join = |a: T, b: T| match reduction {
        Reduction::Sum => a + b,
        Reduction::Max if b > a => b,
        Reduction::Max => a,
    };
    for (rank, values) in all.iter().enumerate() {
        let values = &T::of(values)[first..first + place.len()];
        match rank {
            0 => place.copy_from_slice(values),
            _ => place.iter_mut().zip(values).for_each(|(a, b)| *a = join(*a, *b)),
        }
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
        self.reduce(values, reduction)
    }

    fn reduce_f64(&self, values: &mut [f64], reduction: Reduction) -> Result<()> {
        self.reduce(values, reduction)
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (name, length) = ("a gathering", 0);
        let all = self.meet(Call { name, length }, Values::Bytes(own.to_vec()))?;
        Ok(all.iter().map(|of_rank| of_rank.bytes().to_vec()).collect())
    }

    fn trade(&self, parts: &[u8]) -> Result<Vec<u8>> {
        let length = parts.len() / self.meeting.size;
        let name = "a trade of parts";
        let all = self.meet(Call { name, length }, Values::Bytes(parts.to_vec()))?;
        let own = self.rank * length..(self.rank + 1) * length;
        let own = all.iter().flat_map(|of_rank| &of_rank.bytes()[own.clone()]);
        Ok(own.copied().collect())
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        let own = match self.rank == from {
            true => bytes.clone(),
            false => Vec::new(),
        };
        let (name, length) = ("a broadcast from a rank", from);
        let all = self.meet(Call { name, length }, Values::Bytes(own))?;
        *bytes = all[from].bytes().to_vec();
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        let (name, length) = ("a barrier", 0);
        self.meet(Call { name, length }, Values::Bytes(Vec::new()))
            .map(drop)
    }

    fn finish(&self) -> Result<()> {
        self.barrier()
    }

    fn abort(&self, code: u8) {
        let reason = format!("rank {} ended the job with code {code}", self.rank);
        self.meeting.end(&mut self.meeting.lock(), reason);
    }

    fn library(&self) -> String {
        "threads of one process".to_owned()
    }

    fn is_one_process(&self) -> bool {
        true
    }

    fn mean_in_memory(&self, tensors: Vec<Option<Tensor>>) -> Result<Vec<Tensor>> {
        let length = tensors.len();
        let call = |name| Call { name, length };
        let all = self.meet(call("a mean of tensors"), Values::Tensors(tensors))?;
        let first = |place: usize| {
            all.iter()
                .find_map(|values| values.tensors().get(place)?.as_ref())
        };
        let counts = (0..length).map(|place| first(place).map_or(0, Tensor::elem_count));
        let owners = owners(counts, self.meeting.size);
        let own = |place: usize| (owners[place] == self.rank).then(|| mean(&all, place));
        let means = (0..length).map(|place| own(place).transpose());
        let means: Vec<Option<Tensor>> = means.collect::<Result<_>>()?;
        drop(all);
        let all = self.meet(call("means of tensors"), Values::Tensors(means))?;
        let found = |place: usize| all[owners[place]].tensors().get(place)?.clone();
        let means: Option<Vec<Tensor>> = (0..length).map(found).collect();
        means.ok_or_else(|| Error::failed("ranks", "a mean is missing"))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::cluster::simulated::{Network, on_ranks};

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

    #[test]
    fn many_values_are_divided_and_summed_in_rank_order() {
        let length = DIVIDED + 5;
        // Sums that differ in their last bits with the order of their terms.
        let value = |rank: usize, place: usize| 0.1f32 * (1 + rank * 7 + place % 13) as f32;
        let expected = |place| {
            (0..3)
                .map(|rank| value(rank, place))
                .reduce(|a, b| a + b)
                .unwrap()
        };
        let expected: Vec<f32> = (0..length).map(expected).collect();
        let found = on_ranks(3, Network::default(), |ranks| {
            let mut values: Vec<f32> = (0..length).map(|place| value(ranks.rank(), place)).collect();
            let mut largest = values.clone();
            ranks.reduce_f32(&mut values, Reduction::Sum).unwrap();
            ranks.reduce_f32(&mut largest, Reduction::Max).unwrap();
            (values, largest)
        });
        let largest: Vec<f32> = (0..length).map(|place| value(2, place)).collect();
        for found in found {
            assert_eq!(found, (expected.clone(), largest.clone()));
        }
    }

    #[test]
    fn means_of_tensors_are_in_the_same_memory_on_all() {
        let found = super::on_ranks(3, 1, |ranks| {
            let own = ranks.rank() as f32;
            let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
            let matrix = Tensor::new(&[[own, 1.], [2., 3.]], &Device::Cpu)?.t()?;
            let alone = (ranks.rank() == 1).then(|| tensor(&[6., 9.]));
            ranks.mean_in_memory(vec![Some(matrix), alone, Some(tensor(&[own]))])
        });
        let found = found.unwrap();
        for means in &found {
            assert_eq!(means[0].to_vec2::<f32>().unwrap(), [[1., 2.], [1., 3.]]);
            assert_eq!(means[1].to_vec1::<f32>().unwrap(), [2., 3.]);
            assert_eq!(means[2].to_vec1::<f32>().unwrap(), [1.]);
            assert!(means.iter().all(|mean| mean.is_contiguous()));
            let same = means.iter().zip(&found[0]).all(|(a, b)| a.id() == b.id());
            assert!(same);
        }
        let missing = super::on_ranks(2, 1, |ranks| ranks.mean_in_memory(vec![None]));
        assert_eq!(missing.unwrap_err().to_string(), "ranks: no rank has tensor 0");
        assert_eq!(owners([5, 3, 3, 1].into_iter(), 2), [0, 1, 1, 0]);
    }

    #[test]
    fn the_error_that_ended_the_job_is_told() {
        let failed = super::on_ranks(3, 1, |ranks| match ranks.rank() {
            2 => Err(Error::input("seed", "expected 1, found 2")),
            _ => ranks.barrier(),
        });
        assert_eq!(failed.unwrap_err().to_string(), "seed: expected 1, found 2");
        let all = super::on_ranks(3, 1, |ranks| -> Result<()> {
            std::thread::sleep(Duration::from_millis(20 * (3 - ranks.rank() as u64)));
            Err(Error::input("rank", ranks.rank().to_string()))
        });
        assert_eq!(all.unwrap_err().to_string(), "rank: 0");
    }

    #[test]
    fn every_rank_has_as_many_threads_as_are_asked_for() {
        let threads = super::on_ranks(2, 3, |_| Ok(rayon::current_num_threads()));
        assert_eq!(threads.unwrap(), [3, 3]);
    }

    #[test]
    fn a_rank_that_panics_frees_the_others() {
        let work = || {
            super::on_ranks(2, 1, |ranks| match ranks.rank() {
                0 => panic!("a bug"),
                _ => ranks.barrier(),
            })
        };
        assert!(std::panic::catch_unwind(work).is_err());
    }
}
