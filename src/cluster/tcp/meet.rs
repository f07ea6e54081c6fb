//! How the ranks of a job find each other without MPI: rank 0 listens on the machine and port that the launcher's variables tell all of
//! them, and each of the others makes two connections with it, one for calls and one as a lifeline.
//!
//! What `torchrun` itself listens on is `MASTER_PORT`, so that ranks meet on another. Nothing is encrypted, and who is on the network may
//! connect, as with MPI.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// The variable that names the port of rank 0 where the usual one is taken.
pub(super) const PORT: &str = "MACULA_PORT";
/// How far the usual port is from `MASTER_PORT`: above it, or below where there is none as high.
const OFFSET: u16 = 1000;
/// How every greeting and every answer begins: a name, and the version of what follows.
const GREETING: [u8; 13] = *b"macula-ranks\x01";
/// Time that a connection has to say who it is.
const MANNERS: Duration = Duration::from_secs(5);
/// Time between two tries, and between two looks at who has come.
const AGAIN: Duration = Duration::from_millis(50);
/// Time that one try to connect takes at most.
const ONE_TRY: Duration = Duration::from_secs(5);
/// The longest name of a machine, and the longest reason of a refusal, in bytes.
const TEXT: usize = 1000;

/// Where rank 0 of a job listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
}

/// This process in its job.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) rank: usize,
    pub(super) size: usize,
    /// What tells jobs apart that are started with the same port.
    pub(super) job: [u8; 8],
    /// The name of its machine.
    pub(super) host: String,
}

/// The connections with another rank.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) rank: usize,
    pub(super) host: String,
    pub(super) calls: TcpStream,
    pub(super) lifeline: TcpStream,
}

