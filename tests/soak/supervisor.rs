//! The parent: hands kinds to workers, each a few seconds at a time and the one that had least time first, watches what they
//! take, and keeps what they find.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::findings::{Fault, Finding, Tally};
use super::kinds::{KINDS, Kind};
use super::process::{self, End, Limits, Usage};
use super::tree;
use super::worker::{self, Word, Work};

/// How long a worker works before another kind has its turn.
const TURN: Duration = Duration::from_secs(5);
/// Between two looks at a worker.
const LOOK: Duration = Duration::from_millis(20);
/// The first number of inputs for the binary, so that they are others than the library's.
const FIRST_FOR_BINARY: u64 = 1 << 40;
/// Inputs that are kept of one fault at one place.
const KEPT: usize = 3;

/// What a soak is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long.
    pub duration: Duration,
    /// The most inputs of a kind, through the library and through the binary.
    pub max: (u64, u64),
    /// What every choice follows from.
    pub seed: u64,
    /// Workers at a time.
    pub threads: usize,
    /// The kinds.
    pub kinds: Vec<&'static Kind>,
    /// The share of the time that goes to the binary.
    pub binary_share: f64,
    /// Where findings are kept.
    pub keep: PathBuf,
    /// Where the seeds are.
    pub seeds: PathBuf,
    /// Where workers work.
    pub folder: PathBuf,
}

/// One kind, through the library or through the binary.
#[derive(Debug)]
struct Job {
    kind: &'static Kind,
    binary: bool,
    next: u64,
    spent: Duration,
    busy: bool,
}

/// What was found of one fault at one place.
#[derive(Debug, Default)]
pub struct Found {
    /// How often.
    pub count: u64,
    /// The first ones, and where they are kept.
    pub first: Vec<(Finding, PathBuf)>,
}

/// What a soak found and counted, by kind.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Counts by kind.
    pub tallies: BTreeMap<&'static str, Tally>,
    /// Faults by kind, way, fault and place.
    pub found: BTreeMap<(&'static str, bool, Fault, String), Found>,
    /// How long it took.
    pub took: Duration,
}

