//! Requests that no server should suffer from: each is answered in one form or its connection ends, and a good request behind it
//! has what it had before.

use std::io::Write as _;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::client::{Reply, Server, read};
use super::{data_uri, model, png};
use crate::harness::{Workspace, fixture};

/// A kind of bad request.
struct Bad {
    name: &'static str,
    status: u16,
    /// The field that its answer names.
    param: Option<&'static str>,
    send: Box<dyn Fn(&Server) -> Reply>,
}

fn bad(
    name: &'static str,
    status: u16,
    param: Option<&'static str>,
    send: impl Fn(&Server) -> Reply + 'static,
) -> Bad {
    Bad {
        name,
        status,
        param,
        send: Box::new(send),
    }
}

/// A body of JSON that is refused with 400 for `param`.
fn json_of(name: &'static str, param: &'static str, body: Value) -> Bad {
    bad(name, 400, Some(param), move |server| {
        server.post("/v1/embeddings", &body)
    })
}

/// A body of `content_type`.
fn body_of(
    name: &'static str,
    status: u16,
    param: Option<&'static str>,
    content_type: &'static str,
    body: impl Into<Vec<u8>>,
) -> Bad {
    let body = body.into();
    bad(name, status, param, move |server| {
        let headers: &[(&str, &str)] = match content_type {
            "" => &[],
            _ => &[("Content-Type", content_type)],
        };
        server.request("POST", "/v1/embeddings", headers, &body)
    })
}

/// A PNG that says it has a billion pixels.
fn bomb() -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    bytes.extend([0, 0, 0x80, 0, 0, 0, 0x80, 0, 8, 2, 0, 0, 0]);
    let checksum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&bytes[12..29]);
    bytes.extend(checksum.to_be_bytes());
    bytes.extend(b"\0\0\0\0IDAT");
    bytes
}

