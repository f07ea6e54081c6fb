//! A server in a process of its own, and a client that sends the very bytes it is told.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Workspace;

/// Longer than anything should take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server; it ends with the test.
pub struct Server {
    child: Child,
    /// `127.0.0.1:40001`.
    pub address: String,
    log: std::path::PathBuf,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Server {
    /// Starts `macula serve` with the words of `arguments`, on a free port unless they name one.
    pub fn start(w: &Workspace, arguments: &str) -> Self {
        Self::start_with(w, arguments, &[])
    }

    pub fn start_with(w: &Workspace, arguments: &str, variables: &[(&str, &str)]) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let log = w.path(&format!("log-{}", STARTED.fetch_add(1, Ordering::Relaxed)));
        let port: &[&str] = match arguments.contains("--port") {
            true => &[],
            false => &["--port", "0"],
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_macula"))
            .arg("serve")
            .args(port)
            .args(arguments.split_whitespace())
            .envs(variables.iter().copied())
            .env_remove("MACULA_LOG")
            .current_dir(w.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log"))
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let said = std::fs::read_to_string(&log).expect("a log");
        let address = line.trim().split("://").nth(1);
        let address = address
            .unwrap_or_else(|| panic!("no address: {line}{said}"))
            .to_owned();
        Self { child, address, log }
    }

    /// What it has written to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a log")
    }

    /// Waits until its log holds `text`.
    pub fn wait_for(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            assert!(start.elapsed() < PATIENCE, "no `{text}` in:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends `signal` to it.
    #[cfg(unix)]
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([format!("-{signal}"), self.child.id().to_string()])
            .status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "it goes on:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A connection.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(PATIENCE)).expect("set");
        stream
    }

    /// Sends `bytes` and reads until the connection ends. A server that has seen enough may close while bytes are on their way.
    pub fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes);
        read(stream)
    }

    /// One request on a connection of its own.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.raw(&self.bytes(method, path, headers, body))
    }

    /// The bytes of a request that has a connection of its own.
    pub fn bytes(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        [head.as_bytes(), b"\r\n", body].concat()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[], b"")
    }

    /// Posts JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        let json = [("Content-Type", "application/json")];
        self.request("POST", path, &json, body.to_string().as_bytes())
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = String::from_utf8(self.get("/metrics").body).expect("text");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .parse()
            .expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads an answer until the connection ends.
pub fn read(mut stream: impl Read) -> Reply {
    let mut bytes = Vec::new();
    // A connection that is reset has given what it had.
    let _ = stream.read_to_end(&mut bytes);
    Reply::parse(&bytes)
}

impl Reply {
    /// The answer in `bytes`; status 0 where there is none.
    pub fn parse(bytes: &[u8]) -> Self {
        let bytes = match bytes.starts_with(b"HTTP/1.1 100 ") {
            true => {
                &bytes[bytes
                    .windows(4)
                    .position(|w| w == b"\r\n\r\n")
                    .map_or(0, |at| at + 4)..]
            }
            false => bytes,
        };
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(end) = end else {
            return Self {
                status: 0,
                head: String::from_utf8_lossy(bytes).into_owned(),
                body: Vec::new(),
            };
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or(0),
            head,
            body: bytes[end + 4..].to_vec(),
        }
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}\n{}", self.head, String::from_utf8_lossy(&self.body)))
    }

    /// The answer to a good request.
    pub fn ok(&self) -> Value {
        assert_eq!(
            self.status,
            200,
            "{}\n{}",
            self.head,
            String::from_utf8_lossy(&self.body)
        );
        self.json()
    }

    /// Expects an error in OpenAI's shape with this status, and gives its code, its field and its message.
    pub fn error(&self, status: u16) -> (String, Option<String>, String) {
        let shown = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{}\n{shown}", self.head);
        let error = &self.json()["error"];
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        assert!(text("type").is_some(), "{shown}");
        assert!(!shown.contains('\n'), "{shown}");
        (
            text("code").expect("a code"),
            text("param"),
            text("message").expect("a message"),
        )
    }
}
