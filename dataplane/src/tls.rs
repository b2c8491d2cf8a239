//! TLS between the hops: a server whose certificate can be exchanged while it serves, and a client that knows whom it
//! wants to talk to.
//!
//! The provider is ring, handed over explicitly: nothing of the process has to be set up. There is no resumption of
//! sessions on either side, so that an exchanged certificate and changed roots hold for every connection made after.

mod client;
mod pair;
mod server;
pub mod settings;
mod stream;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use client::{Client, Error, Identity, Roots, Unverified};
pub use pair::{InvalidPair, Pair};
pub use server::{InvalidClients, Server};
pub use settings::{InvalidSetting, Settings};
pub use stream::TlsStream;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
