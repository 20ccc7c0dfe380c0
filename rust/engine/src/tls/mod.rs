//! TLS of the mesh: mutual, 1.3 only, identities by SPIFFE URI.
//!
//! [`identity`] turns what the agent hands over into rustls configurations and checks peers, [`roots`]
//! is the trust bundle;
//! [`session`] drives one TLS connection over the bytes of a [`Session`](crate::session::Session);
//! [`keys`] makes keys and certificate requests, and [`client`] the connection to the control plane,
//! for the agent.
//!
//! What it refuses: any TLS version but 1.3, a peer without a certificate, a chain that does not lead
//! to a root of the trust bundle that is valid, a certificate with no or several URI names, an identity of another trust
//! domain, another identity than the called endpoint's, between proxies any application protocol but
//! `meshfast/1`.
//! Resumption is off: every handshake is checked in full (row T6). 0-RTT is off (T7).
//!
//! Tests: at the end of `client.rs`, `identity.rs`, `roots.rs` and `session.rs`, `tests/mesh`.

mod client;
mod identity;
mod keys;
mod roots;
mod session;

pub use client::Client;
#[cfg(test)]
pub(crate) use identity::tests::Authority;
pub(crate) use identity::{Identity, Peer};
pub use keys::{certificate_request, generate_key};
pub(crate) use session::Tls;
