//! Bodies to payload: length-delimited, chunked, until the end of the connection.
//!
//! The decoder takes bytes in any cut and gives payload slices of the very input, uncopied. It
//! keeps no input: what it consumed can be forgotten. Chunk sizes and extensions are checked and
//! dropped (RFC 9112 7.1.1 lets a recipient ignore extensions), so the sink frames anew. Trailers
//! are validated as one block before the first of them is seen; only when they arrive in parts are
//! they copied.
//!
//! The states of chunked coding, and the bytes that lead out of each:
//!
//! | state | bytes expected | next |
//! |---|---|---|
//! | `Size` | 1 to 16 hex digits | `;` → `ExtensionName`, CR → `SizeEnd` |
//! | `ExtensionName` | token bytes | `=` → `ExtensionValue`, else as `ExtensionDone` |
//! | `ExtensionValue` | token bytes | first `"` → `ExtensionQuoted`, else as `ExtensionDone` |
//! | `ExtensionQuoted` | qdtext, `\` escapes one byte | `"` → `ExtensionDone` |
//! | `ExtensionDone` | none | `;` → `ExtensionName`, CR → `SizeEnd` |
//! | `SizeEnd` | LF | size 0 → `Trailers`, else `Data` |
//! | `Data` | the payload | `DataCr` |
//! | `DataCr`, `DataLf` | CR, LF | `Size` |
//! | `Trailers` | header lines, empty line | `Ended` |
//!
//! Tests: `tests/wire/h1_framing.rs`, `tests/wire/round_trip.rs`, fuzz target `body_chunked`.

use super::head::{self, Scan, Scanned, Section};
use super::header::{self, Header};
use super::limits::Limits;
use super::{Framing, Span};
use crate::error::{Error, ErrorKind};
use std::borrow::Cow;

/// What the decoder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyEvent<'a> {
    /// Payload: a slice of the input, never empty.
    Data(&'a [u8]),
    /// The body has ended; bytes behind it are not its own. Stays so.
    End,
    /// Everything given is consumed; more is needed.
    NeedMore,
    /// The trailer section, at least one field of it. `End` comes next.
    Trailers(Trailers<'a>),
}

/// A validated trailer section without the fields that must not come after a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trailers<'a> {
    block: Cow<'a, [u8]>,
    fields: Vec<Header>,
}

impl Trailers<'_> {
    /// Names and values in the order received.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields
            .iter()
            .map(|field| (field.name.of(&self.block), field.value.of(&self.block)))
    }

    /// The raw lines without their CRLF, in the order received.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().map(|field| field.line.of(&self.block))
    }
}

/// Where in the body the decoder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Payload of the current chunk still to come, at least one byte.
    Data(u64),
    DataCr,
    DataLf,
    Ended,
    ExtensionDone,
    /// `filled`: at least one byte of the name was there.
    ExtensionName {
        filled: bool,
    },
    ExtensionQuoted {
        escaped: bool,
    },
    ExtensionValue {
        filled: bool,
    },
    /// Length-delimited payload still to come, at least one byte.
    Fixed(u64),
    Size {
        digits: u8,
    },
    SizeEnd,
    Trailers,
    UntilEof,
}

impl State {
    fn may_end_extension(self) -> bool {
        matches!(
            self,
            State::ExtensionDone
                | State::ExtensionName { filled: true }
                | State::ExtensionValue { filled: true }
        )
    }
}

/// Turns the bytes of one body into payload.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    /// Out of line, because most bodies are not chunked: 24 bytes of every half instead of 176,
    /// which are written and moved several times a request.
    chunked: Option<Box<Chunked>>,
}

/// What only a chunked body needs.
#[derive(Clone, Debug)]
struct Chunked {
    /// Size of the chunk whose line is being read.
    size: u64,
    /// Bytes of chunk extensions the message may still have.
    extension_bytes_left: usize,
    limits: Limits,
    trailers: TrailerReader,
}

/// Most digits of a chunk size: a `u64` holds 16 hex digits.
const CHUNK_SIZE_DIGITS_MAX: u8 = 16;

