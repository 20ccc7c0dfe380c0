//! The one table of refusals: kind → status for the peer, stable label for logs and counters.
//!
//! A fault in a request is answered with [`Error::status`] and the connection is closed. A fault in
//! a response is the upstream's: the engine answers 502 and closes the upstream connection, so the
//! status column is not used on that side. Labels are part of the operator's interface (access log,
//! `rejected` counters): a row may be added, never renamed.
//!
//! Tests: below (shape of the table); `tests/wire/h1_*.rs` prove each row is reached.

use std::fmt;

/// Writes the enum and its table from one list, so that a kind without a row cannot exist.
macro_rules! errors {
    ($($kind:ident $status:literal $detail:literal $text:literal;)*) => {
        /// What was wrong. One variant per row of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorKind {
            $(#[doc = $text] $kind,)*
        }

        impl ErrorKind {
            /// Every kind, in the order of the table.
            pub const ALL: &[ErrorKind] = &[$(ErrorKind::$kind,)*];

            /// The row: status, label, text for a human.
            const fn row(self) -> (u16, &'static str, &'static str) {
                match self {
                    $(ErrorKind::$kind => ($status, $detail, $text),)*
                }
            }
        }
    };
}

errors! {
    BareCarriageReturn 400 "http1.bare_cr" "a CR that does not end a line (RFC 9112 2.2)";
    BareLineFeed 400 "http1.bare_lf" "a line ended by LF alone (RFC 9112 2.2)";
    BodyIncomplete 400 "http1.body_incomplete" "the peer closed before the body ended (RFC 9112 8)";
    BodyTooLong 400 "http1.body_too_long" "more payload than the body's framing allows";
    BodyTooShort 400 "http1.body_too_short" "the body ended before its promised length";
    ChunkDataEnd 400 "http1.chunk_data_end" "chunk data not followed by CRLF (RFC 9112 7.1)";
    ChunkExtension 400 "http1.chunk_extension" "malformed chunk extension (RFC 9112 7.1.1)";
    ChunkExtensionsTooLong 400 "http1.chunk_extensions_too_long"
        "chunk extensions of one message exceed the limit";
    ChunkLineEnd 400 "http1.chunk_line_end" "a chunk line that does not end in CRLF (RFC 9112 7.1)";
    ChunkSize 400 "http1.chunk_size" "a chunk size that is not plain hex (RFC 9112 7.1)";
    ChunkSizeTooLong 400 "http1.chunk_size_too_long" "a chunk size of more than 16 hex digits";
    ConnectWithBody 400 "http1.connect_with_body" "CONNECT with a body (RFC 9110 9.3.6)";
    ConnectionOption 400 "http1.connection_option"
        "a Connection option that is not a token (RFC 9110 7.6.1)";
    ConnectionOptionsTooMany 400 "http1.connection_options_too_many"
        "more Connection options than the limit";
    ContentLengthDuplicate 400 "http1.content_length_duplicate"
        "Content-Length more than once (RFC 9110 8.6)";
    ContentLengthEmpty 400 "http1.content_length_empty" "empty Content-Length";
    ContentLengthInvalid 400 "http1.content_length_invalid"
        "Content-Length that is not one plain number (RFC 9112 6.3)";
    ContentLengthTooLarge 400 "http1.content_length_too_large"
        "Content-Length of 20 or more digits";
    ContentLengthWithTransferEncoding 400 "http1.content_length_with_transfer_encoding"
        "both Content-Length and Transfer-Encoding (RFC 9112 6.1)";
    EmptyLinesTooMany 400 "http1.empty_lines_too_many"
        "more empty lines before the start line than the limit (RFC 9112 2.2)";
    Expectation 417 "http1.expectation" "an Expect other than 100-continue (RFC 9110 10.1.1)";
    FieldTooLarge 431 "http1.field_too_large" "one header line exceeds the limit";
    FieldsTooLarge 431 "http1.fields_too_large" "the header section exceeds the limit";
    FieldsTooMany 431 "http1.fields_too_many" "more header lines than the limit";
    FramingFieldSpace 400 "http1.framing_field_space"
        "a tab in a Content-Length or Transfer-Encoding line";
    HeaderFold 400 "http1.header_fold" "obsolete line folding (RFC 9112 5.2)";
    HeaderName 400 "http1.header_name"
        "a header name that is not a token right before its colon (RFC 9112 5.1)";
    HeaderNameUnderscore 400 "http1.header_name_underscore"
        "an underscore look-alike of a header name that proxies act on";
    HeaderSpaceBeforeFirst 400 "http1.header_space_before_first"
        "white space between the start line and the first header (RFC 9112 2.2)";
    HeaderValue 400 "http1.header_value" "a control byte in a header value (RFC 9110 5.5)";
    HostDuplicate 400 "http1.host_duplicate" "Host more than once (RFC 9112 3.2)";
    HostEmpty 400 "http1.host_empty" "empty Host (RFC 9110 4.2.1)";
    HostInvalid 400 "http1.host_invalid" "Host that is not host or host:port (RFC 9112 3.2)";
    HostMissing 400 "http1.host_missing" "HTTP/1.1 without Host (RFC 9112 3.2)";
    MaxForwards 400 "http1.max_forwards" "Max-Forwards that is not one number (RFC 9110 7.6.2)";
    MethodInvalid 400 "http1.method_invalid" "a method that is not a token (RFC 9110 9.1)";
    MethodLowerCase 501 "http1.method_lower_case" "a method with lower-case letters";
    MethodTooLong 501 "http1.method_too_long" "a method longer than the limit (RFC 9112 3)";
    MuxEmptyFlood 400 "mux.empty_flood" "empty DATA frames in a row (CVE-2019-9518)";
    MuxFlowControl 400 "mux.flow_control" "more bytes than the window allows (RFC 9113 6.9.1)";
    MuxFrameFlood 400 "mux.frame_flood" "more frames that carry nothing than the peer has earned";
    MuxHeaders 400 "mux.headers" "a header block that meshfast/1 does not know";
    MuxResetFlood 400 "mux.reset_flood" "streams reset as soon as opened (CVE-2023-44487)";
    MuxSettings 400 "mux.settings" "a setting outside its range (RFC 9113 6.5.2)";
    MuxSettingsFlood 400 "mux.settings_flood" "more entries in one SETTINGS than the limit";
    MuxStream 400 "mux.stream" "a frame for a stream that cannot have it (RFC 9113 5.1)";
    RequestLine 400 "http1.request_line" "a request line without target and version (RFC 9112 3)";
    StatusInvalid 400 "http1.status_invalid" "a status that is not three digits from 100";
    StatusLine 400 "http1.status_line" "a malformed status line (RFC 9112 4)";
    SwitchingWithoutUpgrade 400 "http1.switching_without_upgrade"
        "101 without Upgrade and Connection: upgrade (RFC 9110 15.2.2)";
    TargetAuthority 400 "http1.target_authority"
        "a target whose authority is not host or host:port (RFC 9112 3.2)";
    TargetCharacter 400 "http1.target_character"
        "a byte in the target that is no visible ASCII (RFC 9112 3.2)";
    TargetForm 400 "http1.target_form"
        "a target form that the method does not allow (RFC 9112 3.2)";
    TargetFragment 400 "http1.target_fragment" "a fragment in the target (RFC 9112 3.2)";
    TargetScheme 400 "http1.target_scheme" "an absolute target that is neither http nor https";
    TargetTooLong 414 "http1.target_too_long" "the target exceeds the limit (RFC 9112 3)";
    TransferEncodingDuplicate 400 "http1.transfer_encoding_duplicate"
        "Transfer-Encoding more than once";
    TransferEncodingInvalid 400 "http1.transfer_encoding_invalid"
        "malformed Transfer-Encoding, or chunked not last or repeated (RFC 9112 6.1)";
    TransferEncodingUnsupported 501 "http1.transfer_encoding_unsupported"
        "a transfer coding other than chunked (RFC 9112 6.1)";
    TransferEncodingVersion 400 "http1.transfer_encoding_version"
        "Transfer-Encoding in HTTP/1.0 (RFC 9112 6.1)";
    InterimWithBody 400 "http1.interim_with_body"
        "a 1xx answer that promises a body (RFC 9112 6.1)";
    UpgradeInvalid 400 "http1.upgrade_invalid"
        "Upgrade that is no list of protocols (RFC 9110 7.8)";
    VersionInvalid 400 "http1.version_invalid" "a malformed or missing version (RFC 9112 2.3)";
    VersionUnsupported 505 "http1.version_unsupported" "a version other than HTTP/1.0 and HTTP/1.1";
    FrameLength 400 "frame.length" "a frame length its type does not allow (RFC 9113 6)";
    FrameStream 400 "frame.stream" "a frame on a stream its type does not allow (RFC 9113 6)";
    FrameTooLarge 400 "frame.too_large" "a frame above SETTINGS_MAX_FRAME_SIZE (RFC 9113 4.2)";
    FramePreface 400 "frame.preface" "bytes that are not the connection preface (RFC 9113 3.4)";
}

