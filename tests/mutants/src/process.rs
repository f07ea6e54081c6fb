//! A test binary in a process of its own, with limits on time, memory, files and core dumps.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::Result;
use crate::build::Binary;

/// Processor seconds and seconds by the clock.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    processor: u64,
    clock: Duration,
}

impl Limits {
    /// Those of tests that take `seconds` by themselves: many times as much, as a mutant may be slower. The clock is
    /// only for what waits for ever: on a busy machine a test takes much longer than its processor time.
    pub fn several_times(seconds: f64) -> Self {
        Self {
            processor: 4 + (10.0 * seconds).ceil() as u64,
            clock: Duration::from_secs_f64(120.0 + 40.0 * seconds),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// All its tests passed.
    Passed,
    /// This test failed first.
    Failed(String),
    /// It was stopped at a limit of time.
    TimedOut,
    /// It ended otherwise: a signal, an exit without a failed test.
    Died(String),
}

/// Most that a process may allocate, in KiB.
const MEMORY: u64 = 6 << 20;

/// Longest file that it may write, in blocks of 512 bytes.
const FILE: u64 = 4 << 20;

/// Runs `tests` of a binary with variables of the environment, up to the first that fails.
pub fn run(
    binary: &Binary,
    tests: &[&str],
    variables: &[(&str, &str)],
    temporary: &Path,
    limits: Limits,
) -> Result<Ending> {
    let _ = std::fs::remove_dir_all(temporary);
    std::fs::create_dir_all(temporary).map_err(|error| format!("{}: {error}", temporary.display()))?;
    let script = format!(
        "ulimit -c 0; ulimit -t {}; ulimit -d {MEMORY}; ulimit -f {FILE}; exec nice -n 10 \"$0\" \"$@\"",
        limits.processor
    );
    let mut child = Command::new("sh")
        .args(["-c", &script])
        .arg(&binary.path)
        .args(["--test-threads=2", "--exact"])
        .args(tests)
        .current_dir(&binary.folder)
        .env("CARGO_MANIFEST_DIR", &binary.folder)
        .env("TMPDIR", temporary)
        // Property tests draw the same cases every time, keep none, and need not make a failure small.
        .envs([
            ("PROPTEST_RNG_SEED", "1"),
            ("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true"),
            ("PROPTEST_MAX_SHRINK_ITERS", "0"),
        ])
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{}: {error}", binary.path.display()))?;
    let ending = watched(&mut child, limits.clock);
    // What it started ends with it.
    // SAFETY: a signal to the group that was made for this child.
    unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    let _ = child.wait();
    ending.ok_or_else(|| format!("{}: cannot be waited for", binary.path.display()))
}

fn watched(child: &mut Child, clock: Duration) -> Option<Ending> {
    let lines = lines(child);
    let end = Instant::now() + clock;
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(name) = line
                    .strip_prefix("test ")
                    .and_then(|rest| rest.strip_suffix(" ... FAILED"))
                {
                    return Some(Ending::Failed(name.to_owned()));
                }
            }
            Err(RecvTimeoutError::Timeout) => return Some(Ending::TimedOut),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // The output is closed; a process that does not end soon hangs.
    while Instant::now() < end {
        if let Some(status) = child.try_wait().ok()? {
            return Some(match (status.code(), status.signal()) {
                (Some(0), _) => Ending::Passed,
                (_, Some(libc::SIGXCPU | libc::SIGKILL)) => Ending::TimedOut,
                (code, signal) => Ending::Died(format!("exit {code:?}, signal {signal:?}")),
            });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Some(Ending::TimedOut)
}

fn lines(child: &mut Child) -> Receiver<String> {
    let (send, receive) = channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(output)
                .split(b'\n')
                .map_while(std::result::Result::ok)
            {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
    }
    receive
}