impl BodyDecoder {
    /// A decoder for one body of this framing.
    pub fn new(framing: Framing, limits: &Limits) -> Self {
        let state = match framing {
            Framing::Chunked => State::Size { digits: 0 },
            Framing::Close => State::UntilEof,
            Framing::Length(0) | Framing::None => State::Ended,
            Framing::Length(length) => State::Fixed(length),
        };
        let chunked = (framing == Framing::Chunked).then(|| {
            Box::new(Chunked {
                size: 0,
                extension_bytes_left: limits.chunk_extension_bytes_max,
                limits: *limits,
                trailers: TrailerReader::new(),
            })
        });
        BodyDecoder { state, chunked }
    }

    /// A relay: bytes until the peer closes, for tunnels and opaque TCP.
    pub fn raw() -> Self {
        BodyDecoder {
            state: State::UntilEof,
            chunked: None,
        }
    }

    /// Takes the next bytes; gives how many were consumed and what they held. Call until
    /// [`BodyEvent::NeedMore`] or [`BodyEvent::End`], each time with what was not consumed.
    ///
    /// # Errors
    /// A fault of the framing; the message is broken and its connection cannot be used further.
    pub fn decode<'a>(&mut self, input: &'a [u8]) -> Result<(usize, BodyEvent<'a>), Error> {
        let mut at = 0;
        while self.state != State::Ended {
            let rest = &input[at..];
            let Some(&byte) = rest.first() else {
                return Ok((at, BodyEvent::NeedMore));
            };
            match self.state {
                State::UntilEof => return Ok((input.len(), BodyEvent::Data(rest))),
                State::Fixed(left) | State::Data(left) => {
                    let data = self.take_data(rest, left);
                    return Ok((at + data.len(), BodyEvent::Data(data)));
                }
                State::Trailers => {
                    let (consumed, trailers) = self.chunked().read_trailers(rest)?;
                    at += consumed;
                    let Some(trailers) = trailers else { continue };
                    self.state = State::Ended;
                    if !trailers.fields.is_empty() {
                        return Ok((at, BodyEvent::Trailers(trailers)));
                    }
                }
                _ => {
                    let state = self.state;
                    self.state = self.chunked().step(state, byte)?;
                    at += 1;
                }
            }
        }
        Ok((at, BodyEvent::End))
    }

    /// The peer closed.
    ///
    /// # Errors
    /// The body had not ended, unless only the end of the connection could end it.
    pub fn finish(&mut self) -> Result<(), Error> {
        match self.state {
            State::Ended | State::UntilEof => {
                self.state = State::Ended;
                Ok(())
            }
            _ => Err(ErrorKind::BodyIncomplete.into()),
        }
    }

    /// Nothing more belongs to this body.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// As much of `rest` as is payload; `left` bytes of it are still to come.
    fn take_data<'a>(&mut self, rest: &'a [u8], left: u64) -> &'a [u8] {
        let len = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
        let left = left - len as u64;
        self.state = match self.state {
            State::Fixed(_) if left == 0 => State::Ended,
            State::Fixed(_) => State::Fixed(left),
            _ if left == 0 => State::DataCr,
            _ => State::Data(left),
        };
        &rest[..len]
    }

    fn chunked(&mut self) -> &mut Chunked {
        self.chunked
            .as_mut()
            .expect("only a chunked body has a state of chunk framing")
    }
}

impl Chunked {
    fn read_trailers<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<(usize, Option<Trailers<'a>>), Error> {
        self.trailers.read(input, &self.limits)
    }