/// A refusal. Small, `Copy`, without allocation: it is made on the hot path under attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Error {
    kind: ErrorKind,
}

impl Error {
    /// What was wrong.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The status a request with this fault is answered with before its connection is closed.
    pub const fn status(&self) -> u16 {
        self.kind.row().0
    }

    /// The stable label for logs and counters, such as `http1.content_length_duplicate`.
    pub const fn detail(&self) -> &'static str {
        self.kind.row().1
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Error { kind }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, detail, text) = self.kind.row();
        write!(f, "{detail}: {text}")
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const STATUSES: [u16; 6] = [400, 414, 417, 431, 501, 505];

    #[test]
    fn every_kind_has_its_own_snake_case_label() {
        let mut seen = HashSet::new();
        for &kind in ErrorKind::ALL {
            let detail = Error::from(kind).detail();
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            let (room, label) = detail.split_once('.').expect("a label is room.name");
            assert!(matches!(room, "http1" | "frame" | "mux"), "{detail}");
            assert!(!label.is_empty() && label.bytes().all(plain), "{detail}");
            assert!(seen.insert(detail), "{detail} twice");
        }
    }

    #[test]
    fn every_status_is_one_the_design_names() {
        for &kind in ErrorKind::ALL {
            assert!(STATUSES.contains(&Error::from(kind).status()), "{kind:?}");
        }
    }
}
