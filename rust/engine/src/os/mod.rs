//! The operating system, seen through safe functions: the only place of meshfast that may say
//! `unsafe`.
//!
//! It knows descriptors, mappings and system calls, and nothing of HTTP, sessions or policy.
//! Invariants:
//! 1. Every function here is safe to call with any argument: bounds are checked, descriptors are
//!    owned, errors are `io::Error`.
//! 2. No pointer leaves this room; memory shared with other processes is reached through atomics
//!    and bounded copies only.
//!
//! Tests: at the end of each file.
#![allow(unsafe_code)]

mod channel;
mod epoll;
mod memory;
mod socket;

pub(crate) use channel::{MESSAGE_BYTES_MAX, receive, send};
pub(crate) use epoll::{add_shared, remove};
pub(crate) use memory::SharedMapping;
pub(crate) use memory::map_private;
#[cfg(test)]
pub(crate) use socket::connected_to_itself;
pub(crate) use socket::{
    abort_on_close, acknowledge, cloned, descriptor_limit, owned, shutdown_write, user_timeout,
};