impl Place {
    /// The place of the job that this process is started in.
    ///
    /// # Errors
    /// A variable that is missing or no port.
    pub(super) fn of_this_process() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`Place::of_this_process`], where the environment is `variable`.
    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let port = |name: &str| {
            let Some(text) = set(name) else { return Ok(None) };
            let number = text.trim().parse::<u16>().ok().filter(|&port| port > 0);
            let wrong = || Error::input(name, format!("expected a port, 1 to 65535, found `{text}`"));
            number.ok_or_else(wrong).map(Some)
        };
        let missing = |name: &str| {
            let reason = "expected it beside RANK and WORLD_SIZE, found none; torchrun sets it";
            Error::input(name, reason)
        };
        let host = set("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR"))?;
        let port = match (port(PORT)?, port("MASTER_PORT")?) {
            (Some(port), _) => port,
            (None, Some(master)) => master.checked_add(OFFSET).unwrap_or(master - OFFSET),
            (None, None) => return Err(missing("MASTER_PORT")),
        };
        Ok(Self {
            host: host.trim().to_owned(),
            port,
        })
    }

    fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map(Iterator::collect)
    }

    /// Where rank 0 listens: on all of its addresses, since a name may mean another one here than on other machines; on this machine
    /// alone where that is what is named.
    fn listen(&self) -> Result<TcpListener> {
        let name = self.host.parse::<IpAddr>();
        let here = self.host == "localhost" || name.is_ok_and(|address| address.is_loopback());
        let addresses = match here {
            true => self.resolve().map_err(|error| self.unknown(&error))?,
            false => [
                IpAddr::from(Ipv6Addr::UNSPECIFIED),
                IpAddr::from(Ipv4Addr::UNSPECIFIED),
            ]
            .map(|address| SocketAddr::new(address, self.port))
            .to_vec(),
        };
        let mut failed = None;
        for address in addresses {
            match TcpListener::bind(address) {
                Ok(listener) => return Ok(listener),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    let reason = format!(
                        "port {} is taken by another program; name a free one, the same for all ranks",
                        self.port
                    );
                    return Err(Error::input(PORT, reason));
                }
                Err(error) => failed = Some(error),
            }
        }
        let reason = failed.map_or_else(|| "no such address".to_owned(), |error| error.to_string());
        Err(Error::failed(format!("listening on {self}"), reason))
    }

    /// Listens on any free port of this machine, by whatever name it is reached: the listener, and the place with that port.
    pub(super) fn listen_anywhere(mut self) -> Result<(TcpListener, Self)> {
        let listener = self.listen()?;
        let address = listener
            .local_addr()
            .map_err(|error| Error::failed("listening", error.to_string()))?;
        self.port = address.port();
        Ok((listener, self))
    }

    fn unknown(&self, error: &io::Error) -> Error {
        let reason = format!("expected the machine of rank 0, found `{}` ({error})", self.host);
        Error::input("MASTER_ADDR", reason)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What tells the job `name` from others.
pub(super) fn job_of(name: &str) -> [u8; 8] {
    let hash: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    let mut job = [0; 8];
    job.copy_from_slice(&hash[..8]);
    job
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Calls,
    Lifeline,
}

/// Who connects, and what for.
#[derive(Debug)]
struct Greeting {
    purpose: Purpose,
    size: usize,
    rank: usize,
    job: [u8; 8],
    host: String,
}

impl Greeting {
    fn of(member: &Member, purpose: Purpose) -> Vec<u8> {
        let mut bytes = GREETING.to_vec();
        bytes.push(u8::from(purpose == Purpose::Lifeline));
        bytes.extend((member.size as u32).to_le_bytes());
        bytes.extend((member.rank as u32).to_le_bytes());
        bytes.extend(member.job);
        bytes.extend(as_text(&member.host));
        bytes
    }

    /// Reads one; none where what comes is something else.
    fn read(mut stream: impl Read) -> io::Result<Option<Self>> {
        if !read_greeting(&mut stream)? {
            return Ok(None);
        }
        let mut rest = [0; 17];
        stream.read_exact(&mut rest)?;
        let [purpose, s0, s1, s2, s3, r0, r1, r2, r3, job @ ..] = rest;
        Ok(Some(Self {
            purpose: match purpose {
                0 => Purpose::Calls,
                _ => Purpose::Lifeline,
            },
            size: u32::from_le_bytes([s0, s1, s2, s3]) as usize,
            rank: u32::from_le_bytes([r0, r1, r2, r3]) as usize,
            job,
            host: read_text(stream)?,
        }))
    }

    /// Why this is nobody that `member`, rank 0, waits for; none where it is one.
    fn refusal(&self, member: &Member) -> Option<String> {
        let (rank, host) = (self.rank, &self.host);
        if self.size != member.size {
            let (expected, found) = (member.size, self.size);
            return Some(format!(
                "expected WORLD_SIZE={expected}, as rank 0 on {} has it, found {found} at rank {rank} on {host}",
                member.host
            ));
        }
        (rank == 0 || rank >= self.size).then(|| {
            format!(
                "expected a rank of 1 to {}, found RANK={rank} on {host}",
                self.size - 1
            )
        })
    }
}

/// Whether what comes begins as a greeting or an answer does.
fn read_greeting(mut stream: impl Read) -> io::Result<bool> {
    let mut start = [0; GREETING.len()];
    stream.read_exact(&mut start)?;
    Ok(start == GREETING)
}

/// `text` behind its length, cut to what is read.
fn as_text(text: &str) -> Vec<u8> {
    let bytes = &text.as_bytes()[..text.len().min(TEXT)];
    let mut all = (bytes.len() as u16).to_le_bytes().to_vec();
    all.extend_from_slice(bytes);
    all
}

fn read_text(mut stream: impl Read) -> io::Result<String> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_le_bytes(length)).min(TEXT)];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What rank 0 says once all have come, or once it knows that they will not.
fn answer(refusal: Option<&str>, host: &str) -> Vec<u8> {
    let mut bytes = GREETING.to_vec();
    bytes.push(u8::from(refusal.is_some()));
    bytes.extend(as_text(refusal.unwrap_or(host)));
    bytes
}

/// The connections of one rank while rank 0 waits for the others.
#[derive(Default)]
struct Arriving {
    host: String,
    calls: Option<TcpStream>,
    lifeline: Option<TcpStream>,
}

impl Arriving {
    fn place(&mut self, purpose: Purpose) -> &mut Option<TcpStream> {
        match purpose {
            Purpose::Calls => &mut self.calls,
            Purpose::Lifeline => &mut self.lifeline,
        }
    }

    fn whole(self, rank: usize) -> Option<Peer> {
        Some(Peer {
            rank,
            host: self.host,
            calls: self.calls?,
            lifeline: self.lifeline?,
        })
    }
}

