//! Which protocol the first bytes of a connection speak.
//!
//! Used where a port's protocol is not declared. It decides on at most 24 bytes (the length of the
//! HTTP/2 preface) and as soon as the bytes allow, so that a short first segment does not wait. It
//! does not wait for silence: server-first protocols send nothing, and the engine's timeout turns
//! `None` into opaque TCP.
//!
//! Invariants: the answer for a prefix, once given, is the answer for every longer input; with
//! [`SNIFF_BYTES_MAX`] bytes there always is one.
//!
//! Tests: `tests/wire/sniff.rs`.

use crate::frame::PREFACE;

/// As many bytes as [`sniff`] ever needs.
pub const SNIFF_BYTES_MAX: usize = PREFACE.len();

/// How an absolute-form target begins, in any case (RFC 9112 3.2.2).
const SCHEME_START: &[u8] = b"http";

/// The longest method that leaves room for a space and the start of a scheme. The longest
/// registered ones have 17 bytes (`UPDATEREDIRECTREF`, RFC 4437).
const METHOD_BYTES_MAX: usize = SNIFF_BYTES_MAX - 1 - SCHEME_START.len();

/// TLS record type `handshake` (RFC 8446 5.1) and major version, then the message type
/// `client_hello` (RFC 8446 4) at [`TLS_MESSAGE_AT`].
const TLS_HANDSHAKE: u8 = 0x16;
const TLS_MAJOR: u8 = 0x03;
const TLS_CLIENT_HELLO: u8 = 0x01;
const TLS_MESSAGE_AT: usize = 5;

/// What a connection speaks, as far as its first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// An HTTP/1 request line: a method of upper-case letters and `-`, a space, a target's start.
    Http1,
    /// The HTTP/2 connection preface, prior knowledge (RFC 9113 3.4).
    Http2,
    /// Anything else: relayed as TCP, unread.
    Opaque,
    /// A TLS ClientHello.
    Tls,
}

/// Says what the connection speaks, or `None` while more bytes are needed.
pub fn sniff(bytes: &[u8]) -> Option<Protocol> {
    match bytes.first()? {
        &TLS_HANDSHAKE => sniff_tls(bytes),
        b'A'..=b'Z' => sniff_http(bytes),
        _ => Some(Protocol::Opaque),
    }
}

/// A handshake record of TLS 1.0 to 1.3 on the wire (minor 1 to 4) that carries a ClientHello.
fn sniff_tls(bytes: &[u8]) -> Option<Protocol> {
    let fits = |at: usize, ok: &dyn Fn(u8) -> bool| bytes.get(at).is_none_or(|&byte| ok(byte));
    let hello = fits(1, &|byte| byte == TLS_MAJOR)
        && fits(2, &|byte| byte <= 4)
        && fits(TLS_MESSAGE_AT, &|byte| byte == TLS_CLIENT_HELLO);
    match (hello, bytes.len() > TLS_MESSAGE_AT) {
        (false, _) => Some(Protocol::Opaque),
        (true, true) => Some(Protocol::Tls),
        (true, false) => None,
    }
}

/// The preface byte for byte, else `METHOD SP` and the start of a request target.
fn sniff_http(bytes: &[u8]) -> Option<Protocol> {
    let len = bytes.len().min(PREFACE.len());
    if bytes[..len] == PREFACE[..len] {
        return (len == PREFACE.len()).then_some(Protocol::Http2);
    }
    let method = bytes
        .iter()
        .take_while(|b| matches!(b, b'A'..=b'Z' | b'-'))
        .count();
    if method > METHOD_BYTES_MAX {
        return Some(Protocol::Opaque);
    }
    match *bytes.get(method)? {
        b' ' => sniff_target(&bytes[..method], &bytes[method + 1..]),
        _ => Some(Protocol::Opaque),
    }
}

/// A path, an asterisk or `http`; a host for CONNECT. `EHLO mail.example` is none of these.
fn sniff_target(method: &[u8], target: &[u8]) -> Option<Protocol> {
    let first = *target.first()?;
    let is_http1 = match first {
        b'/' | b'*' => true,
        _ if method == b"CONNECT" => first.is_ascii_alphanumeric() || first == b'[',
        _ => {
            let len = target.len().min(SCHEME_START.len());
            if !target[..len].eq_ignore_ascii_case(&SCHEME_START[..len]) {
                false
            } else if len < SCHEME_START.len() {
                return None;
            } else {
                true
            }
        }
    };
    Some(if is_http1 {
        Protocol::Http1
    } else {
        Protocol::Opaque
    })
}
