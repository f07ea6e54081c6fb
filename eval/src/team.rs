//! Processes that share a computation. Each is given the same settings; what costs time, or memory ([`crate::Share`]), is divided.

use std::ops::Range;

use crate::Result;

/// The processes, and this one among them. Methods that have a result are called by all processes, in the same order, never from
/// within a parallel loop, and give each the same.
pub trait Team: Sync {
    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// How many there are, at least 1.
    fn size(&self) -> usize;

    /// What every process gives, in the order of their numbers.
    ///
    /// # Errors
    /// Processes that cannot reach each other.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Replaces `values`, as many on each process, by their sums, which are the same on all; in which order values are added is not
    /// promised.
    ///
    /// # Errors
    /// As [`Team::gather`].
    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let all = self.gather_f64(values)?;
        for (place, value) in values.iter_mut().enumerate() {
            *value = all.iter().skip(place).step_by(all.len() / self.size()).sum();
        }
        Ok(())
    }

    /// Numbers of all processes, one after the other.
    ///
    /// # Errors
    /// As [`Team::gather`].
    fn gather_numbers(&self, own: &[u32]) -> Result<Vec<u32>> {
        Ok(decoded(
            &self.gather(&encoded(own, u32::to_le_bytes))?,
            u32::from_le_bytes,
        ))
    }

    /// As [`Team::gather_numbers`].
    ///
    /// # Errors
    /// As there.
    fn gather_f32(&self, own: &[f32]) -> Result<Vec<f32>> {
        Ok(decoded(
            &self.gather(&encoded(own, f32::to_le_bytes))?,
            f32::from_le_bytes,
        ))
    }

    /// As [`Team::gather_numbers`].
    ///
    /// # Errors
    /// As there.
    fn gather_f64(&self, own: &[f64]) -> Result<Vec<f64>> {
        Ok(decoded(
            &self.gather(&encoded(own, f64::to_le_bytes))?,
            f64::from_le_bytes,
        ))
    }
}

pub(crate) fn encoded<const N: usize, T: Copy>(values: &[T], to: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to(value)).collect()
}

fn decoded<const N: usize, T>(parts: &[Vec<u8>], from: fn([u8; N]) -> T) -> Vec<T> {
    let words = parts.iter().flat_map(|part| part.as_chunks::<N>().0);
    words.map(|&word| from(word)).collect()
}

/// The places among `total` that are this process's: equal parts of whole blocks, of which the last processes may have fewer or none.
pub fn part_of(total: usize, block: usize, team: &dyn Team) -> Range<usize> {
    let length = part_length(total, block, team);
    let start = (team.rank() * length).min(total);
    start..(start + length).min(total)
}

/// How many places every process has, but for the last ones.
pub(crate) fn part_length(total: usize, block: usize, team: &dyn Team) -> usize {
    total.div_ceil(team.size()).next_multiple_of(block)
}

/// One process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Team for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn sum(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }
}

/// Threads that stand for processes.
#[cfg(test)]
pub(crate) mod threads {
    use std::sync::{Barrier, Mutex};

    use super::Team;
    use crate::Result;

    struct Member<'a> {
        rank: usize,
        table: &'a Mutex<Vec<Vec<u8>>>,
        barrier: &'a Barrier,
    }

    impl Team for Member<'_> {
        fn rank(&self) -> usize {
            self.rank
        }

        fn size(&self) -> usize {
            self.table.lock().unwrap().len()
        }

        fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
            self.table.lock().unwrap()[self.rank] = own.to_vec();
            self.barrier.wait();
            let all = self.table.lock().unwrap().clone();
            self.barrier.wait();
            Ok(all)
        }
    }

    /// What `work` gives on each of `size` processes. It must not panic: the others would wait.
    pub(crate) fn on_team<T: Send>(size: usize, work: impl Fn(&dyn Team) -> T + Sync) -> Vec<T> {
        let (table, barrier) = (Mutex::new(vec![Vec::new(); size]), Barrier::new(size));
        let (table, barrier, work) = (&table, &barrier, &work);
        std::thread::scope(|scope| {
            let start = |rank| scope.spawn(move || work(&Member { rank, table, barrier }));
            let threads: Vec<_> = (0..size).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::threads::on_team;
    use super::*;

    #[test]
    fn sums_and_parts_are_those_of_all() {
        let found = on_team(3, |team| {
            let mut sums = [team.rank() as f64, 2.5];
            team.sum(&mut sums).unwrap();
            let numbers = team.gather_numbers(&vec![7; team.rank()]).unwrap();
            (sums, numbers, part_of(10, 2, team), part_of(3, 2, team))
        });
        let parts = [(0..4, 0..2), (4..8, 2..3), (8..10, 3..3)];
        for (found, (long, short)) in found.into_iter().zip(parts) {
            assert_eq!(found, ([3., 7.5], vec![7; 3], long, short));
        }
    }
}