fn kinds(w: &Workspace) -> Vec<Bad> {
    let good = png(w, 0);
    let uri = data_uri(&good);
    let cut = good[..good.len() / 2].to_vec();
    let form = |middle: &[u8]| {
        [
            b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\n".as_slice(),
            middle,
        ]
        .concat()
    };
    let multipart = "multipart/form-data; boundary=b";
    let jpeg = std::fs::read(fixture("images/photo.jpg")).expect("read");
    vec![
        body_of("no body", 400, None, "application/json", ""),
        body_of("no JSON", 400, None, "application/json", "input=cat.png"),
        body_of(
            "JSON cut short",
            400,
            Some("input[0]"),
            "application/json",
            "{\"input\": [\"AAAA",
        ),
        body_of(
            "JSON nested deeply",
            400,
            Some("input[0]"),
            "application/json",
            format!("{{\"input\":{}", "[".repeat(50_000)),
        ),
        body_of(
            "bytes that are no UTF-8",
            400,
            Some("input"),
            "application/json",
            b"{\"input\": \"\xff\xfe\"}".to_vec(),
        ),
        body_of("an array", 400, None, "application/json", "[]"),
        body_of(
            "a form of the wrong kind",
            415,
            None,
            "application/x-www-form-urlencoded",
            "input=a",
        ),
        body_of("no content type", 415, None, "", "{}"),
        json_of("no input", "input", json!({ "model": "tiny" })),
        json_of("an empty list", "input", json!({ "input": [] })),
        json_of("a number", "input", json!({ "input": 7 })),
        json_of("tokens", "input[0]", json!({ "input": [1, 2, 3] })),
        json_of("null in a list", "input[1]", json!({ "input": [uri, null] })),
        json_of("text", "input", json!({ "input": "a photo of a cat" })),
        json_of("an empty text", "input[0]", json!({ "input": [""] })),
        json_of(
            "malformed base64",
            "input[1]",
            json!({ "input": [uri, "data:image/png;base64,@@@@"] }),
        ),
        json_of(
            "a URL of a page",
            "input",
            json!({ "input": "http://127.0.0.1:22/" }),
        ),
        json_of(
            "a URL of a file",
            "input[0]",
            json!({ "input": [{ "image_url": { "url": "file:///etc/passwd" } }] }),
        ),
        json_of(
            "a data URI of text",
            "input",
            json!({ "input": "data:text/html;base64,AAAA" }),
        ),
        json_of(
            "bytes that are no image",
            "input[2]",
            json!({ "input": [uri, uri, STANDARD.encode(b"hello there")] }),
        ),
        json_of(
            "an image cut short",
            "input[0]",
            json!({ "input": [STANDARD.encode(&cut)] }),
        ),
        json_of(
            "a decompression bomb",
            "input[0]",
            json!({ "input": [STANDARD.encode(bomb())] }),
        ),
        json_of(
            "too many images",
            "input",
            json!({ "input": vec![uri.clone(); 9] }),
        ),
        json_of("an unknown field", "inputs", json!({ "inputs": uri })),
        json_of(
            "an unknown output",
            "output",
            json!({ "input": uri, "output": "depth" }),
        ),
        json_of(
            "an unknown encoding",
            "encoding_format",
            json!({ "input": uri, "encoding_format": "f64" }),
        ),
        json_of(
            "fewer dimensions",
            "dimensions",
            json!({ "input": uri, "dimensions": 2 }),
        ),
        json_of(
            "dimensions below nothing",
            "dimensions",
            json!({ "input": uri, "dimensions": -1 }),
        ),
        json_of(
            "a number for a name",
            "model",
            json!({ "input": uri, "model": 1 }),
        ),
        json_of("a field of the search", "k", json!({ "input": uri, "k": 3 })),
        bad("an unknown model", 404, Some("model"), {
            let body = json!({ "input": uri, "model": "clip" });
            move |server| server.post("/v1/embeddings", &body)
        }),
        body_of(
            "a raw body that is no image",
            400,
            Some("input[0]"),
            "image/png",
            "GIF89b..",
        ),
        body_of("an empty raw body", 400, Some("input[0]"), "image/png", ""),
        body_of(
            "an SVG",
            400,
            Some("input[0]"),
            "image/svg+xml",
            "<svg xmlns='http://www.w3.org/2000/svg'/>",
        ),
        body_of(
            "a form without boundary",
            400,
            None,
            "multipart/form-data",
            form(&good),
        ),
        body_of(
            "a form that is cut short",
            400,
            None,
            multipart,
            form(&good[..20]),
        ),
        body_of(
            "a form without names",
            400,
            None,
            multipart,
            "--b\r\n\r\nx\r\n--b--",
        ),
        body_of(
            "a form with an empty file",
            400,
            Some("input[0]"),
            multipart,
            form(b"\r\n--b--"),
        ),
        body_of(
            "a JPEG cut within its header",
            400,
            Some("input[0]"),
            "image/jpeg",
            jpeg[..jpeg.len().min(60)].to_vec(),
        ),
        bad("a compressed body", 415, None, |server| {
            let headers = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")];
            server.request("POST", "/v1/embeddings", &headers, b"\x1f\x8b\x08\0")
        }),
        bad("a body above the limit", 413, None, |server| {
            server.request(
                "POST",
                "/v1/embeddings",
                &[("Content-Type", "image/png")],
                &vec![0; (1 << 20) + 1],
            )
        }),
        bad("chunks above the limit", 413, None, |server| {
            let head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: image/png\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
            let chunk = [b"10000\r\n".as_slice(), &[0; 0x10000], b"\r\n"]
                .concat()
                .repeat(17);
            server.raw(&[head.as_slice(), &chunk, b"0\r\n\r\n"].concat())
        }),
        bad("another method", 405, None, |server| {
            server.request("DELETE", "/v1/embeddings", &[], b"")
        }),
        bad(
            "a page that calls this machine by a name of its own",
            403,
            None,
            |server| {
                server.raw(
                    b"GET /v1/models HTTP/1.1\r\nHost: photos.example.org:8080\r\nConnection: close\r\n\r\n",
                )
            },
        ),
        bad(
            "a body above the limit that waits to be asked for",
            413,
            None,
            |server| {
                server.raw(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 2000000\r\n\
                Expect: 100-continue\r\n\r\n",
            )
            },
        ),
        bad("another route", 404, None, |server| server.get("/v1/completions")),
        bad("a path out of the tree", 404, None, |server| {
            server.get("/../../etc/passwd")
        }),
        bad("an unknown parameter", 400, Some("size"), {
            let image = good.clone();
            move |server| {
                server.request(
                    "POST",
                    "/v1/embeddings?size=9",
                    &[("Content-Type", "image/png")],
                    &image,
                )
            }
        }),
    ]
}

