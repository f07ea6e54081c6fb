//! Lifelines for ranks that MPI connects, under a launcher that lets the others wait for ever when one is killed, as `srun` does unless
//! it is told `--kill-on-bad-exit`. Where rank 0 listens for them, MPI tells the others.

use std::sync::Arc;
use std::time::Duration;

use super::lifeline::{Lifelines, OnEnd};
use super::meet::{self, Member, Peer, Place};
use crate::cluster::Ranks;
use crate::{Error, Result};

/// How long ranks try to reach rank 0: they have started already.
const PATIENCE: Duration = Duration::from_secs(20);

/// The lifelines of this rank; none, with a line that says so, where not every rank can reach rank 0.
///
/// # Errors
/// Ranks that MPI does not connect.
pub(in crate::cluster) fn guard(ranks: &dyn Ranks) -> Result<Option<Lifelines>> {
    guard_with(ranks, PATIENCE, Arc::new(super::end_process))
}

fn guard_with(ranks: &dyn Ranks, patience: Duration, on_end: OnEnd) -> Result<Option<Lifelines>> {
    let found = meet_rank_0(ranks, &crate::cluster::host(), patience)?;
    let lost = ranks.any(found.is_err())?;
    let peers = match found {
        Ok(peers) if !lost => peers,
        found => {
            if let Err(error) = found {
                tracing::debug!("{error}");
            }
            if ranks.rank() == 0 {
                tracing::warn!(
                    "not every rank can reach rank 0 by TCP: if one is killed, the others wait for it until their time is up; give srun \
                     --kill-on-bad-exit=1"
                );
            }
            return Ok(None);
        }
    };
    let named = |peer: Peer| (format!("rank {} on {}", peer.rank, peer.host), peer.lifeline);
    Lifelines::hold(peers.into_iter().map(named).collect(), on_end).map(Some)
}

/// The other ranks of rank 0, or rank 0 of the others, which is on the machine `host` as rank 0 knows it. The inner error is this rank's
/// alone.
fn meet_rank_0(ranks: &dyn Ranks, host: &str, patience: Duration) -> Result<Result<Vec<Peer>>> {
    let mut member = Member {
        rank: ranks.rank(),
        size: ranks.size(),
        job: [0; 8],
        host: crate::cluster::host(),
    };
    let mut told = Vec::new();
    if ranks.rank() > 0 {
        ranks.broadcast(&mut told, 0)?;
        let Some((job, place)) = read(&told) else {
            return Ok(Err(Error::failed("rank 0", "listens for nobody")));
        };
        member.job = job;
        return Ok(meet::reach(&member, &place, patience).map(|peer| vec![peer]));
    }
    let listening = Place {
        host: host.to_owned(),
        port: 0,
    }
    .listen_anywhere();
    if let Ok((_, place)) = &listening {
        member.job = meet::job_of(&format!(
            "{place} {} {:?}",
            std::process::id(),
            std::time::Instant::now()
        ));
        told = written(member.job, place);
    }
    ranks.broadcast(&mut told, 0)?;
    Ok(listening.and_then(|(listener, place)| meet::gather(&member, &place, &listener, patience)))
}

fn written(job: [u8; 8], place: &Place) -> Vec<u8> {
    [&job[..], &place.port.to_le_bytes(), place.host.as_bytes()].concat()
}

/// What [`written`] wrote.
fn read(bytes: &[u8]) -> Option<([u8; 8], Place)> {
    let (job, rest) = bytes.split_first_chunk::<8>()?;
    let (port, host) = rest.split_first_chunk::<2>()?;
    let place = Place {
        host: String::from_utf8(host.to_vec()).ok()?,
        port: u16::from_le_bytes(*port),
    };
    Some((*job, place))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::super::lifeline::End;
    use super::*;
    use crate::cluster::simulated::{Network, on_ranks};

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn a_rank_that_is_gone_is_named_and_one_that_takes_leave_is_not() {
        for leaves in [false, true] {
            let found = on_ranks(3, Network::default(), |ranks| {
                let (tell, told) = channel();
                let on_end: OnEnd = Arc::new(move |end| {
                    let _ = tell.send(end);
                });
                let lines = guard_with(ranks.as_ref(), PATIENCE, on_end).unwrap().unwrap();
                ranks.barrier().unwrap();
                if ranks.rank() == 1 {
                    match leaves {
                        true => lines.leave(),
                        false => lines.shut(),
                    }
                }
                let end = match ranks.rank() == 1 || leaves {
                    true => told.recv_timeout(Duration::from_millis(300)).ok(),
                    false => told.recv_timeout(SOON).ok(),
                };
                // Not closed before all have heard.
                ranks.barrier().unwrap();
                lines.leave();
                end
            });
            if leaves {
                assert_eq!(found, [None, None, None]);
                continue;
            }
            let Some(End::Lost(lost)) = &found[0] else {
                panic!("{found:?}")
            };
            assert!(lost.starts_with("rank 1 on "), "{lost}");
            assert_eq!(found[1..], [None, Some(End::Told(1))]);
        }
    }

    #[test]
    fn a_machine_that_is_not_reached_leaves_the_ranks_unguarded() {
        let found = on_ranks(2, Network::default(), |ranks| {
            let found = meet_rank_0(
                ranks.as_ref(),
                "no.such.machine.invalid",
                Duration::from_millis(200),
            );
            found.unwrap().is_err()
        });
        assert_eq!(found, [true, true]);
    }
}
