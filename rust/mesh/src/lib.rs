//! Decisions over an immutable [`Snapshot`]: which route a request takes, which endpoint serves it,
//! whether it is tried again.
//!
//! The snapshot document (JSON, written by `meshfast.policy`) is read, checked and compiled once;
//! the compiled form travels to the workers as a checksummed blob. What is left for the hot path is
//! [`Snapshot::route`] and [`Cluster::pick`].
//!
//! What it does not do: no sockets, no clock, no threads, no TLS, no HTTP parsing. Randomness and
//! load are arguments, so every decision can be replayed in a test.
//!
//! Invariants:
//! 1. A [`Snapshot`] that exists is valid: every cluster index, virtual host index and regular
//!    expression in it was checked when it was made, from a document and from a blob alike.
//! 2. A document or blob never causes a panic; all problems of a document are reported together.
//! 3. `route` and `pick` do not allocate (a regular expression warms its own cache at first use).
//!
//! Tests: beside each module; `tests/properties.rs` for statistical and round-trip claims,
//! `tests/allocation.rs` for invariant 3.

#![forbid(unsafe_code)]

mod address;
mod arrival;
mod authority;
mod balance;
mod blob;
mod compile;
mod dial;
mod document;
mod domains;
mod edits;
mod error;
#[cfg(test)]
mod example;
mod fault;
mod matching;
mod random;
mod retry;
mod route;
mod snapshot;

pub use address::Address;
pub use arrival::{
    Arrival, Destination, Form, Interception, KnownBy, ListenerFacts, Refusal, RequestFacts,
};
pub use authority::{Authority, AuthorityError};
pub use balance::Loads;
pub use dial::{Dial, Via};
pub use document::{
    Balancer, ClientMode, Condition, Direction, Protocol, ServerMode, Service, Workload,
};
pub use edits::{Field, HeaderEdits, NOT_EDITED, NOT_EDITED_PREFIX};
pub use error::{BlobError, Error, Problem};
pub use fault::{Abort, Drawn, Fault};
pub use matching::{Match, Request};
pub use random::Random;
pub use retry::{Decision, InFlight, Outcome, Retry, Try};
pub use route::{Choice, Destinations, NoRoute, Route, RoutePlace, TcpRoute, WeightedCluster};
pub use snapshot::{Cluster, Endpoint, HostPort, Listener, Snapshot, VirtualHost};
