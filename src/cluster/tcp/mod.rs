//! Processes that TCP connects, for launchers that bring no MPI (`torchrun`). Every rank has two connections with rank 0, which brings
//! together what all ranks bring to a call, in rank order, and answers each: the same bytes on every rank and in every run. What rank 0
//! receives and sends grows with the number of ranks, so that MPI is the better choice for many of them without GPUs.
//!
//! `meet` is how ranks find each other, `frame` what they send, `lifeline` how they find out that one has gone. The last is of use to
//! ranks that MPI connects, too (`guard`).

mod frame;
mod guard;
mod lifeline;
mod meet;

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use self::frame::{Call, Trouble};
pub(super) use self::guard::guard;
pub(super) use self::lifeline::Lifelines;
use self::lifeline::{End, OnEnd};
use self::meet::{Member, Place};
use super::launch::Launch;
use super::ranks::{Ranks, Reduction};
use crate::{Error, Result};

/// How long ranks wait for each other at the beginning.
const PATIENCE: Duration = Duration::from_secs(300);
/// The most values that are reduced at once: rank 0 holds as many of every rank.
const AT_ONCE: usize = 1 << 20;
/// How long a call whose connection has ended waits for the lifeline, which knows why.
const LIFELINE_SPEAKS: Duration = Duration::from_secs(3);
/// The variable by which `torchrun` names a job.
pub(super) const RUN_ID: &str = "TORCHELASTIC_RUN_ID";

/// This process among those of a job.
pub(super) struct Tcp {
    rank: usize,
    size: usize,
    place: Place,
    /// Rank 0: those of the others, in rank order. The others: that of rank 0.
    peers: Mutex<Vec<Peer>>,
    lifelines: Lifelines,
}

/// The connection with another rank over which calls go.
struct Peer {
    /// Whose it is: `rank 1 on node7`.
    who: String,
    stream: TcpStream,
}

/// What rank 0 makes of what all have brought.
enum Answer {
    /// The same for all.
    Same(Vec<u8>),
    /// For each rank its own.
    Each(Vec<Vec<u8>>),
}

impl Tcp {
    /// Joins the job of `launch`.
    ///
    /// # Errors
    /// Variables that are missing, ranks that do not find each other.
    pub(super) fn start(launch: &Launch) -> Result<Self> {
        let job = std::env::var(RUN_ID).unwrap_or_default();
        let member = Member {
            rank: launch.rank,
            size: launch.size,
            job: meet::job_of(&job),
            host: super::host(),
        };
        Self::meet(
            &member,
            Place::of_this_process()?,
            PATIENCE,
            Arc::new(end_process),
        )
    }

    fn meet(member: &Member, place: Place, patience: Duration, on_end: OnEnd) -> Result<Self> {
        let found = match member.rank {
            0 => meet::wait_for_all(member, &place, patience)?,
            _ => vec![meet::reach(member, &place, patience)?],
        };
        let (mut peers, mut lines) = (Vec::new(), Vec::new());
        for peer in found {
            let who = format!("rank {} on {}", peer.rank, peer.host);
            lines.push((who.clone(), peer.lifeline));
            peers.push(Peer {
                who,
                stream: peer.calls,
            });
        }
        Ok(Self {
            rank: member.rank,
            size: member.size,
            place,
            peers: Mutex::new(peers),
            lifelines: Lifelines::hold(lines, on_end)?,
        })
    }

    fn alone(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings `own` to `call`, with as many bytes as all others where they are `alike`, and gives what rank 0 answers.
    fn round(
        &self,
        call: Call,
        own: Vec<u8>,
        alike: bool,
        answer: impl FnOnce(Vec<Vec<u8>>) -> Answer,
    ) -> Result<Vec<u8>> {
        let peers = self.alone();
        if self.rank != 0 {
            let rank_0 = &peers[0];
            rank_0.send(call, &own)?;
            return rank_0.receive(call, None);
        }
        let length = alike.then_some(own.len());
        let mut all = Vec::with_capacity(self.size);
        all.push(own);
        for peer in peers.iter() {
            all.push(peer.receive(call, length)?);
        }
        match answer(all) {
            Answer::Same(bytes) => {
                peers.iter().try_for_each(|peer| peer.send(call, &bytes))?;
                Ok(bytes)
            }
            Answer::Each(mut parts) => {
                for (peer, part) in peers.iter().zip(&parts[1..]) {
                    peer.send(call, part)?;
                }
                Ok(parts.swap_remove(0))
            }
        }
    }

    fn reduce<const N: usize, T: Copy>(
        &self,
        call: Call,
        values: &mut [T],
        (to, from): (impl Fn(T) -> [u8; N], impl Fn([u8; N]) -> T),
        join: impl Fn(T, T) -> T,
    ) -> Result<()> {
        for part in values.chunks_mut(AT_ONCE) {
            let own: Vec<u8> = part.iter().flat_map(|&value| to(value)).collect();
            let length = own.len();
            let reduced = self.round(call, own, true, |all| {
                let (mut sums, others) = (part.to_vec(), &all[1..]);
                for of_rank in others {
                    let values = of_rank.as_chunks::<N>().0;
                    sums.iter_mut()
                        .zip(values)
                        .for_each(|(sum, &value)| *sum = join(*sum, from(value)));
                }
                Answer::Same(sums.into_iter().flat_map(&to).collect())
            })?;
            if reduced.len() != length {
                return Err(self.other_answer(call, length, reduced.len()));
            }
            let reduced = reduced.as_chunks::<N>().0;
            part.iter_mut()
                .zip(reduced)
                .for_each(|(value, &sum)| *value = from(sum));
        }
        Ok(())
    }

    fn other_answer(&self, call: Call, expected: usize, found: usize) -> Error {
        let reason = format!("expected {expected} bytes of {call} from rank 0, found {found}");
        Error::failed(self.library(), reason)
    }
}

impl Peer {
    fn send(&self, call: Call, bytes: &[u8]) -> Result<()> {
        frame::send(&self.stream, call, bytes).map_err(|error| self.gone(call, &error))
    }

