//! Rows of a feature folder in a vector store, over HTTP without TLS: what a store is asked is a file of its own ([`qdrant`]),
//! how it is asked another ([`http`]).

mod http;
mod qdrant;

pub use qdrant::Collection;
