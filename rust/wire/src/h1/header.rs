//! One header line: where it lies, which name it is, whether it travels beyond this hop.
//!
//! Names are classified once, by length and then case-insensitive compare, so that nothing later
//! compares strings. Headers are spans; the bytes stay where they were received, in the case they
//! were received in.
//!
//! Tests: below and `tests/wire/h1_syntax.rs`.

use super::Span;

/// One header line of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The raw line without its CRLF.
    pub line: Span,
    /// The name as received.
    pub name: Span,
    /// The value without the white space around it.
    pub value: Span,
    /// Which name it is.
    pub kind: Name,
    /// The line is for this connection only and must not be forwarded (RFC 9110 7.6.1).
    pub hop_by_hop: bool,
}

/// The names this proxy acts on. The prefixed ones are families (`x-envoy-…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the header of that name")]
pub enum Name {
    Authorization,
    B3,
    Baggage,
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    Expect,
    Forwarded,
    GrpcStatus,
    Host,
    KeepAlive,
    MaxForwards,
    /// Any name not listed here.
    Other,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    SetCookie,
    Te,
    Traceparent,
    Tracestate,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    XB3Flags,
    XB3ParentSpanId,
    XB3Sampled,
    XB3SpanId,
    XB3TraceId,
    /// Any `x-envoy-…`.
    XEnvoy,
    /// Any `x-forwarded-…` not listed on its own.
    XForwarded,
    XForwardedClientCert,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    /// Any `x-meshfast-…`: internal, stripped from callers.
    XMeshfast,
    XRealIp,
    XRequestId,
}

/// Which names a head has, so that a rule about a name that is not there costs one test instead of a
/// walk over all headers; a head has four of its forty names, and there are a dozen rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Present(u64);

const _: () = assert!(
    (Name::XRequestId as u32) < u64::BITS,
    "a bit for every name"
);

impl Present {
    pub(super) fn add(&mut self, name: Name) {
        self.0 |= 1 << name as u32;
    }

    pub(super) fn has(self, name: Name) -> bool {
        self.0 & (1 << name as u32) != 0
    }
}

/// Names of one length, in lower case.
type Names = &'static [(&'static [u8], Name)];

/// Families, tried for names that are not listed on their own.
const PREFIXES: Names = &[
    (b"x-envoy-", Name::XEnvoy),
    (b"x-forwarded-", Name::XForwarded),
    (b"x-meshfast-", Name::XMeshfast),
];

/// The listed names of this length.
const fn listed(len: usize) -> Names {
    match len {
        2 => &[(b"b3", Name::B3), (b"te", Name::Te)],
        4 => &[(b"host", Name::Host)],
        6 => &[(b"cookie", Name::Cookie), (b"expect", Name::Expect)],
        7 => &[
            (b"baggage", Name::Baggage),
            (b"trailer", Name::Trailer),
            (b"upgrade", Name::Upgrade),
        ],
        9 => &[
            (b"forwarded", Name::Forwarded),
            (b"x-real-ip", Name::XRealIp),
        ],
        10 => &[
            (b"connection", Name::Connection),
            (b"keep-alive", Name::KeepAlive),
            (b"set-cookie", Name::SetCookie),
            (b"tracestate", Name::Tracestate),
            (b"user-agent", Name::UserAgent),
            (b"x-b3-flags", Name::XB3Flags),
        ],
        11 => &[
            (b"grpc-status", Name::GrpcStatus),
            (b"traceparent", Name::Traceparent),
            (b"x-b3-spanid", Name::XB3SpanId),
        ],
        12 => &[
            (b"content-type", Name::ContentType),
            (b"max-forwards", Name::MaxForwards),
            (b"x-b3-sampled", Name::XB3Sampled),
            (b"x-b3-traceid", Name::XB3TraceId),
            (b"x-request-id", Name::XRequestId),
        ],
        13 => &[(b"authorization", Name::Authorization)],
        14 => &[(b"content-length", Name::ContentLength)],
        15 => &[(b"x-forwarded-for", Name::XForwardedFor)],
        16 => &[
            (b"proxy-connection", Name::ProxyConnection),
            (b"x-forwarded-host", Name::XForwardedHost),
        ],
        17 => &[
            (b"transfer-encoding", Name::TransferEncoding),
            (b"x-b3-parentspanid", Name::XB3ParentSpanId),
            (b"x-forwarded-proto", Name::XForwardedProto),
        ],
        18 => &[(b"proxy-authenticate", Name::ProxyAuthenticate)],
        19 => &[(b"proxy-authorization", Name::ProxyAuthorization)],
        23 => &[(b"x-forwarded-client-cert", Name::XForwardedClientCert)],
        _ => &[],
    }
}