#[test]
fn bad_requests_are_answered_and_change_nothing_for_good_ones() {
    let w = Workspace::new();
    let limits = "--max-body 1 --body-memory 8 --max-images 8 --max-pixels 1000000 --header-timeout 1 --body-timeout 2";
    let server = Server::start(&w, &format!("{} {limits}", model()));
    let good = json!({ "input": data_uri(&png(&w, 0)) });
    let expected = server.post("/v1/embeddings", &good).ok();
    let kinds = kinds(&w);
    assert!(kinds.len() >= 40, "{}", kinds.len());
    for kind in &kinds {
        let reply = (kind.send)(&server);
        assert_eq!(
            reply.status,
            kind.status,
            "{}: {}\n{}",
            kind.name,
            reply.head,
            String::from_utf8_lossy(&reply.body)
        );
        let (_, param, message) = reply.error(kind.status);
        assert_eq!(param.as_deref(), kind.param, "{}: {message}", kind.name);
        assert!(
            message.len() < 500 && !message.contains("panicked"),
            "{}: {message}",
            kind.name
        );
        assert!(reply.header("x-request-id").is_some(), "{}", kind.name);
        assert_eq!(
            server.post("/v1/embeddings", &good).ok()["data"],
            expected["data"],
            "{}",
            kind.name
        );
    }
    // A single pixel is an image.
    let mut one = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(1, 1)
        .write_to(&mut one, image::ImageFormat::Png)
        .expect("written");
    server
        .request(
            "POST",
            "/v1/embeddings",
            &[("Content-Type", "image/png")],
            &one.into_inner(),
        )
        .ok();
    assert_eq!(server.metric("macula_panics_total"), 0.0);
    assert_eq!(server.metric("macula_queued_images"), 0.0);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn what_is_no_http_ends_its_connection() {
    let w = Workspace::new();
    let server = Server::start(&w, &format!("{} --header-timeout 1 --body-timeout 1", model()));
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
    let path = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(200_000));
    for bytes in [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".as_slice(),
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        long.as_bytes(),
        many.as_bytes(),
        path.as_bytes(),
    ] {
        let start = Instant::now();
        let reply = server.raw(bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
        assert!(reply.status == 0 || (400..600).contains(&reply.status), "{shown}: {}", reply.head);
        assert!(start.elapsed() < Duration::from_secs(20), "{shown}");
    }
    server.get("/health/ready").ok();
}

#[test]
fn slow_clients_and_those_that_leave_cost_nothing() {
    let w = Workspace::new();
    let limits = "--header-timeout 1 --body-timeout 1 --connections 24";
    let server = Server::start(&w, &format!("{} {limits}", model()));
    // More half-sent headers and bodies than there are connections.
    let half = (0..16).map(|_| (b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-".as_slice(), 0));
    let body = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc";
    let bodies = (0..16).map(|_| (body.as_slice(), 408));
    let silent = (0..8).map(|_| (b"".as_slice(), 0));
    let streams: Vec<_> = half
        .chain(bodies)
        .chain(silent)
        .map(|(bytes, status)| {
            let mut stream = server.connect();
            stream.write_all(bytes).expect("sent");
            (stream, status)
        })
        .collect();
    // All of them are gone soon, and somebody else is served meanwhile.
    server.get("/health/ready").ok();
    for (stream, status) in streams {
        let reply = read(stream);
        assert!(
            reply.status == status || status == 0 && reply.status == 408,
            "{}",
            reply.head
        );
    }
    // Clients that leave before their answer.
    let image = png(&w, 1);
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n",
        image.len()
    );
    for _ in 0..20 {
        let mut stream = server.connect();
        stream
            .write_all(&[head.as_bytes(), &image].concat())
            .expect("sent");
    }
    let start = Instant::now();
    while server.metric("macula_queued_images") > 0.0 {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    server
        .post("/v1/embeddings", &json!({ "input": data_uri(&image) }))
        .ok();
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let w = Workspace::new();
    let server = Server::start(&w, &format!("{} --queue 4 --max-images 4 --batch 1", model()));
    let four = json!({ "input": vec![data_uri(&png(&w, 1)); 4] });
    let (mut good, mut turned_away) = (0, 0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    (0..8)
                        .map(|_| server.post("/v1/embeddings", &four))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        for reply in clients
            .into_iter()
            .flat_map(|client| client.join().expect("done"))
        {
            match reply.status {
                200 => good += 1,
                _ => {
                    assert_eq!(reply.error(429).0, "queue_full");
                    assert_eq!(reply.header("retry-after"), Some("1"));
                    turned_away += 1;
                }
            }
        }
    });
    assert!(good > 0 && turned_away > 0, "{good} {turned_away}");
    server.post("/v1/embeddings", &four).ok();
    assert_eq!(server.metric("macula_queued_images"), 0.0);
}

/// Posts `body` as an image.
fn post_image(server: &Server, body: &[u8]) -> Reply {
    server.request("POST", "/v1/embeddings", &[("Content-Type", "image/png")], body)
}

#[test]
fn what_is_sent_holds_memory_and_what_is_announced_does_not() {
    let w = Workspace::new();
    let server = Server::start(&w, &format!("{} --max-body 1 --body-memory 1", model()));
    let head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 1000000\r\n\r\n";
    let announced: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(head.as_bytes()).expect("sent");
            stream
        })
        .collect();
    let no_image = vec![0; 700_000];
    assert_eq!(post_image(&server, &no_image).error(400).0, "invalid_image");
    let start = Instant::now();
    let sent = loop {
        let mut sent = server.connect();
        sent.write_all(&[head.as_bytes(), &no_image].concat())
            .expect("sent");
        // Until all of it has arrived, either of the two may be the one that is turned away.
        std::thread::sleep(Duration::from_millis(100));
        let reply = post_image(&server, &no_image);
        if reply.status == 429 {
            assert_eq!(reply.header("retry-after"), Some("1"));
            break sent;
        }
        reply.error(400);
        assert!(start.elapsed() < Duration::from_secs(20));
    };
    post_image(&server, &png(&w, 0)).ok();
    drop((announced, sent));
    let start = Instant::now();
    while post_image(&server, &no_image).status == 429 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `count` images in one body.
fn several(image: &[u8], count: usize, output: &str) -> Value {
    json!({ "input": vec![data_uri(image); count], "output": output })
}

#[test]
fn long_answers_are_bounded_and_must_be_taken() {
    let w = Workspace::new();
    let model = model().replace("--resize 28 --crop 28", "--resize 280 --crop 280");
    let image = png(&w, 1);
    let small = Server::start(&w, &format!("{model} --max-body 1 --body-memory 1"));
    let one = small.post("/v1/embeddings", &several(&image, 1, "patch")).ok();
    let numbers = one["data"][0]["embedding"].as_array().expect("a list").len();
    let most = (1 << 20) / 24 / numbers;
    let (_, param, message) = small
        .post("/v1/embeddings", &several(&image, most + 1, "patch"))
        .error(400);
    assert_eq!(param.as_deref(), Some("input"));
    assert!(message.contains(&format!("at most {most} images")), "{message}");
    drop(small);

    // Whoever takes a long one has all of it.
    let server = Server::start(&w, &format!("{model} --body-timeout 1"));
    let body = several(&image, 32, "patch");
    let all = server.post("/v1/embeddings", &body);
    let length = all.body.len();
    assert_eq!(all.header("content-length"), Some(length.to_string().as_str()));
    let all = all.ok();
    assert_eq!(all["data"].as_array().expect("a list").len(), 32);
    assert_eq!(all["data"][31]["shape"], one["data"][0]["shape"]);
    // Whoever does not is hung up on; it is more than the system keeps for a client.
    let body = body.to_string();
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut lazy = server.connect();
    lazy.write_all(&[head.as_bytes(), body.as_bytes()].concat())
        .expect("sent");
    let start = Instant::now();
    while server.metric("macula_images_total") < 64.0 || server.metric("macula_connections") > 1.0 {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it is still waited for"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let taken = read(lazy);
    assert_eq!(taken.status, 200);
    assert!(taken.body.len() < length, "{length}");
}

#[test]
fn an_answer_that_takes_too_long_is_given_up() {
    let w = Workspace::new();
    // A queue that follows the timeout would be too short for the request on a slow machine.
    let server = Server::start(&w, &format!("{} --timeout 0.1 --queue 64", model()));
    let mut large = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(3000, 2000)
        .write_to(&mut large, image::ImageFormat::Png)
        .expect("written");
    let large = several(&large.into_inner(), 64, "cls");
    let reply = server.post("/v1/embeddings", &large);
    assert_eq!(reply.error(503).0, "timeout");
    // The rest of its images is not decoded, and somebody else is served.
    let start = Instant::now();
    while post_image(&server, &png(&w, 0)).status != 200 {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(server.metric("macula_queued_images"), 0.0);
}
