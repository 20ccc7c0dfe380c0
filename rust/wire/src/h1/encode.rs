//! Payload to bodies: the sink's framing, always written anew.
//!
//! It does not hold payload back and does not choose the framing: the engine does, from the version
//! of the peer and what is known of the length. A body that breaks its promise is an error here, so
//! that it ends in a reset and never in a shorter or longer message.
//!
//! Tests: `tests/wire/round_trip.rs`.

use super::Framing;
use super::body::Trailers;
use crate::error::{Error, ErrorKind};

/// What is still to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Chunked,
    Ended,
    /// Promised bytes still to come.
    Fixed(u64),
    Raw,
}

/// Frames one body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyEncoder {
    state: State,
}

impl BodyEncoder {
    /// An encoder of this framing. [`Framing::None`] takes no payload.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Chunked => State::Chunked,
            Framing::Close => State::Raw,
            Framing::Length(length) => State::Fixed(length),
            Framing::None => State::Fixed(0),
        };
        BodyEncoder { state }
    }

    /// A relay: bytes as they are, until the connection is closed.
    pub fn raw() -> Self {
        BodyEncoder::new(Framing::Close)
    }

    /// Appends payload to `out`. Without payload nothing is written: an empty chunk would be the
    /// last one.
    ///
    /// # Errors
    /// More than was promised, or anything after the end; `out` is untouched.
    pub fn data(&mut self, out: &mut Vec<u8>, payload: &[u8]) -> Result<(), Error> {
        if payload.is_empty() {
            return Ok(());
        }
        match &mut self.state {
            State::Chunked => {
                write_chunk_size(out, payload.len());
                out.extend_from_slice(payload);
                out.extend_from_slice(b"\r\n");
            }
            State::Ended => return Err(ErrorKind::BodyTooLong.into()),
            State::Fixed(left) => {
                let after = left.checked_sub(payload.len() as u64);
                *left = after.ok_or(ErrorKind::BodyTooLong)?;
                out.extend_from_slice(payload);
            }
            State::Raw => out.extend_from_slice(payload),
        }
        Ok(())
    }

    /// Ends the body. Trailers are written where the framing can carry them (chunked), and dropped
    /// elsewhere (RFC 9110 6.5.1). Ending twice writes nothing the second time.
    ///
    /// # Errors
    /// Less than was promised: the connection must be closed, not reused.
    pub fn end(&mut self, out: &mut Vec<u8>, trailers: Option<&Trailers<'_>>) -> Result<(), Error> {
        match self.state {
            State::Chunked => {
                out.extend_from_slice(b"0\r\n");
                for line in trailers.iter().flat_map(|trailers| trailers.lines()) {
                    out.extend_from_slice(line);
                    out.extend_from_slice(b"\r\n");
                }
                out.extend_from_slice(b"\r\n");
            }
            State::Fixed(left) if left > 0 => return Err(ErrorKind::BodyTooShort.into()),
            State::Ended | State::Fixed(_) | State::Raw => {}
        }
        self.state = State::Ended;
        Ok(())
    }

    /// [`BodyEncoder::end`] was called and did not fail.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }
}

/// Lower-case hex without leading zeros, and CRLF. `size` is not zero.
fn write_chunk_size(out: &mut Vec<u8>, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let width = (usize::BITS - size.leading_zeros()).div_ceil(4);
    for at in (0..width).rev() {
        out.push(DIGITS[(size >> (at * 4)) & 0xf]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends one header line. Name and value are the caller's own or were validated by a head.
pub fn write_header(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    debug_assert!(super::head::is_token(name), "a header name is a token");
    debug_assert!(
        memchr::memchr3(b'\r', b'\n', 0, value).is_none(),
        "a value is one line"
    );
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