/// `eq_ignore_ascii_case` with one side known to be lower case and as long. Eight bytes at once, the
/// last eight overlapping those before them: byte by byte it cost 14 instructions a byte.
fn is_in_any_case(name: &[u8], lower: &[u8]) -> bool {
    debug_assert_eq!(name.len(), lower.len(), "compared by length before");
    let same = |word: &[u8; 8], lower: &[u8; 8]| {
        lower_case(u64::from_ne_bytes(*word)) == u64::from_ne_bytes(*lower)
    };
    match (name.last_chunk(), lower.last_chunk()) {
        (Some(last), Some(lower_last)) => {
            let (words, _) = name.as_chunks();
            let (lower_words, _) = lower.as_chunks();
            same(last, lower_last) && words.iter().zip(lower_words).all(|(a, b)| same(a, b))
        }
        _ => name
            .iter()
            .zip(lower)
            .all(|(byte, lower)| byte.to_ascii_lowercase() == *lower),
    }
}

/// `make_ascii_lowercase` of eight bytes. In each byte, which no carry leaves because the highest
/// bit is masked off: from `A` on the first sum reaches that bit, past `Z` the second does.
fn lower_case(word: u64) -> u64 {
    const EACH: u64 = u64::MAX / 255;
    let low = word & (0x7f * EACH);
    let from_a = low + (0x80 - b'A' as u64) * EACH;
    let past_z = low + (0x7f - b'Z' as u64) * EACH;
    let is_upper = (from_a & !past_z) & !word & (0x80 * EACH);
    word | (is_upper >> 2)
}

impl Name {
    /// Which name this is, in any case.
    pub fn of(name: &[u8]) -> Name {
        let Some(first) = name.first().map(u8::to_ascii_lowercase) else {
            return Name::Other;
        };
        for &(known, kind) in listed(name.len()) {
            // The first byte rules out nearly every other name before the whole is compared.
            if first == known[0] && is_in_any_case(name, known) {
                return kind;
            }
        }
        if first != b'x' {
            return Name::Other;
        }
        for &(prefix, kind) in PREFIXES {
            if name.len() > prefix.len() && is_in_any_case(&name[..prefix.len()], prefix) {
                return kind;
            }
        }
        Name::Other
    }

    /// Which name this would be to a back end that reads `_` as `-`; `Other` without underscores.
    pub(super) fn of_underscored(name: &[u8]) -> Name {
        /// No name that matters is longer; families are recognised by their start.
        const LOOK_MAX: usize = 32;
        if memchr::memchr(b'_', name).is_none() {
            return Name::Other;
        }
        let mut dashed = [0; LOOK_MAX];
        let len = name.len().min(LOOK_MAX);
        for (to, &from) in dashed.iter_mut().zip(name) {
            *to = if from == b'_' { b'-' } else { from };
        }
        Name::of(&dashed[..len])
    }

    /// Whether a name of this kind can hold an underscore: the listed ones have none.
    pub(super) fn may_hold_underscore(self) -> bool {
        matches!(
            self,
            Name::Other | Name::XEnvoy | Name::XForwarded | Name::XMeshfast
        )
    }

