//! Child processes under limits of time and memory: what they took, and how they ended. Memory is read from `/proc` where
//! there is one; the address space is limited by the shell.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a child may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Processor time. A busy machine makes everything slow; only a loop takes processor time.
    pub cpu: Duration,
    /// Time by the clock: several times the processor time, for a child that waits for ever.
    pub wall: Duration,
    /// Memory in use.
    pub memory: u64,
    /// Address space: allocations above it fail at once, without taking the machine's memory.
    pub address_space: u64,
}

impl Limits {
    /// For one input.
    pub fn for_inputs() -> Self {
        Self {
            cpu: Duration::from_secs(15),
            wall: Duration::from_secs(90),
            memory: 2 << 30,
            address_space: 16 << 30,
        }
    }

    /// For the commands that make seeds.
    pub fn for_seeds() -> Self {
        Self {
            cpu: Duration::from_secs(300),
            wall: Duration::from_secs(900),
            ..Self::for_inputs()
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exit(i32),
    /// By a signal: an abort, a segmentation fault.
    Signal(i32),
    /// It took too long and was ended.
    Hang,
    /// It took too much memory and was ended.
    Memory,
}

/// A child's end and what it left.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub end: End,
    /// What it wrote to stderr.
    pub stderr: String,
    /// Time by the clock.
    pub took: Duration,
}

/// `program` behind a limit of its address space.
pub fn limited(program: &Path, limits: &Limits) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!(
            "ulimit -v {}; exec \"$0\" \"$@\"",
            limits.address_space >> 10
        ))
        .arg(program);
    command
}

/// Runs `macula` with the words of `arguments` in `folder`; `< FILE` at their end gives it a file on stdin.
pub fn macula(folder: &Path, arguments: &str, limits: &Limits) -> Ran {
    let program = Path::new(env!("CARGO_BIN_EXE_macula"));
    let (arguments, input) = match arguments.split_once(" < ") {
        Some((arguments, file)) => (arguments, fs::File::open(folder.join(file)).map(Stdio::from).ok()),
        None => (arguments, None),
    };
    let stderr_file = folder.join("stderr.txt");
    let child = fs::File::create(&stderr_file).and_then(|stderr| {
        limited(program, limits)
            .args(arguments.split_whitespace())
            .current_dir(folder)
            .env_remove("MACULA_LOG")
            .env_remove("RUST_BACKTRACE")
            .stdin(input.unwrap_or_else(Stdio::null))
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
    });
    let mut child = child.expect("macula starts");
    let start = Instant::now();
    let end = loop {
        if let Some(status) = child.try_wait().expect("macula can be waited for") {
            break end_of(status);
        }
        if let Some(end) = excess(&Usage::read(child.id()), start.elapsed(), limits) {
            stop(&mut child);
            break end;
        }
        sleep(if start.elapsed() < Duration::from_millis(100) {
            Duration::from_millis(1)
        } else {
            Duration::from_millis(10)
        });
    };
    let stderr = fs::read(&stderr_file).unwrap_or_default();
    Ran {
        end,
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        took: start.elapsed(),
    }
}

/// How a process ended by itself.
pub fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exit(code),
        (None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}

/// Which limit is passed, if any.
pub fn excess(used: &Usage, wall: Duration, limits: &Limits) -> Option<End> {
    if used.memory > limits.memory {
        return Some(End::Memory);
    }
    (used.cpu > limits.cpu || wall > limits.wall).then_some(End::Hang)
}

/// Ends a child of ours.
pub fn stop(child: &mut Child) {
    // One that has just ended cannot be ended, and that is as good.
    let _ = child.kill();
    let _ = child.wait();
}

/// What a process has taken so far; zero where the system does not say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Processor time of all its threads.
    pub cpu: Duration,
    /// Memory in use.
    pub memory: u64,
}

impl Usage {
    /// Of a process.
    pub fn read(process: u32) -> Self {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        // The name, in brackets, may hold anything.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let ticks = |place: usize| {
            fields
                .get(place)
                .and_then(|field| field.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
        Self {
            // User and system time, in hundredths of a second.
            cpu: Duration::from_millis(10 * (ticks(11) + ticks(12))),
            memory: kilobytes << 10,
        }
    }
}
