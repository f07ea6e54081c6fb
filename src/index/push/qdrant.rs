//! Qdrant's REST interface: a collection is looked for, made, and given points.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use serde_json::{Value, json};

use super::http::{self, Answer};
use crate::extract::folder::Features;
use crate::{Error, Result};

/// Points in a request: some MB of JSON at a width of 1,024.
const BATCH: usize = 256;

/// A collection of a server: `qdrant://HOST:PORT/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// `HOST:PORT`.
    address: String,
    name: String,
}

/// The body of an upload.
#[derive(Serialize)]
struct Points<'a> {
    points: Vec<Point<'a>>,
}

/// A row as a point.
#[derive(Serialize)]
struct Point<'a> {
    id: u64,
    vector: &'a [f32],
    payload: Payload<'a>,
}

#[derive(Serialize)]
struct Payload<'a> {
    path: &'a str,
    label: Option<&'a str>,
}

impl FromStr for Collection {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let expected = || format!("expected qdrant://HOST:PORT/COLLECTION, found `{text}`");
        let (address, name) = text
            .strip_prefix("qdrant://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(expected)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(expected)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if host.is_empty() || !host.chars().all(plain) || port.parse::<u16>().is_err() {
            return Err(expected());
        }
        // What stands in a path as it is.
        if name.is_empty()
            || name.starts_with('.')
            || !name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        {
            return Err(format!(
                "expected a collection of letters, digits and -._, found `{name}`"
            ));
        }
        Ok(Self {
            address: address.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "qdrant://{}/{}", self.address, self.name)
    }
}

impl Collection {
    /// Sends rows as points: id = row, vector = features, payload = path and label. The collection compares by cosine; it is made
    /// where there is none, with `replace` anew. `sent` is told how many points are there.
    ///
    /// # Errors
    /// The server's word, or why there is none, with the collection's address.
    pub fn push(&self, features: &Features, replace: bool, mut sent: impl FnMut(usize)) -> Result<()> {
        let view = features.matrix.view();
        self.prepare(view.dim(), replace)?;
        let n = features.rows.len();
        for first in (0..n).step_by(BATCH) {
            let last = n.min(first + BATCH);
            let points: Vec<Point<'_>> = (first..last)
                .map(|i| Point {
                    id: features.rows[i],
                    vector: view.row(i),
                    payload: Payload {
                        path: &features.paths[i],
                        label: features.labels[i].as_deref(),
                    },
                })
                .collect();
            let answer = self.ask("PUT", "/points?wait=true", Some(&Points { points }))?;
            let status = &answer["result"]["status"];
            if status != "completed" {
                return Err(self.failed(format!("expected status completed of points, found {status}")));
            }
            sent(last);
        }
        Ok(())
    }

    /// Makes the collection where it has to be made.
    fn prepare(&self, dim: usize, replace: bool) -> Result<()> {
        let mut exists = match self.ask("GET", "/exists", None::<&()>)?["result"]["exists"].as_bool() {
            Some(exists) => exists,
            None => return Err(self.failed("expected result.exists, found none")),
        };
        if exists && replace {
            self.ask("DELETE", "", None::<&()>)?;
            exists = false;
        }
        if !exists {
            self.ask(
                "PUT",
                "",
                Some(&json!({ "vectors": { "size": dim, "distance": "Cosine" } })),
            )?;
        }
        Ok(())
    }

