//! Everything that a server is told: what it serves, where, to whom, and within which limits.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{NamedModel, QueueSize};
use crate::data::DecodeOptions;
use crate::extract::BatchSize;
use crate::extract::model::ModelOptions;
use crate::{Error, Result};

/// Where a server listens. The file of a certificate and that of its key go together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address to listen on; 0.0.0.0 or :: for every one of the machine
    #[arg(long, value_name = "ADDRESS", default_value_t = Listen::default().host)]
    pub host: IpAddr,
    /// Port to listen on; 0 for a free one, which is printed
    #[arg(long, value_name = "N", default_value_t = Listen::default().port)]
    pub port: u16,
    /// Certificates of the server, PEM, its own first [default: none, plain HTTP]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the first certificate, PEM [default: none]
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8080,
            tls_cert: None,
            tls_key: None,
        }
    }
}

/// Who may ask.
#[derive(Clone, Default, Args)]
pub struct Secrets {
    /// Key that requests must bring as `Authorization: Bearer KEY`; may be given more than once, and is seen in the list of
    /// processes [default: none]
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// File of such keys, one a line, read again on SIGHUP [default: none; without any key everyone may ask]
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
}

/// Keys are not for logs.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets")
            .field("api_key", &format_args!("{} keys", self.api_key.len()))
            .field("api_key_file", &self.api_key_file)
            .finish()
    }
}

/// What one request, and all of them together, may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Images that wait or are computed, for each model; beyond it requests are answered 429. auto: what the model, measured at
    /// the start, computes in half of --timeout, and 256 at most
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue)]
    pub queue: QueueSize,
    /// Longest time that a started batch waits for images that are being decoded, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = Limits::default().max_wait)]
    pub max_wait: u64,
    /// Images in one request, at most --queue
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_images)]
    pub max_images: usize,
    /// Size of a request's body, in MiB
    #[arg(long, value_name = "MIB", default_value_t = Limits::default().max_body)]
    pub max_body: usize,
    /// Size of all bodies that are held, and of all answers, in MiB; beyond it requests are answered 429
    #[arg(long, value_name = "MIB", default_value_t = Limits::default().body_memory)]
    pub body_memory: usize,
    /// Connections at a time; others wait to be accepted
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    pub connections: usize,
    /// Time for the headers of a request, and for a connection without one, in seconds
    #[arg(long, value_name = "S", default_value_t = Limits::default().header_timeout)]
    pub header_timeout: f64,
    /// Time for the body of a request, and for a client to take its answer, or each MB of a longer one, in seconds
    #[arg(long, value_name = "S", default_value_t = Limits::default().body_timeout)]
    pub body_timeout: f64,
    /// Time for a request's answer once it is received, in seconds
    #[arg(long, value_name = "S", default_value_t = Limits::default().timeout)]
    pub timeout: f64,
    /// Time for which a server that is asked to stop still accepts connections, not being ready, in seconds
    #[arg(long, value_name = "S", default_value_t = Limits::default().drain)]
    pub drain: f64,
    /// Time for requests in flight after that, in seconds
    #[arg(long, value_name = "S", default_value_t = Limits::default().grace)]
    pub grace: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: QueueSize::Auto,
            max_wait: 5,
            max_images: 64,
            max_body: 32,
            body_memory: 512,
            connections: 512,
            header_timeout: 15.0,
            body_timeout: 30.0,
            timeout: 60.0,
            drain: 1.0,
            grace: 30.0,
        }
    }
}

/// How a request is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `key=value` in one line.
    #[default]
    Text,
    /// A JSON object in one line.
    Json,
    /// Not at all.
    None,
}

/// Everything that a server is told.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Models and their names in requests; the first is that of requests that name none.
    pub models: Vec<NamedModel>,
    /// How each of them is opened.
    pub options: ModelOptions,
    /// Images per run of a model.
    pub batch: BatchSize,
    /// Whether a full batch is computed before the server is ready.
    pub warmup: bool,
    /// How images are decoded.
    pub decode: DecodeOptions,
    /// Index folder for `/v1/search`.
    pub index: Option<PathBuf>,
    /// The images of the index, for pictures of what was found.
    pub index_images: Option<String>,
    /// Where it listens.
    pub listen: Listen,
    /// Who may ask.
    pub secrets: Secrets,
    /// What requests may take.
    pub limits: Limits,
    /// How requests are logged.
    pub log_format: LogFormat,
}

impl Limits {
    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// Names the first that is not.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("queue", self.queue.most(), 1 << 20),
            ("max_images", self.max_images, self.queue.most()),
            ("max_body", self.max_body, 1 << 12),
            ("body_memory", self.body_memory, 1 << 20),
            ("connections", self.connections, 1 << 20),
        ];
        for (field, value, most) in counts {
            if !(1..=most).contains(&value) {
                return Err(Error::setting(
                    field,
                    format!("expected 1 to {most}, found {value}"),
                ));
            }
        }
        if self.body_memory < self.max_body {
            return Err(Error::setting(
                "body_memory",
                format!(
                    "expected at least --max-body {}, found {}",
                    self.max_body, self.body_memory
                ),
            ));
        }
        if self.max_wait > 10_000 {
            return Err(Error::setting(
                "max_wait",
                format!("expected 0 to 10000 milliseconds, found {}", self.max_wait),
            ));
        }
        let times = [
            ("header_timeout", self.header_timeout, 0.01),
            ("body_timeout", self.body_timeout, 0.01),
            ("timeout", self.timeout, 0.01),
            ("drain", self.drain, 0.0),
            ("grace", self.grace, 0.0),
        ];
        for (field, value, least) in times {
            if !(least..=86_400.0).contains(&value) {
                return Err(Error::setting(
                    field,
                    format!("expected {least} to 86400 seconds, found {value}"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked_and_named() {
        Limits::default().validate().unwrap();
        let wrong = [
            (
                Limits {
                    queue: QueueSize::Fixed(0),
                    ..Limits::default()
                },
                "queue: expected 1 to",
            ),
            (
                Limits {
                    queue: QueueSize::Fixed(8),
                    max_images: 9,
                    ..Limits::default()
                },
                "max_images: expected 1 to 8, found 9",
            ),
            (
                Limits {
                    max_images: 257,
                    ..Limits::default()
                },
                "max_images: expected 1 to 256, found 257",
            ),
            (
                Limits {
                    body_memory: 1,
                    ..Limits::default()
                },
                "body_memory: expected at least --max-body 32, found 1",
            ),
            (
                Limits {
                    header_timeout: 0.0,
                    ..Limits::default()
                },
                "header_timeout: expected 0.01 to 86400 seconds, found 0",
            ),
            (
                Limits {
                    timeout: f64::NAN,
                    ..Limits::default()
                },
                "timeout: expected 0.01 to 86400 seconds, found NaN",
            ),
        ];
        for (limits, message) in wrong {
            let error = limits.validate().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
        let unknown: std::result::Result<Limits, _> = serde_json::from_str(r#"{"que": 3}"#);
        assert!(unknown.unwrap_err().to_string().contains("`que`"));
    }

    #[test]
    fn keys_are_not_printed() {
        let secrets = Secrets {
            api_key: vec!["hunter2".to_owned()],
            api_key_file: None,
        };
        assert!(!format!("{secrets:?}").contains("hunter2"));
    }
}
