//! Bytes to events and back: HTTP/1 heads and bodies, `meshfast/1` frames, protocol sniffing.
//!
//! This crate is sans-I/O: it opens no socket, reads no clock, spawns nothing and holds no
//! `unsafe`. The engine hands it bytes as they arrive and gets views (spans into those bytes),
//! payload slices or an [`Error`] back.
//!
//! Invariants:
//! 1. An outcome depends on the bytes alone, never on how they were cut into reads.
//! 2. Nothing is forwarded that was not validated: heads are views of checked bytes, bodies are
//!    always decoded to payload and framed anew by the sink.
//! 3. Every refusal is one row of the table in [`error`]: a status for the peer and a stable label.
//! 4. Work and memory are linear in the input and bounded by [`h1::Limits`].
//!
//! Tests: `tests/wire/`, one file per module, and the corpora of `rust/fuzz` replayed by
//! `tests/wire/corpus.rs`.
#![forbid(unsafe_code)]

pub mod error;
pub mod frame;
pub mod h1;
pub mod mux;
pub mod sniff;

pub use error::{Error, ErrorKind};