/// For rank 0: the others, in rank order, once all of them have come.
///
/// # Errors
/// A port that is taken, a rank of another number of ranks or one that is there twice, ranks that do not come within `patience`. All
/// that have come are told.
pub(super) fn wait_for_all(member: &Member, place: &Place, patience: Duration) -> Result<Vec<Peer>> {
    let listener = place.listen()?;
    gather(member, place, &listener, patience)
}

/// As [`wait_for_all`], where `listener` listens at `place`.
pub(super) fn gather(
    member: &Member,
    place: &Place,
    listener: &TcpListener,
    patience: Duration,
) -> Result<Vec<Peer>> {
    let deadline = Instant::now() + patience;
    let mut arriving: Vec<Arriving> = (1..member.size).map(|_| Arriving::default()).collect();
    let done = accept_all(member, place, listener, deadline, &mut arriving);
    let said = match &done {
        Ok(()) => answer(None, &member.host),
        Err(error) => answer(Some(&error.to_string()), &member.host),
    };
    for calls in arriving.iter().filter_map(|rank| rank.calls.as_ref()) {
        // One that has gone by now is found out by its lifeline.
        let _ = { calls }.write_all(&said);
    }
    done?;
    let peers = arriving.into_iter().enumerate();
    Ok(peers.filter_map(|(place, rank)| rank.whole(place + 1)).collect())
}

