//! Behaviour of the codec, seen from outside. Rows carry the numbers of the list of bad inputs
//! (A1 to A27 framing, B1 to B20 syntax, host and target) in front of their names.
//!
//! Every input goes through [`feed`]: whole, cut in two at every position, and byte by byte, with
//! equal outcomes.

#![allow(clippy::unwrap_used)]
// `feed` and `invariants` are public where the fuzz crate includes them.
#![allow(unreachable_pub)]

mod corpus;
mod feed;
mod frame;
mod h1_framing;
mod h1_responses;
mod h1_syntax;
mod invariants;
mod mux;
mod round_trip;
mod sniff;
