//! The limits of one HTTP/1 message, declared once. Every buffer the codec makes a caller keep is
//! bounded by one of them.
//!
//! Tests: `tests/wire/h1_syntax.rs` (each limit at its last good and first bad value).

use super::head::FIELDS_HARD_MAX;

/// What a message may cost. Values below are defaults; zero means nothing of the kind is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all chunk extensions of one message. 16 KiB.
    pub chunk_extension_bytes_max: usize,
    /// Empty lines tolerated before a request line. 2 (RFC 9112 2.2 asks for at least one).
    pub empty_lines_max: usize,
    /// Bytes of one header line without its CRLF. 32 KiB.
    pub field_bytes_max: usize,
    /// Bytes of the header section (all header lines, without the start line), and of a trailer
    /// section. 60 KiB, Envoy's `max_request_headers_kb`.
    pub head_bytes_max: usize,
    /// Header lines of a head, and of a trailer section. 100, Envoy's `max_headers_count`; more
    /// than 256 is taken as 256.
    pub headers_max: usize,
    /// Bytes of a method. 64; the longest registered one has 17.
    pub method_bytes_max: usize,
    /// Bytes of a request target. 64 KiB.
    pub target_bytes_max: usize,
    /// What becomes of header names with an underscore.
    pub underscores: Underscores,
}

/// What becomes of header names with an underscore, which CGI-like back ends read as `-`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underscores {
    /// Every such header is marked hop-by-hop, so it is not forwarded.
    Drop,
    /// A request with any such header is refused.
    RejectAll,
    /// A request is refused when the name, read with `-`, is one that proxies act on.
    RejectKnown,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            chunk_extension_bytes_max: 16 * 1024,
            empty_lines_max: 2,
            field_bytes_max: 32 * 1024,
            head_bytes_max: 60 * 1024,
            headers_max: 100,
            method_bytes_max: 64,
            target_bytes_max: 64 * 1024,
            underscores: Underscores::RejectKnown,
        }
    }
}

impl Limits {
    /// The most bytes a head may have: what a caller may have to buffer before parsing answers.
    pub fn buffer_bytes_max(&self) -> usize {
        let start_line = self.start_line_bytes_max().max(self.field_bytes_max);
        // Empty lines before, the CRLF of the start line, the empty line at the end.
        2 * self.empty_lines_max + start_line + 2 + self.head_bytes_max + 2
    }

    /// `METHOD SP target SP HTTP/1.1`.
    pub(super) fn start_line_bytes_max(&self) -> usize {
        self.method_bytes_max + 1 + self.target_bytes_max + 1 + "HTTP/1.1".len()
    }

    pub(super) fn fields_max(&self) -> usize {
        self.headers_max.min(FIELDS_HARD_MAX)
    }
}
