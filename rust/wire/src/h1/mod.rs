//! HTTP/1: heads as views, bodies as payload, strict before lenient (RFC 9112).
//!
//! What it does not do: answer (the engine turns an [`Error`](crate::Error) into a response),
//! decide (routing, TRACE, tunnels), rewrite, time out, or speak HTTP/0.9.
//!
//! A connection is parsed as: [`RequestHead::parse`] until complete, then a [`BodyDecoder`] made
//! from [`RequestHead::framing`] on the bytes behind [`RequestHead::len`], then the next head.
//! Responses likewise. What is sent out is framed anew by a [`BodyEncoder`].
//!
//! Invariants:
//! 1. `head`: a head ends at the first empty line; every line ends in CRLF and holds no other CR or
//!    LF; limits are counted in bytes from the line's start, so the first fault in stream order is
//!    the one reported, however the bytes were cut.
//! 2. `request`, `response`: exactly one framing, or a refusal. No header is ever guessed.
//! 3. `body`: [`BodyEvent::Data`] is payload only; chunk sizes, extensions and trailers never are.
//! 4. No allocation per message once `headers` has grown, except for trailers that arrive in parts.

mod body;
mod encode;
mod head;
mod header;
mod limits;
mod request;
mod response;

pub use body::{BodyDecoder, BodyEvent, Trailers};
pub use encode::{BodyEncoder, write_header};
pub use header::{Header, Name};
pub use limits::{Limits, Underscores};
pub use request::{Method, RequestHead, TargetForm};
pub use response::ResponseHead;

/// A range of the buffer a head was parsed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte. `start <= end`.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// Heads are bounded by [`Limits`], far below 4 GiB.
    pub(crate) fn new(start: usize, end: usize) -> Span {
        debug_assert!(start <= end && end <= u32::MAX as usize);
        Span {
            start: start as u32,
            end: end as u32,
        }
    }

    /// The bytes, in the buffer the head was parsed from.
    ///
    /// # Panics
    /// When `bytes` is shorter than the head.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }

    /// No bytes.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Number of bytes.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// The versions spoken. Others are refused with 505.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Version {
    /// No Host needed, no chunked coding, connections close unless kept alive.
    Http10,
    /// The default.
    #[default]
    Http11,
}

/// Where a body ends (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Framing {
    /// At the chunk of size zero and its trailers.
    Chunked,
    /// At the end of the connection. Responses only.
    Close,
    /// After this many bytes.
    Length(u64),
    /// There is no body, and none was announced.
    #[default]
    None,
}

/// What parsing a head gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The head is there, whole and valid; `len` bytes of the buffer belong to it.
    Complete,
    /// Call again with the same bytes and more. At most [`Limits::buffer_bytes_max`] are needed.
    Incomplete,
}
