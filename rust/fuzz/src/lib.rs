//! The invariants the targets check are those of the wire tests, not a copy: what a fuzzer finds is
//! a failing input of `cargo test -p meshfast-wire` once it lies in `corpus/`.
#![allow(clippy::unwrap_used)]

#[path = "../../wire/tests/wire/feed.rs"]
pub mod feed;
#[path = "../../wire/tests/wire/invariants.rs"]
pub mod invariants;
