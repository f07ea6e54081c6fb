//! Ranks that are threads of this process, over the loopback device.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use super::*;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
/// How soon the others know that one has gone.
const SOON: Duration = Duration::from_secs(5);

fn free_place() -> Place {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    Place {
        host: "127.0.0.1".to_owned(),
        port: free.local_addr().unwrap().port(),
    }
}

fn member(rank: usize, size: usize) -> Member {
    Member {
        rank,
        size,
        job: meet::job_of("a job"),
        host: format!("node{rank}"),
    }
}

/// A rank, and where it says that its job has ended.
type Joined = (Tcp, Receiver<End>);

fn join(member: &Member, place: &Place, patience: Duration) -> Result<Joined> {
    let (tell, told) = channel();
    let on_end: OnEnd = Arc::new(move |end| {
        let _ = tell.send(end);
    });
    Ok((Tcp::meet(member, place.clone(), patience, on_end)?, told))
}

/// What `work` gives on each of `size` ranks, in rank order.
fn on_ranks<T: Send>(size: usize, work: impl Fn(Joined) -> T + Sync) -> Vec<T> {
    let (place, work) = (&free_place(), &work);
    thread::scope(|scope| {
        let start = |rank| scope.spawn(move || work(join(&member(rank, size), place, LONG).unwrap()));
        let threads: Vec<_> = (0..size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn calls_give_every_rank_the_same() {
    for size in [2, 3, 5] {
        let found = on_ranks(size, |(ranks, _told)| {
            let own = ranks.rank() as f32;
            let mut sums = [own, 1., -own, 1e8 + own];
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
            let any = ranks.any(ranks.rank() + 1 == size).unwrap();
            ranks.finish().unwrap();
            (sums, largest, gathered, told, any)
        });
        // In rank order, in f32.
        let last = (1..size).fold(1e8f32, |sum, rank| sum + (1e8 + rank as f32));
        let total = (size * (size - 1) / 2) as f32;
        let gathered: Vec<Vec<u8>> = (0..size).map(|rank| vec![rank as u8; rank]).collect();
        for found in found {
            let expected = (
                [total, size as f32, -total, last],
                [(size - 1) as f64, 0.],
                gathered.clone(),
                vec![7; size],
                true,
            );
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn more_values_than_go_at_once_are_reduced() {
    let count = 2 * AT_ONCE + 3;
    let found = on_ranks(2, |(ranks, _told)| {
        let mut values: Vec<f32> = (0..count)
            .map(|place| (place % 1000 + ranks.rank()) as f32)
            .collect();
        ranks.reduce_f32(&mut values, Reduction::Sum).unwrap();
        values
    });
    for values in found {
        assert_eq!(values.len(), count);
        let wrong = (0..count).find(|&place| values[place] != (2 * (place % 1000) + 1) as f32);
        assert_eq!(wrong, None);
    }
}

#[test]
fn ranks_that_call_differently_are_named() {
    let found = on_ranks(2, |(ranks, _told)| match ranks.rank() {
        0 => ranks.barrier().unwrap_err().to_string(),
        _ => {
            let _ = ranks.reduce_f32(&mut [0.], Reduction::Sum);
            String::new()
        }
    });
    assert_eq!(
        found[0],
        "rank 1 on node1: expected a barrier, found a sum of f32"
    );
}

#[test]
fn a_rank_that_ends_the_job_ends_all_with_its_code() {
    for aborting in [0, 1] {
        let found = on_ranks(3, |(ranks, told)| {
            if ranks.rank() == aborting {
                ranks.abort(3);
            }
            let end = told.recv_timeout(SOON).unwrap();
            // Not closed before all have heard.
            thread::sleep(Duration::from_millis(200));
            end
        });
        assert_eq!(found, [End::Told(3), End::Told(3), End::Told(3)], "{aborting}");
    }
}

#[test]
fn a_rank_that_goes_without_a_word_is_named_and_ends_the_others() {
    let found = on_ranks(3, |(ranks, told)| {
        if ranks.rank() == 1 {
            // As the system closes the connections of a killed process.
            for line in ranks.alone().iter() {
                line.stream.shutdown(std::net::Shutdown::Both).unwrap();
            }
            ranks.lifelines.shut();
            return None;
        }
        let start = Instant::now();
        let end = told.recv_timeout(SOON).unwrap();
        thread::sleep(Duration::from_millis(200));
        Some((end, start.elapsed() < SOON))
    });
    let lost = "rank 1 on node1 has gone (its connection is closed), and so the job ends";
    assert_eq!(found[0], Some((End::Lost(lost.to_owned()), true)));
    assert_eq!(found[2], Some((End::Told(1), true)));
}

#[test]
fn a_rank_that_takes_leave_ends_nothing() {
    let found = on_ranks(3, |(ranks, told)| {
        ranks.finish().unwrap();
        // The last to go sees the others gone.
        thread::sleep(Duration::from_millis(100 * ranks.rank() as u64));
        drop(ranks);
        told.recv_timeout(Duration::from_millis(500)).is_err()
    });
    assert_eq!(found, [true; 3]);
}

#[test]
fn another_number_of_ranks_is_refused_by_name_on_both_sides() {
    let place = free_place();
    let (first, second) = thread::scope(|scope| {
        let rank_0 = scope.spawn(|| join(&member(0, 2), &place, LONG).err());
        let rank_1 = scope.spawn(|| join(&member(1, 3), &place, LONG).err());
        (rank_0.join().unwrap(), rank_1.join().unwrap())
    });
    let reason = "expected WORLD_SIZE=2, as rank 0 on node0 has it, found 3 at rank 1 on node1";
    assert_eq!(first.unwrap().to_string(), format!("WORLD_SIZE: {reason}"));
    assert_eq!(
        second.unwrap().to_string(),
        format!("rank 0 at {place}: {reason}")
    );
}

#[test]
fn a_rank_that_is_there_twice_is_refused() {
    let place = free_place();
    let found = thread::scope(|scope| {
        let rank_0 = scope.spawn(|| join(&member(0, 3), &place, LONG).err());
        let others = [0, 1].map(|_| scope.spawn(|| join(&member(1, 3), &place, LONG).err()));
        for other in others {
            assert!(other.join().unwrap().is_some());
        }
        rank_0.join().unwrap()
    });
    let text = found.unwrap().to_string();
    assert_eq!(
        text,
        "RANK: expected each rank once, found RANK=1 on node1 and on node1"
    );
}

#[test]
fn strangers_and_ranks_of_other_jobs_are_sent_away() {
    let place = free_place();
    let size = thread::scope(|scope| {
        let rank_0 = scope.spawn(|| join(&member(0, 2), &place, LONG).map(|(ranks, _)| ranks.size()));
        let mut stranger = loop {
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, place.port)) {
                break stream;
            }
            thread::sleep(Duration::from_millis(10));
        };
        stranger
            .write_all(b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n")
            .unwrap();
        let of_another_job = Member {
            job: meet::job_of("another"),
            ..member(1, 2)
        };
        let refused = join(&of_another_job, &place, LONG).err().unwrap().to_string();
        assert!(refused.contains("this is another job"), "{refused}");
        let rank_1 = join(&member(1, 2), &place, LONG).unwrap();
        let size = rank_0.join().unwrap();
        drop(rank_1);
        size
    });
    assert_eq!(size.unwrap(), 2);
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let (place, short) = (free_place(), Duration::from_millis(300));
    let (first, second) = thread::scope(|scope| {
        let rank_0 = scope.spawn(|| join(&member(0, 3), &place, short).err());
        let rank_1 = scope.spawn(|| join(&member(1, 3), &place, LONG).err());
        (rank_0.join().unwrap(), rank_1.join().unwrap())
    });
    let text = first.unwrap().to_string();
    assert!(text.contains("expected 3 ranks, waited in vain for 2;"), "{text}");
    // Rank 1 may have been too late, on a machine that is busy.
    let second = second.unwrap().to_string();
    assert!(second.contains(&place.to_string()), "{second}");
}

#[test]
fn a_rank_0_that_is_not_there_is_named() {
    let place = free_place();
    let error = join(&member(1, 2), &place, Duration::from_millis(200))
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("rank 0 at {place}: could not be reached (")),
        "{text}"
    );
}

#[test]
fn a_port_that_is_taken_is_named_with_what_to_do() {
    let place = free_place();
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, place.port)).unwrap();
    let error = join(&member(0, 2), &place, LONG).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert_eq!(
        error.to_string(),
        format!(
            "MACULA_PORT: port {} is taken by another program; name a free one, the same for all ranks",
            place.port
        )
    );
}
