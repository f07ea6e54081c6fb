//! `--tls-cert` and `--tls-key`, with a client that trusts the certificate of `tests/fixtures/tls` alone.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use super::client::{Reply, Server};
use super::{model, model_of, png};
use crate::harness::{Workspace, fixture};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
/// The files that [`workspace`] has.
const TLS: &str = "--tls-cert cert.pem --tls-key key.pem";

/// A folder with a certificate and its key.
fn workspace() -> Workspace {
    let w = Workspace::new();
    w.write("cert.pem", pem("server.pem"));
    w.write("key.pem", pem("server.key"));
    w
}

/// A certificate or key of the fixtures.
fn pem(name: &str) -> Vec<u8> {
    std::fs::read(fixture("tls").join(name)).expect("read")
}

/// Sends `request` to `server`, whose certificate must be `trusted`, and reads until it says that it is done.
fn send(
    server: &Server,
    trusted: &str,
    version: &'static SupportedProtocolVersion,
    request: &[u8],
) -> io::Result<Reply> {
    let certificate = CertificateDer::from_pem_slice(&pem(trusted)).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("added");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
    let mut stream = StreamOwned::new(connection, server.connect());
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    // An end without a word is an error here: nobody on the way may cut an answer short.
    stream.read_to_end(&mut bytes)?;
    assert_eq!(stream.conn.protocol_version(), Some(version.version));
    assert_eq!(stream.conn.alpn_protocol(), Some(b"http/1.1".as_slice()));
    Ok(Reply::parse(&bytes))
}

fn live(server: &Server, trusted: &str) -> io::Result<Reply> {
    let request = server.bytes("GET", "/health/live", &[], b"");
    send(server, trusted, &TLS13, &request)
}

#[test]
fn answers_over_tls_are_those_without_it() {
    let w = workspace();
    let image = png(&w, 0);
    let open = model_of(280);
    let plain = Server::start(&w, &open);
    let secret = Server::start(&w, &format!("{open} {TLS}"));
    let content_type = [("Content-Type", "image/png")];
    let expected = plain
        .request("POST", "/v1/embeddings", &content_type, &image)
        .ok();
    let request = secret.bytes("POST", "/v1/embeddings", &content_type, &image);
    for version in VERSIONS {
        let reply = send(&secret, "server.pem", version, &request).expect("an answer");
        assert_eq!(reply.ok()["data"], expected["data"]);
    }
    // An answer of many records.
    let patches = "/v1/embeddings?output=patch";
    let expected = plain.request("POST", patches, &content_type, &image).ok();
    let request = secret.bytes("POST", patches, &content_type, &image);
    let reply = send(&secret, "server.pem", &TLS13, &request).expect("an answer");
    assert!(reply.body.len() > 64 << 10, "{} bytes", reply.body.len());
    assert_eq!(reply.ok()["data"], expected["data"]);
    let error = live(&secret, "renewed.pem").expect_err("another certificate is trusted");
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
}

#[test]
fn who_does_not_speak_tls_is_hung_up_on_and_others_are_served() {
    let w = workspace();
    let server = Server::start(&w, &format!("{} {TLS} --header-timeout 1", model()));
    // HTTP without TLS; a handshake that goes wrong.
    for bytes in [
        server.bytes("GET", "/health/live", &[], b""),
        b"\x16\x03\x01\x00\x05hello".to_vec(),
    ] {
        assert_eq!(server.raw(&bytes).status, 0);
    }
    // A handshake that does not go on has the time of headers.
    let start = Instant::now();
    let mut stalled: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    for stream in &mut stalled {
        stream.write_all(b"\x16\x03\x01").expect("sent");
    }
    live(&server, "server.pem").expect("an answer").ok();
    for mut stream in stalled {
        assert!(matches!(stream.read(&mut [0; 9]), Ok(0) | Err(_)));
    }
    assert!(start.elapsed() < Duration::from_secs(20), "they stay");
    live(&server, "server.pem").expect("an answer").ok();
}

#[cfg(unix)]
#[test]
fn a_renewed_certificate_is_read_on_sighup() {
    let w = workspace();
    let server = Server::start(&w, &format!("{} {TLS}", model()));
    live(&server, "server.pem").expect("an answer").ok();
    w.write("cert.pem", pem("renewed.pem"));
    server.signal("HUP");
    server.wait_for("reload: certificate: key.pem: expected the key of cert.pem");
    live(&server, "server.pem").expect("what was there stays").ok();
    w.write("key.pem", pem("renewed.key"));
    server.signal("HUP");
    server.wait_for("reload: certificate: read");
    live(&server, "renewed.pem").expect("an answer").ok();
    live(&server, "server.pem").expect_err("it is another one");
}

#[test]
fn each_wrong_file_is_named_with_what_is_wrong() {
    let w = Workspace::new();
    for name in [
        "server.pem",
        "server.key",
        "renewed.key",
        "ended.pem",
        "early.pem",
    ] {
        w.write(name, pem(name));
    }
    w.write("garbage", b"\0\xff garbage");
    w.write("empty", b"");
    let begins = |name: &str, lines: usize| {
        let text = String::from_utf8(pem(name)).expect("text");
        text.lines()
            .take(lines)
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    };
    w.write("cut.pem", begins("server.pem", 4));
    w.write("cut.key", begins("server.key", 1));
    let block = |label: &str| format!("-----BEGIN {label}-----\nAAECAwQF\n-----END {label}-----\n");
    w.write("no.pem", block("CERTIFICATE"));
    w.write("no.key", block("PRIVATE KEY"));
    w.write("locked.key", block("ENCRYPTED PRIVATE KEY"));
    for (cert, key, words) in [
        ("none.pem", "server.key", ["none.pem", "No such file"]),
        ("server.pem", "none.key", ["none.key", "No such file"]),
        (
            "garbage",
            "server.key",
            ["garbage", "expected certificates as PEM, found none"],
        ),
        (
            "empty",
            "server.key",
            ["empty", "expected certificates as PEM, found none"],
        ),
        (
            "cut.pem",
            "server.key",
            ["cut.pem", "found one that is cut short"],
        ),
        (
            "no.pem",
            "server.key",
            ["no.pem", "expected an X.509 certificate"],
        ),
        (
            "server.key",
            "server.key",
            ["server.key", "expected certificates as PEM, found none"],
        ),
        (
            "server.pem",
            "garbage",
            ["garbage", "private key as PEM, found none"],
        ),
        (
            "server.pem",
            "server.pem",
            ["server.pem", "private key as PEM, found none"],
        ),
        (
            "server.pem",
            "locked.key",
            ["locked.key", "an unencrypted private key as PEM, found none"],
        ),
        (
            "server.pem",
            "cut.key",
            ["cut.key", "found one that is cut short"],
        ),
        (
            "server.pem",
            "no.key",
            ["no.key", "cannot be used with server.pem"],
        ),
        (
            "server.pem",
            "renewed.key",
            ["renewed.key", "expected the key of server.pem, found another one"],
        ),
        (
            "ended.pem",
            "server.key",
            [
                "ended.pem",
                "found one that is valid until 2002-01-01T00:00:00.000Z",
            ],
        ),
        (
            "early.pem",
            "server.key",
            [
                "early.pem",
                "found one that is valid from 2300-01-01T00:00:00.000Z",
            ],
        ),
    ] {
        w.fails(
            2,
            &format!("serve {} --port 0 --tls-cert {cert} --tls-key {key}", model()),
            &words,
        );
    }
}
