//! Keys, variables, the queue, signals.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Reply, Server};
use super::{data_uri, model, model_of, png};
use crate::harness::Workspace;

fn with_key(server: &Server, path: &str, key: &str) -> Reply {
    let bearer = format!("Bearer {key}");
    server.request("GET", path, &[("Authorization", &bearer)], b"")
}

#[cfg(unix)]
#[test]
fn keys_are_asked_for_and_read_again() {
    let w = Workspace::new();
    w.write("keys", "one-of-the-keys\n");
    let server = Server::start(
        &w,
        &format!("{} --api-key-file keys --api-key from-the-flags", model()),
    );
    for path in ["/v1/models", "/metrics", "/v1/nothing"] {
        let reply = server.get(path);
        assert_eq!(reply.error(401).0, "invalid_api_key", "{path}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        assert_eq!(with_key(&server, path, "another-key").status, 401);
    }
    // Whoever sends much is told as well.
    let much = server.request("POST", "/v1/embeddings", &[], &vec![0; 8 << 20]);
    assert_eq!(much.error(401).0, "invalid_api_key");
    for path in ["/", "/docs", "/openapi.json", "/health/live", "/health/ready"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for key in ["one-of-the-keys", "from-the-flags"] {
        with_key(&server, "/v1/models", key).ok();
    }
    w.write("keys", "a-newer-key\n");
    server.signal("HUP");
    server.wait_for("reload: keys: 2");
    with_key(&server, "/v1/models", "a-newer-key").ok();
    with_key(&server, "/v1/models", "one-of-the-keys").error(401);
    w.write("keys", "\n");
    server.signal("HUP");
    server.wait_for("reload: keys: keys: expected at least one key");
    with_key(&server, "/v1/models", "a-newer-key").ok();
    assert!(!server.log().contains("from-the-flags"), "{}", server.log());
    w.fails(
        2,
        &format!("serve {} --port 0 --api-key-file keys", model()),
        &["keys", "at least one key"],
    );
    w.fails(
        2,
        &format!("serve {} --port 0 --api-key short", model()),
        &["--api-key number 1", "8 characters"],
    );
}

#[test]
fn every_flag_is_a_variable_too_and_wrong_ones_are_named() {
    let w = Workspace::new();
    let variables = [
        ("MACULA_SERVE_MAX_IMAGES", "1"),
        ("MACULA_SERVE_API_KEY", "from-the-environment"),
        ("MACULA_SERVE_LOG_FORMAT", "none"),
        ("MACULA_SERVE_WARMUP", "true"),
    ];
    let server = Server::start_with(&w, &model(), &variables);
    server.get("/v1/models").error(401);
    let uri = data_uri(&png(&w, 0));
    let body = json!({ "input": [uri, uri] }).to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer from-the-environment"),
    ];
    let reply = server.request("POST", "/v1/embeddings", &headers, body.as_bytes());
    assert!(reply.error(400).2.contains("at most 1 images"));
    assert!(!server.log().contains("request id="), "{}", server.log());

    let taken = server.address.split(':').nth(1).expect("a port");
    w.fails(
        2,
        &format!("serve {} --port {taken}", model()),
        &[&server.address],
    );
    let plain = model();
    for (flags, words) in [
        ("--queue 0", ["--queue", "expected 1 to"]),
        ("--queue 4", ["--max-images", "found 64"]),
        ("--timeout 0", ["--timeout", "found 0"]),
        ("--drain=-1", ["--drain", "found -1"]),
        ("--batch 0", ["--batch", "found `0`"]),
        ("--index-images images", ["--index-images", "--index"]),
        ("--tls-cert a.pem", ["--tls-key", "required"]),
        ("--tls-cert a.pem --tls-key b.pem", ["a.pem", "No such file"]),
        ("--host nowhere", ["--host", "nowhere"]),
    ] {
        let run = w.macula(&format!("serve {plain} --port 0 {flags}"));
        assert!(
            run.code == 2 || flags.contains("a.pem --tls") && run.code == 1,
            "{flags}: {}",
            run.stderr
        );
        let last = run.stderr.lines().last().unwrap_or_default();
        assert!(
            words.iter().all(|word| last.contains(word)),
            "{flags}: {}",
            run.stderr
        );
    }
}

#[test]
fn the_queue_is_as_long_as_the_model_is_fast() {
    let w = Workspace::new();
    let queue = |server: &Server| server.get("/v1/models").ok()["data"][0]["queue"].clone();
    let fast = Server::start(&w, &format!("{} --timeout 600", model()));
    assert_eq!(queue(&fast), 256);
    assert!(fast.log().contains("a queue of 256"), "{}", fast.log());
    let told = Server::start(&w, &format!("{} --queue 100", model()));
    assert_eq!(queue(&told), 100);
    // Images of 1,600 patches, and half a second for those that wait.
    let slow = Server::start(&w, &format!("{} --timeout 1 --max-images 256", model_of(560)));
    let most = queue(&slow).as_u64().expect("a number");
    assert!((1..256).contains(&most), "{most}");
    let uri = data_uri(&png(&w, 0));
    let images = json!({ "input": vec![uri; most as usize + 1] });
    let (_, param, message) = slow.post("/v1/embeddings", &images).error(400);
    assert_eq!(param.as_deref(), Some("input"));
    assert!(message.contains(&format!("at most {most} images")), "{message}");
}

#[cfg(unix)]
#[test]
fn a_stop_amid_load_loses_no_request_and_another_starts() {
    let w = Workspace::new();
    let image = png(&w, 0);
    let mut server = Server::start(&w, &format!("{} --drain 2 --log-format none --batch 1", model()));
    let expected = server
        .request("POST", "/v1/embeddings", &[("Content-Type", "image/png")], &image)
        .ok();
    let address = server.address.clone();
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n",
        image.len()
    );
    let request = [head.as_bytes(), &image].concat();
    let start = Instant::now();
    // Each keeps its connection as long as the server does, and comes back until nobody listens.
    let client = || {
        let mut answered = 0;
        while start.elapsed() < Duration::from_secs(60) {
            let Ok(mut stream) = std::net::TcpStream::connect(&address) else {
                return answered;
            };
            stream
                .set_read_timeout(Some(Duration::from_secs(30)))
                .expect("set");
            for place in 0.. {
                let Some(reply) = one_answer(&mut stream, &request) else {
                    // A connection that the server has not accepted any more; one that it had is not lost.
                    assert_eq!(place, 0, "cut off");
                    return answered;
                };
                assert_eq!(reply.ok()["data"], expected["data"]);
                answered += 1;
                if reply.header("connection") == Some("close") {
                    break;
                }
            }
        }
        panic!("it goes on");
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(client)).collect();
        std::thread::sleep(Duration::from_millis(700));
        server.signal("TERM");
        server.wait_for("not ready any more");
        server.get("/health/ready").error(503);
        server.get("/health/live").ok();
        for client in clients {
            assert!(client.join().expect("no request was lost") > 0);
        }
    });
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(
        server.log().contains("stopped: every request was answered"),
        "{}",
        server.log()
    );
    // The port is free again at once, also after an end without a word.
    let port = address.split(':').nth(1).expect("a port").to_owned();
    for _ in 0..2 {
        let mut again = Server::start(&w, &format!("{} --port {port} --batch 1", model()));
        let found = again
            .request("POST", "/v1/embeddings", &[("Content-Type", "image/png")], &image)
            .ok();
        assert_eq!(found["data"], expected["data"]);
        let open = again.connect();
        again.signal("KILL");
        assert_eq!(again.wait().code(), None);
        drop(open);
    }
}