struct State {
    jobs: Vec<Job>,
    outcome: Outcome,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Runs a plan.
pub fn soak(plan: &Plan) -> Outcome {
    let start = Instant::now();
    let of_kind = |kind: &&'static Kind| {
        let job = |binary| Job {
            kind,
            binary,
            next: if binary { FIRST_FOR_BINARY } else { 0 },
            spent: Duration::ZERO,
            busy: false,
        };
        let library = (kind.read.is_some() && plan.max.0 > 0).then(|| job(false));
        let binary = (!kind.commands.is_empty() && plan.max.1 > 0).then(|| job(true));
        [library, binary].into_iter().flatten()
    };
    let state = Mutex::new(State {
        jobs: plan.kinds.iter().flat_map(of_kind).collect(),
        outcome: Outcome::default(),
    });
    std::thread::scope(|scope| {
        for slot in 0..plan.threads {
            let state = &state;
            scope.spawn(move || {
                while let Some(index) = next_job(plan, state, start) {
                    let turn = take_turn(plan, state, index, slot);
                    let mut state = lock(state);
                    state.jobs[index].spent += turn;
                    state.jobs[index].busy = false;
                }
            });
        }
    });
    let mut outcome = state.into_inner().unwrap_or_else(PoisonError::into_inner).outcome;
    outcome.took = start.elapsed();
    outcome
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the job whose turn it is; none when the time or the work is up.
fn next_job(plan: &Plan, state: &Mutex<State>, start: Instant) -> Option<usize> {
    loop {
        if start.elapsed() >= plan.duration {
            return None;
        }
        let mut state = lock(state);
        let spent = |binary: bool| -> f64 {
            state
                .jobs
                .iter()
                .filter(|job| job.binary == binary)
                .map(|job| job.spent.as_secs_f64())
                .sum()
        };
        let for_binary = spent(true) <= plan.binary_share * (spent(true) + spent(false));
        let open = |job: &&(usize, &Job)| !job.1.busy && left(plan, job.1) > 0;
        let jobs: Vec<(usize, &Job)> = state.jobs.iter().enumerate().collect();
        let chosen = jobs
            .iter()
            .filter(open)
            .min_by_key(|(_, job)| (job.binary != for_binary, job.spent))
            .map(|(index, _)| *index);
        if let Some(index) = chosen {
            state.jobs[index].busy = true;
            return Some(index);
        }
        if state.jobs.iter().all(|job| left(plan, job) == 0) {
            return None;
        }
        drop(state);
        std::thread::sleep(LOOK);
    }
}

/// Inputs that a job may still take.
fn left(plan: &Plan, job: &Job) -> u64 {
    let (first, max) = if job.binary {
        (FIRST_FOR_BINARY, plan.max.1)
    } else {
        (0, plan.max.0)
    };
    (first + max).saturating_sub(job.next)
}

/// Lets a worker work on a job for a while.
fn take_turn(plan: &Plan, state: &Mutex<State>, index: usize, slot: usize) -> Duration {
    let start = Instant::now();
    let work = {
        let state = lock(state);
        let job = &state.jobs[index];
        Work {
            kind: job.kind.name.to_owned(),
            binary: job.binary,
            seed: plan.seed,
            first: job.next,
            count: left(plan, job),
            milliseconds: TURN.as_millis() as u64,
            seeds: plan.seeds.clone(),
            folder: plan.folder.join(format!("worker-{slot}")),
        }
    };
    let watched = watch(&work);
    let kind = lock(state).jobs[index].kind;
    let mut findings = watched.found;
    if let Some((number, fault, place)) = watched.died {
        // Alone, in a worker of its own: what came of many inputs together or of a busy machine does not come again.
        let alone = watch(&Work {
            first: number,
            count: 1,
            ..work.clone()
        });
        let again = alone.died.is_some_and(|(_, found, _)| found == fault);
        let message = if again {
            watched.stderr
        } else {
            format!("not again when alone; {}", watched.stderr)
        };
        findings.push(Finding {
            kind: kind.name.to_owned(),
            binary: work.binary,
            seed: plan.seed,
            number,
            fault,
            place,
            message,
            command: String::new(),
        });
    }
    let mut state = lock(state);
    state.jobs[index].next = watched.next;
    let tally = state.outcome.tallies.entry(kind.name).or_default();
    tally.add(watched.tally);
    for finding in findings {
        let key = (
            kind.name,
            finding.binary,
            finding.fault.clone(),
            finding.place.clone(),
        );
        let found = state.outcome.found.entry(key).or_default();
        found.count += 1;
        if found.first.len() < KEPT {
            let path = keep(plan, kind, &finding);
            found.first.push((finding, path));
        }
    }
    start.elapsed()
}

/// Writes the input of a finding, and what was found, into a folder of its own.
fn keep(plan: &Plan, kind: &'static Kind, finding: &Finding) -> PathBuf {
    let way = if finding.binary { "binary" } else { "library" };
    let path = plan.keep.join(format!(
        "{}-{way}-{:?}-{}",
        kind.name, finding.fault, finding.number
    ));
    let input = worker::input(
        kind,
        &worker::seeds_of(kind, &plan.seeds),
        finding.seed,
        finding.number,
    );
    let written = tree::write(&input.files, &path.join("input")).and_then(|()| {
        let text = serde_json::to_string_pretty(finding)?;
        std::fs::write(path.join("finding.json"), text)
    });
    if let Err(error) = written {
        eprintln!("{}: {error}", path.display());
    }
    path
}

/// What came of a worker.
struct Watched {
    next: u64,
    tally: Tally,
    found: Vec<Finding>,
    died: Option<(u64, Fault, String)>,
    stderr: String,
}

/// Starts a worker, watches it, and ends it where it takes too much.
fn watch(work: &Work) -> Watched {
    std::fs::create_dir_all(&work.folder).expect("a folder");
    let stderr_file = work.folder.join("worker-stderr.txt");
    let program = std::env::current_exe().expect("this program");
    let mut limits = Limits::for_inputs();
    if work.binary {
        // The worker itself ends a command that takes too long.
        (limits.cpu, limits.wall) = (Duration::MAX, limits.wall * 3);
    }
    let mut child = process::limited(&program, &limits)
        .args(["--work", &serde_json::to_string(work).expect("written")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&stderr_file).expect("a file"))
        .spawn()
        .expect("a worker starts");
    let now = Arc::new(AtomicU64::new(work.first));
    let words = listen(&mut child, Arc::clone(&now));
    let mut watched = Watched {
        next: work.first,
        tally: Tally::default(),
        found: Vec::new(),
        died: None,
        stderr: String::new(),
    };
    let mut done = false;
    let (mut number, mut since, mut used) = (work.first, Instant::now(), Usage::default());
    let mut end = None;
    loop {
        match words.recv_timeout(LOOK) {
            Ok(Word::Begins(_)) => {}
            Ok(Word::Found(finding)) => watched.found.push(*finding),
            Ok(Word::Done(next, tally)) => (watched.next, watched.tally, done) = (next, tally, true),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let usage = Usage::read(child.id());
                let current = now.load(Ordering::SeqCst);
                if current != number {
                    (number, since, used) = (current, Instant::now(), usage);
                }
                let of_input = Usage {
                    cpu: usage.cpu.saturating_sub(used.cpu),
                    memory: usage.memory,
                };
                end = process::excess(&of_input, since.elapsed(), &limits);
                if end.is_some() {
                    process::stop(&mut child);
                    break;
                }
            }
        }
    }
    // What was said before the end.
    while let Ok(word) = words.try_recv() {
        if let Word::Found(finding) = word {
            watched.found.push(*finding);
        }
    }
    if !done {
        let end = end.unwrap_or_else(|| child.wait().map_or(End::Exit(-1), process::end_of));
        let number = now.load(Ordering::SeqCst);
        watched.next = number + 1;
        let (fault, place) = match end {
            End::Hang => (Fault::Hang, String::new()),
            End::Memory => (Fault::Memory, String::new()),
            End::Signal(signal) => (Fault::Signal, format!("signal {signal}")),
            End::Exit(code) => (Fault::ExitCode, format!("worker's exit code {code}")),
        };
        watched.died = Some((number, fault, place));
    }
    process::stop(&mut child);
    watched.stderr = tail(&stderr_file);
    watched
}

fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let start = text.len().saturating_sub(2000);
    String::from_utf8_lossy(&text[start..]).into_owned()
}

/// Reads what a worker says on a thread of its own; `now` is the input it is at.
fn listen(child: &mut Child, now: Arc<AtomicU64>) -> Receiver<Word> {
    let (sender, receiver) = channel();
    let stdout = child.stdout.take().expect("a pipe");
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(Word::Begins(number)) => now.store(number, Ordering::SeqCst),
                Ok(word) => {
                    if sender.send(word).is_err() {
                        return;
                    }
                }
                // A library that prints: none of the worker's words.
                Err(_) => {}
            }
        }
    });
    receiver
}

/// All kinds, or those whose names begin with one of `names`.
pub fn chosen(names: &[String]) -> Vec<&'static Kind> {
    KINDS
        .iter()
        .filter(|kind| names.is_empty() || names.iter().any(|name| kind.name.starts_with(name.as_str())))
        .collect()
}
