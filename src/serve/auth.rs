//! Keys: read from flags and a file, and compared in a time that says nothing about them.

use std::hint::black_box;
use std::path::Path;
use std::sync::RwLock;

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

use super::config::Secrets;
use super::error::{ApiError, ApiResult};
use crate::{Error, Result};

/// The shortest key: fewer characters can be tried one after another.
const MIN_LENGTH: usize = 8;

/// SHA-256 of a key: what is compared has one length, and the keys themselves are not kept.
type Hashed = [u8; 32];

/// The keys that may ask; none for everyone.
pub struct Keys {
    secrets: Secrets,
    hashed: RwLock<Vec<Hashed>>,
}

impl Keys {
    /// Reads the keys.
    ///
    /// # Errors
    /// A file that cannot be read or holds no key; a key that is too short or has characters that a header cannot hold.
    pub fn read(secrets: &Secrets) -> Result<Self> {
        Ok(Self {
            hashed: RwLock::new(hashed(secrets)?),
            secrets: secrets.clone(),
        })
    }

    /// Reads the file of keys again. What was there stays where that fails.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn reload(&self) -> Result<usize> {
        let new = hashed(&self.secrets)?;
        let count = new.len();
        *self.hashed.write().unwrap_or_else(|e| e.into_inner()) = new;
        Ok(count)
    }

    /// Whether everyone may ask.
    pub fn open(&self) -> bool {
        self.hashed.read().unwrap_or_else(|e| e.into_inner()).is_empty()
    }

    /// Lets a request with one of the keys pass.
    ///
    /// # Errors
    /// 401.
    pub fn check(&self, headers: &HeaderMap) -> ApiResult<()> {
        let keys = self.hashed.read().unwrap_or_else(|e| e.into_inner());
        if keys.is_empty() {
            return Ok(());
        }
        let refused = |message| {
            Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "invalid_api_key",
                message,
            ))
        };
        let Some(given) = bearer(headers) else {
            return refused("Authorization: expected `Bearer` and a key, found none");
        };
        match holds(&keys, given) {
            true => Ok(()),
            false => refused("Authorization: this key is not known here"),
        }
    }
}

/// The key of `Authorization: Bearer KEY`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}

/// Whether `given` is one of `keys`: every one is compared, and each in full.
fn holds(keys: &[Hashed], given: &[u8]) -> bool {
    let given: Hashed = Sha256::digest(given).into();
    let found = keys.iter().fold(0u8, |found, key| {
        let different = key.iter().zip(&given).fold(0u8, |all, (a, b)| all | (a ^ b));
        found | black_box(u8::from(black_box(different) == 0))
    });
    black_box(found) != 0
}

fn hashed(secrets: &Secrets) -> Result<Vec<Hashed>> {
    let mut keys = Vec::new();
    for (place, key) in secrets.api_key.iter().enumerate() {
        keys.push(hash(&format!("--api-key number {}", place + 1), key)?);
    }
    if let Some(path) = &secrets.api_key_file {
        let before = keys.len();
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        for (number, line) in text.lines().enumerate() {
            let key = line.trim();
            if !key.is_empty() && !key.starts_with('#') {
                keys.push(hash(&format!("{}: line {}", path.display(), number + 1), key)?);
            }
        }
        if keys.len() == before {
            return Err(no_keys(path));
        }
    }
    Ok(keys)
}

/// An empty file must not open the server to everyone.
fn no_keys(path: &Path) -> Error {
    Error::input(
        path.display().to_string(),
        "expected at least one key, one a line, found none",
    )
}

fn hash(what: &str, key: &str) -> Result<Hashed> {
    if key.len() < MIN_LENGTH {
        return Err(Error::input(
            what,
            format!("expected at least {MIN_LENGTH} characters, found {}", key.len()),
        ));
    }
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::input(
            what,
            "expected ASCII letters, digits and signs without blanks, found another character",
        ));
    }
    Ok(Sha256::digest(key.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn one_of_several_keys_passes_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "# of the team\nsecond-key\n\n  third-key  \n").unwrap();
        let keys = Keys::read(&Secrets {
            api_key: vec!["first-key".to_owned()],
            api_key_file: Some(file.clone()),
        })
        .unwrap();
        for key in ["first-key", "second-key", "third-key"] {
            keys.check(&headers(&format!("Bearer {key}"))).unwrap();
            keys.check(&headers(&format!("bearer {key}"))).unwrap();
        }
        for wrong in [
            "Bearer ",
            "Bearer",
            "Bearer first-ke",
            "Bearer first-key ",
            "Bearer First-key",
            "Basic first-key",
            "first-key",
            "Bearer # of the team",
        ] {
            let error = keys.check(&headers(wrong)).unwrap_err();
            assert_eq!(error.status, StatusCode::UNAUTHORIZED, "{wrong}");
        }
        assert!(keys.check(&HeaderMap::new()).is_err());

        std::fs::write(&file, "fourth-key\n").unwrap();
        assert_eq!(keys.reload().unwrap(), 2);
        keys.check(&headers("Bearer fourth-key")).unwrap();
        assert!(keys.check(&headers("Bearer second-key")).is_err());
        // A file that cannot be used leaves the keys as they were.
        std::fs::write(&file, "# nothing\n").unwrap();
        let error = keys.reload().unwrap_err().to_string();
        assert!(error.contains("expected at least one key"), "{error}");
        keys.check(&headers("Bearer fourth-key")).unwrap();
        assert!(!keys.open());
    }

    #[test]
    fn keys_that_are_none_are_named_by_their_place_alone() {
        for (key, expected) in [
            (
                "short",
                "--api-key number 1: expected at least 8 characters, found 5",
            ),
            ("with a blank", "--api-key number 1: expected ASCII letters"),
        ] {
            let secrets = Secrets {
                api_key: vec![key.to_owned()],
                api_key_file: None,
            };
            let error = Keys::read(&secrets).err().unwrap().to_string();
            assert!(error.starts_with(expected) && !error.contains(key), "{error}");
        }
        let none = Keys::read(&Secrets::default()).unwrap();
        assert!(none.open());
        none.check(&HeaderMap::new()).unwrap();
    }
}
