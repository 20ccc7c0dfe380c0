//! A worker's engine: accepting, exchanges, pools, timers, drain, shared memory.
//!
//! One thread and one event loop ([`run`]); the decisions are `meshfast_mesh`'s, the bytes are
//! `meshfast_wire`'s. What it does not do: parse configuration, speak to a control plane, resolve
//! names, write logs to files. It never calls Python and never waits for another process.
//!
//! Code map: `worker` is the loop; `listener` accepts; `downstream`, `exchange`, `begin` and
//! `upstream` carry requests, over `leg` from one proxy to another; `head` writes heads; `record`
//! writes access records, `span` traces; `shared` is the memory all processes see; `slab` numbers what
//! a worker has; `os` holds every `unsafe`. `upstream`, `leg` and `worker` each name the files below
//! them.
//!
//! Tests: beside each module; whole workers in `tests/dataplane`.
#![deny(unsafe_code)]

mod begin;
mod buffer;
mod clock;
mod control;
mod date;
mod downstream;
mod error;
mod exchange;
mod head;
mod leg;
mod listener;
mod os;
mod record;
mod request;
mod session;
mod settings;
pub mod shared;
mod slab;
mod span;
mod stream;
mod text;
mod timers;
pub mod tls;
mod trace;
mod tries;
mod tunnel;
mod upstream;
mod worker;

pub use worker::run;