/// The answer to `request` on a connection that stays; none where the connection ended before it.
#[cfg(unix)]
fn one_answer(stream: &mut std::net::TcpStream, request: &[u8]) -> Option<Reply> {
    stream.write_all(request).ok()?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let read = stream.read(&mut buffer).unwrap_or(0);
        bytes.extend_from_slice(&buffer[..read]);
        let reply = Reply::parse(&bytes);
        let length = reply
            .header("content-length")
            .and_then(|length| length.parse::<usize>().ok());
        if length == Some(reply.body.len()) {
            return Some(reply);
        }
        if read == 0 {
            assert!(
                bytes.is_empty(),
                "cut off after {} bytes: {}",
                bytes.len(),
                reply.head
            );
            return None;
        }
    }
}

/// Nothing is served yet, so there is nothing to wait for: here the file of keys is a pipe into which nobody writes.
#[cfg(unix)]
#[test]
fn a_signal_during_the_start_ends_it() {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};
    let w = Workspace::new();
    let made = Command::new("mkfifo").arg(w.path("keys")).status();
    assert!(made.expect("mkfifo runs").success());
    let mut child = Command::new(env!("CARGO_BIN_EXE_macula"))
        .arg("serve")
        .args(format!("{} --port 0 --api-key-file keys", model()).split_whitespace())
        .current_dir(w.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().expect("a status").is_none(), "it does not wait");
    let killed = Command::new("kill").arg(child.id().to_string()).status();
    assert!(killed.expect("kill runs").success());
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a status") {
            break status;
        }
        if start.elapsed() > Duration::from_secs(20) {
            child.kill().expect("killed");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.signal(), Some(15));
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_it_at_once() {
    let w = Workspace::new();
    let mut server = Server::start(&w, &format!("{} --drain 60 --grace 60", model()));
    let mut open = server.connect();
    open.write_all(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
        .expect("sent");
    server.get("/health/live").ok();
    server.signal("TERM");
    server.wait_for("not ready any more");
    let start = Instant::now();
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(1), "{}", server.log());
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(
        server.log().contains("connections were cut off"),
        "{}",
        server.log()
    );
}