    fn receive(&self, call: Call, length: Option<usize>) -> Result<Vec<u8>> {
        match frame::receive(&self.stream, call, length) {
            Ok(bytes) => Ok(bytes),
            Err(Trouble::Connection(error)) => Err(self.gone(call, &error)),
            Err(Trouble::Other(reason)) => Err(Error::failed(self.who.clone(), reason)),
        }
    }

    /// What there is to say where the lifeline, which knows why, says nothing.
    fn gone(&self, call: Call, error: &io::Error) -> Error {
        sleep(LIFELINE_SPEAKS);
        Error::failed(
            self.who.clone(),
            format!("its connection ended in {call} ({error})"),
        )
    }
}

/// What all have given, behind the length of each.
fn packed(all: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = all
        .iter()
        .flat_map(|part| (part.len() as u64).to_le_bytes())
        .collect();
    all.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// Takes apart what [`packed`] has put together of `size` ranks; none where it is something else.
fn unpacked(bytes: &[u8], size: usize) -> Option<Vec<Vec<u8>>> {
    let (lengths, mut rest) = bytes.split_at_checked(8 * size)?;
    let mut all = Vec::with_capacity(size);
    for &length in lengths.as_chunks::<8>().0 {
        let length = usize::try_from(u64::from_le_bytes(length)).ok()?;
        let (part, after) = rest.split_at_checked(length)?;
        all.push(part.to_vec());
        rest = after;
    }
    rest.is_empty().then_some(all)
}

impl Ranks for Tcp {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn reduce_f32(&self, values: &mut [f32], reduction: Reduction) -> Result<()> {
        let numbers = (f32::to_le_bytes, f32::from_le_bytes);
        match reduction {
            Reduction::Sum => self.reduce(Call::SumF32, values, numbers, |a, b| a + b),
            Reduction::Max => self.reduce(Call::MaxF32, values, numbers, f32::max),
        }
    }

    fn reduce_f64(&self, values: &mut [f64], reduction: Reduction) -> Result<()> {
        let numbers = (f64::to_le_bytes, f64::from_le_bytes);
        match reduction {
            Reduction::Sum => self.reduce(Call::SumF64, values, numbers, |a, b| a + b),
            Reduction::Max => self.reduce(Call::MaxF64, values, numbers, f64::max),
        }
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let all = self.round(Call::Gather, own.to_vec(), false, |all| {
            Answer::Same(packed(&all))
        })?;
        unpacked(&all, self.size).ok_or_else(|| {
            let reason = format!(
                "expected what {} ranks give, found {} other bytes",
                self.size,
                all.len()
            );
            Error::failed(self.library(), reason)
        })
    }

    fn trade(&self, parts: &[u8]) -> Result<Vec<u8>> {
        let length = parts.len() / self.size;
        if length * self.size != parts.len() {
            let reason = format!("expected {} equal parts, found {} bytes", self.size, parts.len());
            return Err(Error::failed(self.library(), reason));
        }
        let to_rank = |all: &[Vec<u8>], rank: usize| -> Vec<u8> {
            let parts = all.iter().map(|of_rank| &of_rank[rank * length..][..length]);
            parts.flatten().copied().collect()
        };
        let came = self.round(Call::Trade, parts.to_vec(), true, |all| {
            Answer::Each((0..self.size).map(|rank| to_rank(&all, rank)).collect())
        })?;
        match came.len() == parts.len() {
            true => Ok(came),
            false => Err(self.other_answer(Call::Trade, parts.len(), came.len())),
        }
    }

    fn broadcast(&self, bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        let own = match self.rank == from {
            true => std::mem::take(bytes),
            false => Vec::new(),
        };
        *bytes = self.round(Call::Broadcast, own, false, |mut all| {
            Answer::Same(all.swap_remove(from))
        })?;
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.round(Call::Barrier, Vec::new(), true, |_| Answer::Same(Vec::new()))
            .map(drop)
    }

    fn finish(&self) -> Result<()> {
        self.barrier()?;
        self.lifelines.leave();
        Ok(())
    }

    fn abort(&self, code: u8) {
        self.lifelines.end(code);
    }

    fn library(&self) -> String {
        format!("TCP (rank 0 at {})", self.place)
    }
}

/// Ends this process, and says why where no other rank does.
fn end_process(end: End) {
    let code = match end {
        End::Told(code) => code,
        End::Lost(reason) => {
            // Whoever read this may have gone as well.
            let _ = writeln!(io::stderr(), "error: {reason}");
            1
        }
    };
    // Not the usual exit, at which libraries wait for what will not come.
    signal_hook::low_level::exit(i32::from(code))
}

#[cfg(test)]
mod tests;
