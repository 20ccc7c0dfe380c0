//! The frame layer of `meshfast/1`: HTTP/2 frame headers, their rules, error codes, constants.
//!
//! `meshfast/1` is what two meshfast proxies speak to each other (docs/meshfast-1.md): HTTP/2
//! frames over mutual TLS 1.3. This module turns the nine bytes in front of every frame into a
//! checked [`FrameHeader`] and back. It holds no connection state, no flow control and no header
//! compression, and does not read payloads: what depends on them is refused a layer above.
//!
//! Invariants:
//! 1. A decoded header satisfies its type's row: payload length and stream id are allowed.
//! 2. Unknown types decode (they are ignored, RFC 9113 5.5); the size limit holds for them too.
//! 3. `decode` of an encoded header gives it back.
//!
//! Tests: `tests/wire/frame.rs`, fuzz target `frame`.

use crate::error::{Error, ErrorKind};

/// The application protocol two meshfast proxies agree on in TLS (RFC 7301).
pub const ALPN: &[u8] = b"meshfast/1";

/// What the dialling side sends first (RFC 9113 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes in front of every payload (RFC 9113 4.1).
pub const FRAME_HEADER_BYTES: usize = 9;

/// SETTINGS_MAX_FRAME_SIZE unless the peer announced another: its lowest value (RFC 9113 6.5.2).
pub const FRAME_PAYLOAD_BYTES_DEFAULT: u32 = 16_384;

/// The highest value SETTINGS_MAX_FRAME_SIZE can have (RFC 9113 6.5.2), 24 bits.
pub const FRAME_PAYLOAD_BYTES_MAX: u32 = (1 << 24) - 1;

/// Stream ids have 31 bits; the highest bit is reserved and ignored (RFC 9113 4.1).
pub const STREAM_ID_MAX: u32 = (1 << 31) - 1;

/// Frame types (RFC 9113 6), in the order of their codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameType {
    /// Body bytes of a stream.
    Data,
    /// Opens a stream or ends it with trailers.
    Headers,
    /// Deprecated priority; read and ignored.
    Priority,
    /// Ends a stream with an error code.
    RstStream,
    /// Parameters of the connection.
    Settings,
    /// Not used by meshfast/1; a receiver that disabled push refuses it.
    PushPromise,
    /// Liveness.
    Ping,
    /// No new streams from here.
    GoAway,
    /// Credit for DATA.
    WindowUpdate,
    /// More of a header block.
    Continuation,
    /// Any other code, ignored.
    Unknown(u8),
}

/// Which payload lengths a type allows.
#[derive(Clone, Copy)]
enum Length {
    Any,
    AtLeast(u32),
    Exactly(u32),
    MultipleOf(u32),
}

/// Which streams a type is allowed on.
#[derive(Clone, Copy)]
enum Stream {
    Any,
    Connection,
    Single,
}

/// Each type with its code and rules (RFC 9113 6.1 to 6.10).
const TYPES: [(FrameType, Length, Stream); 10] = [
    (FrameType::Data, Length::Any, Stream::Single),
    (FrameType::Headers, Length::Any, Stream::Single),
    (FrameType::Priority, Length::Exactly(5), Stream::Single),
    (FrameType::RstStream, Length::Exactly(4), Stream::Single),
    (
        FrameType::Settings,
        Length::MultipleOf(6),
        Stream::Connection,
    ),
    (FrameType::PushPromise, Length::AtLeast(4), Stream::Single),
    (FrameType::Ping, Length::Exactly(8), Stream::Connection),
    (FrameType::GoAway, Length::AtLeast(8), Stream::Connection),
    (FrameType::WindowUpdate, Length::Exactly(4), Stream::Any),
    (FrameType::Continuation, Length::Any, Stream::Single),
];

impl FrameType {
    /// The type of this code.
    pub fn of(code: u8) -> FrameType {
        TYPES
            .get(usize::from(code))
            .map_or(FrameType::Unknown(code), |row| row.0)
    }

    /// The code of this type: its position in the table.
    pub fn code(self) -> u8 {
        match self {
            FrameType::Unknown(code) => code,
            FrameType::Data => 0,
            FrameType::Headers => 1,
            FrameType::Priority => 2,
            FrameType::RstStream => 3,
            FrameType::Settings => 4,
            FrameType::PushPromise => 5,
            FrameType::Ping => 6,
            FrameType::GoAway => 7,
            FrameType::WindowUpdate => 8,
            FrameType::Continuation => 9,
        }
    }
}

/// The flag bits of a frame. Undefined ones are kept and ignored (RFC 9113 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// SETTINGS, PING: this acknowledges one.
    pub const ACK: Flags = Flags(0x01);
    /// DATA, HEADERS: the sender's half of the stream ends here.
    pub const END_STREAM: Flags = Flags(0x01);
    /// HEADERS, CONTINUATION: the header block ends here.
    pub const END_HEADERS: Flags = Flags(0x04);
    /// DATA, HEADERS: the payload begins with a padding length.
    pub const PADDED: Flags = Flags(0x08);
    /// HEADERS: five bytes of deprecated priority come first.
    pub const PRIORITY: Flags = Flags(0x20);

    /// All bits of `flags` are set.
    pub const fn contains(self, flags: Flags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// The bits of both.
    pub const fn with(self, flags: Flags) -> Flags {
        Flags(self.0 | flags.0)
    }
}