fn accept_all(
    member: &Member,
    place: &Place,
    listener: &TcpListener,
    deadline: Instant,
    arriving: &mut [Arriving],
) -> Result<()> {
    let failed = |error: io::Error| Error::failed(format!("listening on {place}"), error.to_string());
    listener.set_nonblocking(true).map_err(failed)?;
    let is_missing = |rank: &Arriving| rank.calls.is_none() || rank.lifeline.is_none();
    while arriving.iter().any(is_missing) {
        if Instant::now() >= deadline {
            let missing = arriving.iter().enumerate().filter(|(_, rank)| is_missing(rank));
            let missing: Vec<String> = missing.map(|(place, _)| (place + 1).to_string()).collect();
            let reason = format!(
                "expected {} ranks, waited in vain for {}; they need the same MASTER_ADDR and MASTER_PORT, and must reach this \
                 machine",
                member.size,
                missing.join(", ")
            );
            return Err(Error::failed(format!("rank 0 at {place}"), reason));
        }
        match listener.accept() {
            Ok((stream, address)) => welcome(member, stream, address, arriving)?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(AGAIN),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Gone again before it was accepted.
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Finds out who has connected. A stranger is sent away; a rank that cannot be one of this job ends it.
fn welcome(
    member: &Member,
    mut stream: TcpStream,
    address: SocketAddr,
    arriving: &mut [Arriving],
) -> Result<()> {
    let greeting = prepare(&stream).and_then(|()| Greeting::read(&mut stream));
    let greeting = match greeting {
        Ok(Some(greeting)) => greeting,
        Ok(None) => {
            tracing::warn!("{address} connected and is no rank: sent away");
            return Ok(());
        }
        Err(error) => {
            tracing::warn!("{address} connected and did not say who it is ({error}): sent away");
            return Ok(());
        }
    };
    let refuse = |mut stream: TcpStream, reason: &str| {
        let _ = stream.write_all(&answer(Some(reason), &member.host));
    };
    if greeting.job != member.job {
        let (rank, host) = (greeting.rank, &greeting.host);
        tracing::warn!("rank {rank} on {host} belongs to another job (TORCHELASTIC_RUN_ID): sent away");
        refuse(
            stream,
            "this is another job (TORCHELASTIC_RUN_ID); give each a MASTER_PORT of its own",
        );
        return Ok(());
    }
    if let Some(reason) = greeting.refusal(member) {
        refuse(stream, &reason);
        return Err(Error::input("WORLD_SIZE", reason));
    }
    let rank = &mut arriving[greeting.rank - 1];
    if rank.place(greeting.purpose).is_some() {
        let reason = format!(
            "expected each rank once, found RANK={} on {} and on {}",
            greeting.rank, rank.host, greeting.host
        );
        refuse(stream, &reason);
        return Err(Error::input("RANK", reason));
    }
    rank.host = greeting.host;
    if stream.set_read_timeout(None).is_ok() {
        *rank.place(greeting.purpose) = Some(stream);
    }
    Ok(())
}

/// What a connection is set to until it is known whose it is.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    // Some systems hand the listener's own setting on.
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(MANNERS))
}

/// For every other rank: rank 0, once all have come.
///
/// # Errors
/// A machine that is not known, one that nobody answers on within `patience`, another program there, what rank 0 has to say against it.
pub(super) fn reach(member: &Member, place: &Place, patience: Duration) -> Result<Peer> {
    let deadline = Instant::now() + patience;
    let mut calls = connect(place, deadline)?;
    let lifeline = connect(place, deadline)?;
    let failed = |error: io::Error| {
        let reason = format!(
            "the connection ended before the job began ({error}); rank 0 has ended, or another program listens there"
        );
        Error::failed(format!("rank 0 at {place}"), reason)
    };
    let greet = |mut stream: &TcpStream, purpose| stream.write_all(&Greeting::of(member, purpose));
    greet(&calls, Purpose::Calls).map_err(failed)?;
    greet(&lifeline, Purpose::Lifeline).map_err(failed)?;
    // Rank 0, which may have come later than this rank, waits as long for the last one, and answers then.
    calls
        .set_read_timeout(Some(patience + 2 * MANNERS))
        .map_err(failed)?;
    if !read_greeting(&mut calls).map_err(failed)? {
        let reason = "expected rank 0 of this job, found another program; name a free port in MACULA_PORT";
        return Err(Error::failed(place.to_string(), reason));
    }
    let mut refused = [0];
    calls.read_exact(&mut refused).map_err(failed)?;
    let said = read_text(&mut calls).map_err(failed)?;
    if refused != [0] {
        return Err(Error::failed(format!("rank 0 at {place}"), said));
    }
    calls.set_read_timeout(None).map_err(failed)?;
    Ok(Peer {
        rank: 0,
        host: said,
        calls,
        lifeline,
    })
}

/// A connection to where rank 0 listens, or will.
fn connect(place: &Place, deadline: Instant) -> Result<TcpStream> {
    loop {
        let failed = match place.resolve() {
            Ok(addresses) => {
                let mut failed = None;
                for address in addresses {
                    match TcpStream::connect_timeout(&address, ONE_TRY) {
                        Ok(stream) => {
                            let ready = stream.set_nodelay(true).map(|()| stream);
                            return ready
                                .map_err(|error| Error::failed(place.to_string(), error.to_string()));
                        }
                        Err(error) => failed = Some(error),
                    }
                }
                failed.map_or_else(|| "no such address".to_owned(), |error| error.to_string())
            }
            Err(error) if Instant::now() >= deadline => return Err(place.unknown(&error)),
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            let reason = format!(
                "could not be reached ({failed}); expected rank 0 to listen there (MASTER_ADDR, and {OFFSET} from MASTER_PORT or \
                 {PORT})"
            );
            return Err(Error::failed(format!("rank 0 at {place}"), reason));
        }
        sleep(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Place> {
        Place::from_variables(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn ranks_meet_beside_the_port_that_torchrun_has() {
        for (variables, port) in [
            (&[("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500")][..], 30_500),
            (&[("MASTER_ADDR", "node7"), ("MASTER_PORT", "65000")], 64_000),
            (
                &[("MASTER_ADDR", "node7"), ("MASTER_PORT", "29500"), (PORT, "9999")],
                9999,
            ),
            (&[("MASTER_ADDR", "node7"), (PORT, "9999")], 9999),
        ] {
            let host = "node7".to_owned();
            assert_eq!(place(variables).unwrap(), Place { host, port });
        }
    }

    #[test]
    fn variables_that_are_missing_or_wrong_are_named() {
        for (variables, message) in [
            (
                &[("MASTER_PORT", "29500")][..],
                "MASTER_ADDR: expected it beside RANK and WORLD_SIZE, found none; torchrun sets it",
            ),
            (
                &[("MASTER_ADDR", "node7")],
                "MASTER_PORT: expected it beside RANK and WORLD_SIZE, found none; torchrun sets it",
            ),
            (
                &[("MASTER_ADDR", "node7"), ("MASTER_PORT", "0")],
                "MASTER_PORT: expected a port, 1 to 65535, found `0`",
            ),
            (
                &[("MASTER_ADDR", "node7"), (PORT, "http")],
                "MACULA_PORT: expected a port, 1 to 65535, found `http`",
            ),
        ] {
            assert_eq!(place(variables).unwrap_err().to_string(), message);
        }
    }
}
