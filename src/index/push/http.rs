//! The little HTTP that a vector store on the same machine or network asks for: JSON out and JSON back, without TLS, a connection a
//! request. Requests are of HTTP/1.0, whose answers come in one piece and end with the connection.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use serde_json::Value;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may be silent.
const SILENCE: Duration = Duration::from_secs(120);
/// Answers to what is sent here are a few hundred bytes.
const LONGEST: u64 = 1 << 20;

/// An answer of a server.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Null where there is none.
    pub(super) body: Value,
}

/// Sends one request to `address`, `HOST:PORT`. An error is the reason alone.
pub(super) fn request(address: &str, method: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
    let mut stream = connect(address)?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut answer = Vec::new();
    let sent = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
    // A server that refuses a request may close before it has read all of it, and its answer says why.
    let read = stream.take(LONGEST + 1).read_to_end(&mut answer);
    if answer.is_empty() {
        sent.and(read.map(|_| ())).map_err(|e| e.to_string())?;
    }
    if answer.len() as u64 > LONGEST {
        return Err(format!(
            "expected an answer of at most {LONGEST} bytes, found more"
        ));
    }
    parse(&answer)
}

fn connect(address: &str) -> Result<TcpStream, String> {
    let mut reason = "no address of that name".to_owned();
    for place in address.to_socket_addrs().map_err(|e| e.to_string())? {
        match TcpStream::connect_timeout(&place, CONNECT) {
            Ok(stream) => {
                let timeouts = stream
                    .set_read_timeout(Some(SILENCE))
                    .and_then(|()| stream.set_write_timeout(Some(SILENCE)));
                return timeouts.map(|()| stream).map_err(|e| e.to_string());
            }
            Err(e) => reason = e.to_string(),
        }
    }
    Err(reason)
}

/// The parts of a whole answer.
fn parse(answer: &[u8]) -> Result<Answer, String> {
    let other = || "expected an answer of HTTP, found something else".to_owned();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or_else(other)?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|_| other())?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
    let status = status.ok_or_else(other)?;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(format!("expected an answer in one piece, found{value}"));
        }
        if name.eq_ignore_ascii_case("content-length") && value.trim().parse() != Ok(body.len()) {
            return Err(format!("expected {} bytes, found {}", value.trim(), body.len()));
        }
    }
    let body = match body {
        [] => Value::Null,
        text => serde_json::from_slice(text)
            .map_err(|e| format!("status {status}: expected JSON, found something else: {e}"))?,
    };
    Ok(Answer { status, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(answer: &str) -> String {
        parse(answer.as_bytes()).expect_err("refused")
    }

    #[test]
    fn an_answer_has_its_parts() {
        let found =
            parse(b"HTTP/1.1 404 Not Found\r\ncontent-length: 10\r\n\r\n{\"a\": [1]}").expect("an answer");
        assert_eq!((found.status, &found.body["a"][0]), (404, &1.into()));
        assert!(
            parse(b"HTTP/1.0 200 OK\r\n\r\n")
                .expect("an answer")
                .body
                .is_null()
        );
    }

    #[test]
    fn what_is_no_whole_answer_is_refused() {
        for other in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 \u{e9}\u{e9}\u{e9}\r\n\r\n",
        ] {
            assert!(refused(other).contains("answer of HTTP"), "{other:?}");
        }
        assert_eq!(
            refused("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"),
            "expected 9 bytes, found 2"
        );
        assert!(
            refused("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}").contains("found chunked")
        );
        assert!(refused("HTTP/1.1 200 OK\r\n\r\n<html>").starts_with("status 200: expected JSON"));
    }
}