/// The nine bytes in front of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameHeader {
    /// Bytes of payload, at most [`FRAME_PAYLOAD_BYTES_MAX`].
    pub length: u32,
    /// The type.
    pub kind: FrameType,
    /// The flags.
    pub flags: Flags,
    /// The stream, 0 for the connection, at most [`STREAM_ID_MAX`].
    pub stream: u32,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`, or `None` while there are fewer than nine.
    /// `payload_bytes_max` is the SETTINGS_MAX_FRAME_SIZE this side announced.
    ///
    /// # Errors
    /// The frame is too large, or has a length or a stream its type does not allow.
    /// [`ErrorCode::of`] says how to answer.
    pub fn decode(bytes: &[u8], payload_bytes_max: u32) -> Result<Option<FrameHeader>, Error> {
        let Some(&[l0, l1, l2, code, flags, s0, s1, s2, s3]) = bytes.first_chunk() else {
            return Ok(None);
        };
        let header = FrameHeader {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind: FrameType::of(code),
            flags: Flags(flags),
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & STREAM_ID_MAX,
        };
        if header.length > payload_bytes_max {
            return Err(ErrorKind::FrameTooLarge.into());
        }
        header.check()?;
        Ok(Some(header))
    }

    /// The nine bytes. The reserved bit is zero.
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        debug_assert!(self.length <= FRAME_PAYLOAD_BYTES_MAX && self.stream <= STREAM_ID_MAX);
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = (self.stream & STREAM_ID_MAX).to_be_bytes();
        [l0, l1, l2, self.kind.code(), self.flags.0, s0, s1, s2, s3]
    }

    fn check(&self) -> Result<(), Error> {
        let Some(&(_, length, stream)) = TYPES.get(usize::from(self.kind.code())) else {
            return Ok(());
        };
        let is_stream_allowed = match stream {
            Stream::Any => true,
            Stream::Connection => self.stream == 0,
            Stream::Single => self.stream != 0,
        };
        if !is_stream_allowed {
            return Err(ErrorKind::FrameStream.into());
        }
        // An acknowledged SETTINGS carries none (RFC 9113 6.5).
        let is_settings_ack = self.kind == FrameType::Settings && self.flags.contains(Flags::ACK);
        let is_length_allowed = match length {
            _ if is_settings_ack => self.length == 0,
            Length::Any => true,
            Length::AtLeast(min) => self.length >= min,
            Length::Exactly(exact) => self.length == exact,
            Length::MultipleOf(unit) => self.length.checked_rem(unit) == Some(0),
        };
        if !is_length_allowed {
            return Err(ErrorKind::FrameLength.into());
        }
        Ok(())
    }
}

/// Looks for the preface at the start of `bytes`: `true` when it is there whole, `false` while the
/// bytes so far are a part of it.
///
/// # Errors
/// The bytes are something else.
pub fn read_preface(bytes: &[u8]) -> Result<bool, Error> {
    let len = bytes.len().min(PREFACE.len());
    if bytes[..len] != PREFACE[..len] {
        return Err(ErrorKind::FramePreface.into());
    }
    Ok(len == PREFACE.len())
}

/// Why a stream or a connection ends (RFC 9113 7), in the order of the codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ErrorCode {
    /// Graceful end.
    NoError = 0x0,
    /// The peer broke a rule that has no code of its own.
    ProtocolError = 0x1,
    /// A fault of this side.
    InternalError = 0x2,
    /// Flow-control limits exceeded.
    FlowControlError = 0x3,
    /// SETTINGS not acknowledged in time.
    SettingsTimeout = 0x4,
    /// A frame for a stream half that has ended.
    StreamClosed = 0x5,
    /// A frame of a wrong length.
    FrameSizeError = 0x6,
    /// The request was not handed to the application: repeating it is safe, whatever its method.
    RefusedStream = 0x7,
    /// The sender no longer wants the stream.
    Cancel = 0x8,
    /// The compression state is lost.
    CompressionError = 0x9,
    /// A tunnel's other end failed.
    ConnectError = 0xa,
    /// The peer makes excessive load.
    EnhanceYourCalm = 0xb,
    /// TLS below what is required.
    InadequateSecurity = 0xc,
    /// The request must go over HTTP/1.1.
    Http11Required = 0xd,
}

impl ErrorCode {
    /// Every code, at its own position.
    pub const ALL: [ErrorCode; 14] = [
        ErrorCode::NoError,
        ErrorCode::ProtocolError,
        ErrorCode::InternalError,
        ErrorCode::FlowControlError,
        ErrorCode::SettingsTimeout,
        ErrorCode::StreamClosed,
        ErrorCode::FrameSizeError,
        ErrorCode::RefusedStream,
        ErrorCode::Cancel,
        ErrorCode::CompressionError,
        ErrorCode::ConnectError,
        ErrorCode::EnhanceYourCalm,
        ErrorCode::InadequateSecurity,
        ErrorCode::Http11Required,
    ];

    /// The meaning of a received code. Unknown ones trigger nothing special and are treated as
    /// INTERNAL_ERROR (RFC 9113 7).
    pub fn received(code: u32) -> ErrorCode {
        let known = usize::try_from(code)
            .ok()
            .and_then(|at| ErrorCode::ALL.get(at));
        known.copied().unwrap_or(ErrorCode::InternalError)
    }

    /// The code a refusal is answered with.
    pub fn of(error: &Error) -> ErrorCode {
        match error.kind() {
            ErrorKind::FrameLength | ErrorKind::FrameTooLarge => ErrorCode::FrameSizeError,
            ErrorKind::MuxEmptyFlood
            | ErrorKind::MuxFrameFlood
            | ErrorKind::MuxResetFlood
            | ErrorKind::MuxSettingsFlood => ErrorCode::EnhanceYourCalm,
            _ => ErrorCode::ProtocolError,
        }
    }
}