    /// One byte of chunk framing: the state it leads to.
    fn step(&mut self, state: State, byte: u8) -> Result<State, Error> {
        match state {
            State::Size { digits } => self.step_size(byte, digits),
            State::SizeEnd if byte == b'\n' && self.size == 0 => Ok(State::Trailers),
            State::SizeEnd if byte == b'\n' => Ok(State::Data(self.size)),
            State::SizeEnd => Err(ErrorKind::ChunkLineEnd.into()),
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size { digits: 0 }),
            State::DataCr | State::DataLf => Err(ErrorKind::ChunkDataEnd.into()),
            _ => self.step_extension(state, byte),
        }
    }

    fn step_size(&mut self, byte: u8, digits: u8) -> Result<State, Error> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ if digits == 0 => return Err(ErrorKind::ChunkSize.into()),
            b'\r' => return Ok(State::SizeEnd),
            b'\n' => return Err(ErrorKind::ChunkLineEnd.into()),
            b';' => return self.spend_extension_byte(State::ExtensionName { filled: false }),
            _ => return Err(ErrorKind::ChunkSize.into()),
        };
        if digits == CHUNK_SIZE_DIGITS_MAX {
            return Err(ErrorKind::ChunkSizeTooLong.into());
        }
        let sum = if digits == 0 { 0 } else { self.size << 4 };
        self.size = sum | u64::from(digit);
        Ok(State::Size { digits: digits + 1 })
    }

    /// `*( ";" name [ "=" ( token / quoted-string ) ] )`. The white space RFC 9112 calls bad (BWS)
    /// is refused: nothing sends it, and parsers disagree on it.
    fn step_extension(&mut self, state: State, byte: u8) -> Result<State, Error> {
        let token = head::is_token_byte(byte);
        let next = match (state, byte) {
            (State::ExtensionQuoted { escaped: true }, b'\t' | b' '..=b'~' | 0x80..) => {
                State::ExtensionQuoted { escaped: false }
            }
            (State::ExtensionQuoted { escaped: false }, b'\\') => {
                State::ExtensionQuoted { escaped: true }
            }
            (State::ExtensionQuoted { escaped: false }, b'"') => State::ExtensionDone,
            (State::ExtensionQuoted { escaped: false }, b'\t' | b' '..=b'~' | 0x80..) => state,
            (State::ExtensionName { .. }, _) if token => State::ExtensionName { filled: true },
            (State::ExtensionValue { .. }, _) if token => State::ExtensionValue { filled: true },
            (State::ExtensionName { filled: true }, b'=') => {
                State::ExtensionValue { filled: false }
            }
            (State::ExtensionValue { filled: false }, b'"') => {
                State::ExtensionQuoted { escaped: false }
            }
            (_, b'\r') if state.may_end_extension() => return Ok(State::SizeEnd),
            (_, b';') if state.may_end_extension() => State::ExtensionName { filled: false },
            (_, b'\n') if state.may_end_extension() => return Err(ErrorKind::ChunkLineEnd.into()),
            _ => return Err(ErrorKind::ChunkExtension.into()),
        };
        self.spend_extension_byte(next)
    }

    fn spend_extension_byte(&mut self, next: State) -> Result<State, Error> {
        let left = self.extension_bytes_left.checked_sub(1);
        self.extension_bytes_left = left.ok_or(ErrorKind::ChunkExtensionsTooLong)?;
        Ok(next)
    }
}

/// Finds the end of the trailer section and validates it whole. Holds bytes only of a section that
/// arrives in parts; those are bounded by `head_bytes_max`.
#[derive(Clone, Debug)]
struct TrailerReader {
    held: Vec<u8>,
    scan: Scan,
}

impl TrailerReader {
    fn new() -> Self {
        TrailerReader {
            held: Vec::new(),
            scan: Scan::new(Section::Trailers),
        }
    }

    /// Gives how many bytes of `input` were consumed, and the section when it is complete.
    fn read<'a>(
        &mut self,
        input: &'a [u8],
        limits: &Limits,
    ) -> Result<(usize, Option<Trailers<'a>>), Error> {
        if self.held.is_empty() {
            return match self.scan_to_end(input, limits)? {
                Some(end) => Ok((end, Some(self.trailers(Cow::Borrowed(&input[..end]))?))),
                None => {
                    self.held.extend_from_slice(input);
                    Ok((input.len(), None))
                }
            };
        }
        let before = self.held.len();
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(input);
        match self.scan_to_end(&held, limits)? {
            Some(end) => {
                held.truncate(end);
                Ok((end - before, Some(self.trailers(Cow::Owned(held))?)))
            }
            None => {
                self.held = held;
                Ok((input.len(), None))
            }
        }
    }

    fn scan_to_end(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Error> {
        match self.scan.next(bytes, limits)? {
            Scanned::End(end) => Ok(Some(end)),
            Scanned::NeedMore => Ok(None),
            Scanned::StartLine(_) => unreachable!("a trailer section has no start line"),
        }
    }

    fn trailers<'a>(&self, block: Cow<'a, [u8]>) -> Result<Trailers<'a>, Error> {
        let mut fields = Vec::new();
        head::read_fields(&block, 0, block.len(), self.scan.fields(), &mut fields)?;
        let kept = |name: Span, kind| !header::is_forbidden_trailer(name.of(&block), kind);
        fields.retain(|field| kept(field.name, field.kind));
        Ok(Trailers { block, fields })
    }
}
