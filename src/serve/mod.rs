//! An HTTP server of image embeddings, with the routes that clients of OpenAI's interface know. A request goes through one file
//! after another: a connection ([`connections`], [`tls`]) brings it to a route ([`routes`], [`auth`]), its body is read within
//! limits ([`body`], [`multipart`]) and understood ([`wire`], [`images`]), its images are decoded on threads of their own
//! ([`decode`]) and wait for a model ([`models`], [`batching`]), which computes several at once, or are compared with an index
//! ([`search`]); whatever is wrong is answered in one form ([`error`]). [`operation`] starts, reloads and stops it all,
//! [`access`] and [`metrics`] say what happened, [`openapi`] and [`page`] explain it.
//!
//! Pixels, preprocessing and models are those of `extract`: an image alone in its batch has the very bits that `macula extract
//! --batch 1` writes.

mod access;
mod auth;
mod batching;
mod body;
mod config;
mod connections;
mod decode;
mod error;
mod images;
mod metrics;
mod models;
mod multipart;
mod openapi;
mod operation;
mod page;
mod queue_size;
mod routes;
mod search;
mod tls;
mod wire;

pub use config::{Limits, Listen, LogFormat, Secrets, ServeConfig};
pub use models::NamedModel;
pub use operation::serve;
pub use queue_size::QueueSize;
