//! TLS by rustls: a certificate and its key, read again when they are renewed.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::access::utc;
use super::config::Listen;
use crate::{Error, Result};

/// The longest file of certificates or keys, in bytes.
const LONGEST: u64 = 1 << 20;

/// The certificate of a server.
pub(super) struct Tls {
    listen: Listen,
    acceptor: RwLock<TlsAcceptor>,
}

impl Tls {
    /// Reads what `listen` names; none where it names nothing.
    ///
    /// # Errors
    /// A file that is missing, holds no certificate or key, or two that do not belong together; a certificate whose time is over or
    /// has not come.
    pub fn read(listen: &Listen) -> Result<Option<Self>> {
        let Some(acceptor) = acceptor(listen)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            listen: listen.clone(),
            acceptor: RwLock::new(acceptor),
        }))
    }

    /// Reads the files again, for connections from now on; what was there stays where that fails.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn reload(&self) -> Result<()> {
        if let Some(new) = acceptor(&self.listen)? {
            *self.acceptor.write().unwrap_or_else(|e| e.into_inner()) = new;
        }
        Ok(())
    }

    /// What makes a connection secret.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

fn acceptor(listen: &Listen) -> Result<Option<TlsAcceptor>> {
    let (cert, key) = match (&listen.tls_cert, &listen.tls_key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => return Ok(None),
        (Some(_), None) => {
            return Err(Error::setting(
                "tls_key",
                "expected one beside --tls-cert, found none",
            ));
        }
        (None, Some(_)) => {
            return Err(Error::setting(
                "tls_cert",
                "expected one beside --tls-key, found none",
            ));
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificates = certificates(cert)?;
    check_time(cert, &certificates[0], &provider)?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| {
        wrong(
            key,
            format!("expected an unencrypted private key as PEM, {}", found(&e)),
        )
    })?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::failed("TLS", e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(certificates, private)
        .map_err(|e| match e {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => wrong(
                key,
                format!("expected the key of {}, found another one", cert.display()),
            ),
            e => wrong(key, format!("cannot be used with {}: {e}", cert.display())),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// The certificates of a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(&read(path)?).collect::<std::result::Result<Vec<_>, _>>();
    let all = match all {
        Ok(none) if none.is_empty() => Err(pem::Error::NoItemsFound),
        all => all,
    };
    all.map_err(|e| wrong(path, format!("expected certificates as PEM, {}", found(&e))))
}

/// Refuses a certificate that no client would take now.
fn check_time(path: &Path, certificate: &CertificateDer<'_>, provider: &CryptoProvider) -> Result<()> {
    let parsed = ParsedCertificate::try_from(certificate)
        .map_err(|e| wrong(path, format!("expected an X.509 certificate: {e}")))?;
    // Its time is looked at first; that nobody here vouches for it is no matter.
    let checked = verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        UnixTime::now(),
        provider.signature_verification_algorithms.all,
    );
    let date = |time: UnixTime| utc(UNIX_EPOCH + Duration::from_secs(time.as_secs()));
    let found = match checked {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            format!("until {}", date(not_after))
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before, ..
        })) => format!("from {}", date(not_before)),
        _ => return Ok(()),
    };
    Err(wrong(
        path,
        format!("expected a certificate that is valid now, found one that is valid {found}"),
    ))
}

/// What was found in place of PEM.
fn found(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "found none".to_owned(),
        pem::Error::MissingSectionEnd { .. } => "found one that is cut short".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "found one whose first line is cut short".to_owned(),
        other => format!("found {other}"),
    }
}

fn wrong(path: &Path, reason: impl Into<String>) -> Error {
    Error::input(path.display().to_string(), reason)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(LONGEST)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}