    /// A request about the collection, and what the server gives for it.
    fn ask(&self, method: &str, below: &str, body: Option<&impl Serialize>) -> Result<Value> {
        let path = format!("/collections/{}{below}", self.name);
        let body = match body {
            None => Vec::new(),
            Some(body) => serde_json::to_vec(body).map_err(|e| self.failed(e.to_string()))?,
        };
        let Answer { status, body } =
            http::request(&self.address, method, &path, &body).map_err(|e| self.failed(e))?;
        if status != 200 {
            let said = body["status"]["error"].as_str().unwrap_or("no reason");
            return Err(self.failed(format!("{method} {path}: status {status}: {said}")));
        }
        Ok(body)
    }

    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::failed(self.to_string(), reason)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener};
    use std::thread::{self, JoinHandle};

    use macula_eval::Matrix;

    use super::*;

    /// A server that gives these answers, one a connection, and then what it was asked: the first line and the body of each request.
    fn server(answers: &'static [(u16, &'static str)]) -> (Collection, JoinHandle<Vec<(String, Value)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = thread::spawn(move || {
            answers
                .iter()
                .map(|answer| answer_one(&listener, answer))
                .collect()
        });
        (
            format!("qdrant://{address}/photos")
                .parse()
                .expect("a collection"),
            asked,
        )
    }

    fn answer_one(listener: &TcpListener, (status, body): &(u16, &str)) -> (String, Value) {
        let (mut stream, _) = listener.accept().expect("a connection");
        let (mut asked, mut some) = (Vec::new(), [0; 4096]);
        let (head, sent) = loop {
            let n = stream.read(&mut some).expect("a request");
            asked.extend_from_slice(&some[..n]);
            let text = String::from_utf8(asked.clone()).expect("text");
            if let Some((head, sent)) = text.split_once("\r\n\r\n")
                && head.ends_with(&format!("Content-Length: {}", sent.len()))
            {
                break (head.to_owned(), sent.to_owned());
            }
            assert!(n > 0, "the request ends early: {text}");
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        let _ = stream.shutdown(Shutdown::Both);
        let first = head.split(" HTTP").next().unwrap_or_default().to_owned();
        (first, serde_json::from_str(&sent).unwrap_or(Value::Null))
    }

    fn two_rows() -> Features {
        Features {
            matrix: Matrix::new(vec![0.1, 2., 3., 4.], 2, 2).expect("a matrix"),
            rows: vec![0, 7],
            paths: vec!["a.jpg".to_owned(), "b.jpg".to_owned()],
            labels: vec![Some("cat".to_owned()), None],
            n_null: 0,
        }
    }

    const NONE: (u16, &str) = (200, r#"{"result":{"exists":false}}"#);
    const SOME: (u16, &str) = (200, r#"{"result":{"exists":true}}"#);
    const DONE: (u16, &str) = (200, r#"{"result":true}"#);
    const WRITTEN: (u16, &str) = (200, r#"{"result":{"operation_id":1,"status":"completed"}}"#);

    #[test]
    fn rows_become_points_of_a_collection_that_is_made() {
        let (to, asked) = server(&[NONE, DONE, WRITTEN]);
        let mut sent = Vec::new();
        to.push(&two_rows(), false, |n| sent.push(n)).expect("pushed");
        let asked = asked.join().expect("asked");
        let lines: Vec<&str> = asked.iter().map(|(line, _)| line.as_str()).collect();
        let of = [
            "GET /collections/photos/exists",
            "PUT /collections/photos",
            "PUT /collections/photos/points?wait=true",
        ];
        assert_eq!(lines, of);
        assert_eq!(
            asked[1].1,
            json!({ "vectors": { "size": 2, "distance": "Cosine" } })
        );
        let points = json!({ "points": [
            { "id": 0, "vector": [0.1, 2.0], "payload": { "path": "a.jpg", "label": "cat" } },
            { "id": 7, "vector": [3.0, 4.0], "payload": { "path": "b.jpg", "label": null } },
        ] });
        assert_eq!((&asked[2].1, sent), (&points, vec![2]));
    }

    #[test]
    fn a_collection_that_is_there_is_kept_or_replaced() {
        let (to, asked) = server(&[SOME, WRITTEN]);
        to.push(&two_rows(), false, |_| ()).expect("pushed");
        assert_eq!(asked.join().expect("asked").len(), 2);
        let (to, asked) = server(&[SOME, DONE, DONE, WRITTEN]);
        to.push(&two_rows(), true, |_| ()).expect("pushed");
        assert_eq!(asked.join().expect("asked")[1].0, "DELETE /collections/photos");
    }

    #[test]
    fn the_word_of_the_server_is_the_error() {
        let (to, _asked) = server(&[
            SOME,
            (
                400,
                r#"{"status":{"error":"Wrong input: expected dim: 4, got 2"}}"#,
            ),
        ]);
        let error = to
            .push(&two_rows(), false, |_| ())
            .expect_err("refused")
            .to_string();
        assert!(error.starts_with(&to.to_string()), "{error}");
        assert!(
            error.ends_with("points?wait=true: status 400: Wrong input: expected dim: 4, got 2"),
            "{error}"
        );
        let (to, _asked) = server(&[(200, r#"{"models":[]}"#)]);
        let error = to
            .push(&two_rows(), false, |_| ())
            .expect_err("refused")
            .to_string();
        assert!(error.contains("expected result.exists"), "{error}");
    }

    #[test]
    fn addresses() {
        for good in [
            "qdrant://127.0.0.1:6333/photos",
            "qdrant://[::1]:6333/a-b_c.1",
            "qdrant://store:80/x",
        ] {
            assert_eq!(good.parse::<Collection>().expect("an address").to_string(), good);
        }
        for bad in [
            "",
            "photos",
            "http://a:1/b",
            "qdrant://a/b",
            "qdrant://a:70000/b",
            "qdrant://:1/b",
            "qdrant://a\r\nX:1/b",
        ] {
            assert!(
                bad.parse::<Collection>()
                    .expect_err("refused")
                    .starts_with("expected qdrant://"),
                "{bad}"
            );
        }
        for bad in [
            "qdrant://a:1/",
            "qdrant://a:1/b/c",
            "qdrant://a:1/..",
            "qdrant://a:1/b?x",
            "qdrant://a:1/b c",
        ] {
            assert!(
                bad.parse::<Collection>()
                    .expect_err("refused")
                    .contains("collection of letters"),
                "{bad}"
            );
        }
    }
}