    /// Always for this connection only (RFC 9110 7.6.1, RFC 9112 6.1 and 9.6).
    pub(super) fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Name::Connection
                | Name::KeepAlive
                | Name::ProxyAuthenticate
                | Name::ProxyAuthorization
                | Name::ProxyConnection
                | Name::Te
                | Name::TransferEncoding
                | Name::Upgrade
        )
    }

    /// End-to-end even when the sender's Connection header names it, so that a caller cannot make
    /// the proxy drop what identity, tracing or framing depends on.
    pub(super) fn is_protected(self) -> bool {
        matches!(
            self,
            Name::Authorization
                | Name::B3
                | Name::Baggage
                | Name::ContentLength
                | Name::Cookie
                | Name::Expect
                | Name::Forwarded
                | Name::Host
                | Name::MaxForwards
                | Name::SetCookie
                | Name::Traceparent
                | Name::Tracestate
                | Name::XB3Flags
                | Name::XB3ParentSpanId
                | Name::XB3Sampled
                | Name::XB3SpanId
                | Name::XB3TraceId
                | Name::XEnvoy
                | Name::XForwarded
                | Name::XForwardedClientCert
                | Name::XForwardedFor
                | Name::XForwardedHost
                | Name::XForwardedProto
                | Name::XMeshfast
                | Name::XRealIp
                | Name::XRequestId
        )
    }

    /// Has no meaning, or a dangerous one, after the body: framing, routing, authentication, hop
    /// What a back end that reads `_` as `-` would act on under this name.
    pub(super) fn is_guarded(self) -> bool {
        self.is_protected() || self.is_hop_by_hop()
    }
}

/// Further names that are forbidden as trailers but mean nothing else to this proxy.
const FORBIDDEN_TRAILERS: &[&[u8]] = &[
    b"age",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"date",
    b"expires",
    b"location",
    b"pragma",
    b"range",
    b"retry-after",
    b"vary",
    b"warning",
    b"www-authenticate",
];

/// Whether a trailer of this name is dropped: it has no meaning, or a dangerous one, after the body
/// (framing, routing, authentication, hop control; RFC 9110 6.5.1).
pub(super) fn is_forbidden_trailer(name: &[u8], kind: Name) -> bool {
    !matches!(kind, Name::Other | Name::GrpcStatus)
        || Name::of_underscored(name) != Name::Other
        || FORBIDDEN_TRAILERS
            .iter()
            .any(|forbidden| name.eq_ignore_ascii_case(forbidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_sits_under_its_length_and_is_found_in_any_case() {
        for len in 0..64 {
            for &(name, kind) in listed(len) {
                assert_eq!(name.len(), len, "{name:?}");
                assert_eq!(Name::of(name), kind);
                assert_eq!(Name::of(&name.to_ascii_uppercase()), kind);
            }
        }
    }

    #[test]
    fn lower_cases_eight_bytes_as_one_by_one() {
        for byte in 0..=255u8 {
            for place in 0..8 {
                for others in [0x00, 0x40, b'A', b'Z', b'[', b'z', 0x7f, 0xff] {
                    let mut bytes = [others; 8];
                    bytes[place] = byte;
                    let lowered = lower_case(u64::from_ne_bytes(bytes)).to_ne_bytes();
                    assert_eq!(lowered, bytes.map(|byte| byte.to_ascii_lowercase()));
                }
            }
        }
    }

    #[test]
    fn recognises_families_but_not_their_bare_prefix() {
        assert_eq!(Name::of(b"X-Envoy-Attempt-Count"), Name::XEnvoy);
        assert_eq!(Name::of(b"x-forwarded-port"), Name::XForwarded);
        assert_eq!(Name::of(b"x-meshfast-port"), Name::XMeshfast);
        assert_eq!(Name::of(b"x-meshfast-"), Name::Other);
        assert_eq!(Name::of(b""), Name::Other);
    }

    #[test]
    fn reads_underscores_as_dashes_only_where_there_are_some() {
        assert_eq!(Name::of_underscored(b"content_length"), Name::ContentLength);
        assert_eq!(
            Name::of_underscored(b"X_Forwarded-Client_Cert"),
            Name::XForwardedClientCert
        );
        assert_eq!(Name::of_underscored(b"x_meshfast_source"), Name::XMeshfast);
        assert_eq!(Name::of_underscored(b"content-length"), Name::Other);
        assert_eq!(Name::of_underscored(b"my_header"), Name::Other);
    }
}
