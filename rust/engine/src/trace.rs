//! Trace context: W3C `traceparent`, B3 single (`b3`) and B3 multi (`x-b3-*`).
//!
//! A context that came with the request goes on unchanged in the form it came in; joining calls is
//! the application's part (it copies the headers). A request without one starts a trace: both
//! `traceparent` and B3 multi are added, as Istio's default propagation does, so that an application
//! that copies either keeps the trace together. A malformed context counts as none and is replaced: a
//! header that comes twice is malformed, and so is a `traceparent` in upper case. The caller's decision
//! to sample or not is kept, also where it came without identifiers.
//! Sources: W3C Trace Context 3.2; openzipkin/b3-propagation.

use meshfast_mesh::Random;
use meshfast_wire::h1::{Name, RequestHead};

use crate::text::hexadecimal;

/// Istio's default `traceSampling` is 1 %.
const SAMPLED_ONE_IN: u64 = 100;

/// The longest request identifier that is taken from outside, in bytes: a UUID has 36, and every byte
/// of it goes into the log.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Whether the spans of a trace are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sampling {
    /// Recorded whatever the receiver's own sampling says (B3 only).
    Debug,
    No,
    Yes,
}

/// The identifiers of a trace, as lower-case hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    pub(crate) trace_id: [u8; 32],
    pub(crate) span_id: [u8; 16],
    pub(crate) sampling: Sampling,
    adds: Adds,
}

/// Which headers a context adds, in place of those of that form that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adds {
    /// Made here: all forms.
    All,
    /// It came whole.
    Nothing,
    /// It came in B3, next to a malformed `traceparent`.
    Traceparent,
}

impl TraceContext {
    /// The context of a request: what it carries, else a new one.
    pub(crate) fn of(head: &RequestHead, bytes: &[u8], random: &mut Random) -> Self {
        if let Some(context) = from_traceparent(head, bytes) {
            return context;
        }
        let Some(context) = from_b3_single(head, bytes).or_else(|| from_b3_multi(head, bytes))
        else {
            return Self::new(decision_alone(head, bytes), random);
        };
        let adds = match head.header(bytes, Name::Traceparent) {
            Some(_) => Adds::Traceparent,
            None => Adds::Nothing,
        };
        Self { adds, ..context }
    }

    fn new(decided: Option<Sampling>, random: &mut Random) -> Self {
        let mut trace_id = [0; 32];
        trace_id[..16].copy_from_slice(&hexadecimal(random.next_u64()));
        trace_id[16..].copy_from_slice(&hexadecimal(random.next_u64() | 1));
        let span_id = hexadecimal(random.next_u64() | 1);
        let sampling = decided.unwrap_or_else(|| match random.below(SAMPLED_ONE_IN) {
            0 => Sampling::Yes,
            _ => Sampling::No,
        });
        Self {
            trace_id,
            span_id,
            sampling,
            adds: Adds::All,
        }
    }

    /// Appends the headers that did not come.
    pub(crate) fn write_headers(&self, out: &mut Vec<u8>) {
        if self.adds == Adds::Nothing {
            return;
        }
        out.extend_from_slice(b"traceparent: 00-");
        out.extend_from_slice(&self.trace_id);
        out.push(b'-');
        out.extend_from_slice(&self.span_id);
        out.extend_from_slice(match self.sampling {
            Sampling::No => b"-00\r\n",
            Sampling::Debug | Sampling::Yes => b"-01\r\n",
        });
        if self.adds == Adds::Traceparent {
            return;
        }
        out.extend_from_slice(b"x-b3-traceid: ");
        out.extend_from_slice(&self.trace_id);
        out.extend_from_slice(b"\r\nx-b3-spanid: ");
        out.extend_from_slice(&self.span_id);
        out.extend_from_slice(match self.sampling {
            Sampling::Debug => b"\r\nx-b3-flags: 1\r\n",
            Sampling::No => b"\r\nx-b3-sampled: 0\r\n",
            Sampling::Yes => b"\r\nx-b3-sampled: 1\r\n",
        });
    }

    /// Whether a header that came is replaced by those of this context.
    pub(crate) fn replaces(&self, kind: Name) -> bool {
        match self.adds {
            Adds::All => is_w3c(kind) || is_b3(kind),
            Adds::Nothing => false,
            Adds::Traceparent => is_w3c(kind),
        }
    }
}

fn is_w3c(kind: Name) -> bool {
    matches!(kind, Name::Traceparent | Name::Tracestate)
}

fn is_b3(kind: Name) -> bool {
    matches!(
        kind,
        Name::B3
            | Name::XB3TraceId
            | Name::XB3SpanId
            | Name::XB3ParentSpanId
            | Name::XB3Sampled
            | Name::XB3Flags
    )
}

/// The value of a header that came once.
fn only<'a>(head: &RequestHead, bytes: &'a [u8], kind: Name) -> Option<&'a [u8]> {
    let first = head.header(bytes, kind)?;
    let mut all = head.headers.iter().filter(|header| header.kind == kind);
    all.nth(1).is_none().then_some(first)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, all in lower case; a later version may go on after that.
fn from_traceparent(head: &RequestHead, bytes: &[u8]) -> Option<TraceContext> {
    let value = only(head, bytes, Name::Traceparent)?;
    if value.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let version = parts.next()?;
    let trace_id = parts.next()?;
    let span_id = parts.next()?;
    let flags = parts.next()?;
    let is_known = octet(version)? != 0xff && trace_id.len() == 32;
    if !is_known || (version == b"00" && parts.next().is_some()) {
        return None;
    }
    let sampling = match octet(flags)? & 1 {
        1 => Sampling::Yes,
        _ => Sampling::No,
    };
    context(trace_id, span_id, sampling)
}

/// Two hexadecimal digits.
fn octet(digits: &[u8]) -> Option<u8> {
    let is_octet = digits.len() == 2 && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_octet)?;
    u8::from_str_radix(text, 16).ok()
}

/// `<trace>-<span>[-<0|1|d>[-<parent>]]`.
fn from_b3_single(head: &RequestHead, bytes: &[u8]) -> Option<TraceContext> {
    let value = only(head, bytes, Name::B3)?;
    let mut parts = value.split(|byte| *byte == b'-');
    let trace_id = parts.next()?;
    let span_id = parts.next()?;
    let sampling = parts.next().and_then(decision).unwrap_or(Sampling::No);
    context(trace_id, span_id, sampling)
}

fn from_b3_multi(head: &RequestHead, bytes: &[u8]) -> Option<TraceContext> {
    let trace_id = only(head, bytes, Name::XB3TraceId)?;
    let span_id = only(head, bytes, Name::XB3SpanId)?;
    let sampling = decision_b3_multi(head, bytes).unwrap_or(Sampling::No);
    context(trace_id, span_id, sampling)
}

/// A decision that came without identifiers, which B3 allows: `b3: 1`, or only `x-b3-sampled` or
/// `x-b3-flags`.
fn decision_alone(head: &RequestHead, bytes: &[u8]) -> Option<Sampling> {
    only(head, bytes, Name::B3)
        .and_then(decision)
        .or_else(|| decision_b3_multi(head, bytes))
}

fn decision_b3_multi(head: &RequestHead, bytes: &[u8]) -> Option<Sampling> {
    if only(head, bytes, Name::XB3Flags) == Some(b"1") {
        return Some(Sampling::Debug);
    }
    match only(head, bytes, Name::XB3Sampled)? {
        // Tracers from before the specification wrote words.
        b"true" => Some(Sampling::Yes),
        b"false" => Some(Sampling::No),
        b"d" => None,
        value => decision(value),
    }
}

fn decision(value: &[u8]) -> Option<Sampling> {
    match value {
        b"0" => Some(Sampling::No),
        b"1" => Some(Sampling::Yes),
        b"d" => Some(Sampling::Debug),
        _ => None,
    }
}

/// B3 allows 64-bit trace identifiers; they are the low half of a 128-bit one.
fn context(trace_id: &[u8], span_id: &[u8], sampling: Sampling) -> Option<TraceContext> {
    let mut wide = [b'0'; 32];
    match trace_id.len() {
        16 => wide[16..].copy_from_slice(trace_id),
        32 => wide.copy_from_slice(trace_id),
        _ => return None,
    }
    let span: [u8; 16] = span_id.try_into().ok()?;
    let is_hex = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_hexdigit);
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == b'0');
    if !is_hex(&wide) || !is_hex(&span) || is_zero(&wide) || is_zero(&span) {
        return None;
    }
    wide.make_ascii_lowercase();
    Some(TraceContext {
        trace_id: wide,
        span_id: span.map(|byte| byte.to_ascii_lowercase()),
        sampling,
        adds: Adds::Nothing,
    })
}

/// The request identifier that came from outside, if it is one: not empty, not two, not too long.
pub(crate) fn given_request_id<'a>(head: &RequestHead, bytes: &'a [u8]) -> Option<&'a [u8]> {
    only(head, bytes, Name::XRequestId)
        .filter(|value| (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()))
}

/// A request identifier as Envoy makes it: a random UUID (RFC 9562, version 4).
pub(crate) fn request_id(random: &mut Random) -> [u8; 36] {
    let mut digits = [0; 32];
    digits[..16].copy_from_slice(&hexadecimal(random.next_u64()));
    digits[16..].copy_from_slice(&hexadecimal(random.next_u64()));
    digits[12] = b'4';
    digits[16] = b"89ab"[random.below(4) as usize];
    let mut text = [b'-'; 36];
    for (from, to) in [
        (0..8, 0),
        (8..12, 9),
        (12..16, 14),
        (16..20, 19),
        (20..32, 24),
    ] {
        let length = from.len();
        text[to..to + length].copy_from_slice(&digits[from]);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use meshfast_wire::h1::Limits;

    fn read(headers: &str) -> TraceContext {
        read_with(headers, 1)
    }

    fn read_with(headers: &str, seed: u64) -> TraceContext {
        let bytes = format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n").into_bytes();
        let mut head = RequestHead::new();
        head.parse(&bytes, &Limits::default()).unwrap();
        TraceContext::of(&head, &bytes, &mut Random::new(seed))
    }

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn reads_all_three_forms() {
        let forms = [
            format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n"),
            format!("b3: {TRACE}-00f067aa0ba902b7-1\r\n"),
            format!(
                "X-B3-TraceId: {TRACE}\r\nX-B3-SpanId: 00F067AA0BA902B7\r\nx-b3-sampled: 1\r\n"
            ),
        ];
        for form in forms {
            let context = read(&form);
            assert_eq!(context.trace_id, TRACE.as_bytes(), "{form}");
            assert_eq!(&context.span_id, b"00f067aa0ba902b7", "{form}");
            assert_eq!(context.sampling, Sampling::Yes, "{form}");
            assert_eq!(context.adds, Adds::Nothing, "{form}");
        }
    }

    #[test]
    fn widens_a_short_b3_trace() {
        let context = read("b3: a3ce929d0e0e4736-00f067aa0ba902b7\r\n");
        assert_eq!(&context.trace_id[..16], b"0000000000000000");
        assert_eq!(context.sampling, Sampling::No);
    }

    #[test]
    fn starts_a_trace_where_there_is_none_or_a_broken_one() {
        let parent = format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n");
        let broken = [
            String::new(),
            "traceparent: 00-xyz-1-01\r\n".to_owned(),
            "b3: 0\r\n".to_owned(),
            parent.replace(TRACE, &"0".repeat(32)),
            parent.replace(TRACE, &TRACE[16..]),
            parent.replace(TRACE, &TRACE.to_uppercase()),
            parent.replace("00f067", "00F067"),
            parent.replace(" 00-", " 0A-"),
            parent.replace(" 00-", " ff-"),
            parent.replace(" 00-", " +0-"),
            parent.replace("-01\r", "-+1\r"),
            parent.replace("-01\r", "-01-\r"),
            parent.repeat(2),
            format!("b3: {TRACE}-00f067aa0ba902b7-1\r\n").repeat(2),
        ];
        for broken in &broken {
            let context = read(broken);
            assert_eq!(context.adds, Adds::All, "{broken}");
            assert!(context.replaces(Name::Traceparent) && context.replaces(Name::XB3Flags));
            let mut headers = Vec::new();
            context.write_headers(&mut headers);
            let again = read(std::str::from_utf8(&headers).unwrap());
            assert_eq!(again.trace_id, context.trace_id);
            assert_eq!(again.span_id, context.span_id);
            assert_eq!(again.sampling, context.sampling);
        }
        let later = parent
            .replace(" 00-", " cc-")
            .replace("-01\r", "-01-more\r");
        assert_eq!(read(&later).trace_id, TRACE.as_bytes());
    }

    #[test]
    fn keeps_a_decision_that_came_without_identifiers() {
        let decided = [
            ("b3: 0", Sampling::No),
            ("b3: 1", Sampling::Yes),
            ("b3: d", Sampling::Debug),
            ("X-B3-Sampled: 0", Sampling::No),
            ("X-B3-Sampled: false", Sampling::No),
            ("X-B3-Sampled: 1", Sampling::Yes),
            ("X-B3-Sampled: true", Sampling::Yes),
            ("X-B3-Flags: 1", Sampling::Debug),
            ("traceparent: broken\r\nb3: 1", Sampling::Yes),
        ];
        // With any one seed the chance of 1 % would agree with most of them.
        for seed in 0..300 {
            for (line, sampling) in decided {
                let context = read_with(&format!("{line}\r\n"), seed);
                assert_eq!(context.sampling, sampling, "{line}");
                assert_eq!(context.adds, Adds::All, "{line}");
            }
        }
        let mut headers = Vec::new();
        read("b3: d\r\n").write_headers(&mut headers);
        let headers = String::from_utf8(headers).unwrap();
        assert!(headers.contains("-01\r\n") && headers.ends_with("x-b3-flags: 1\r\n"));
        assert!(!headers.contains("sampled"), "debug says it already");
    }

    #[test]
    fn a_broken_traceparent_next_to_b3_is_replaced_by_the_same_trace() {
        let context = read(&format!(
            "traceparent: no\r\nb3: {TRACE}-00f067aa0ba902b7-1\r\n"
        ));
        let mut headers = Vec::new();
        context.write_headers(&mut headers);
        assert_eq!(
            String::from_utf8(headers).unwrap(),
            format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n")
        );
        assert!(context.replaces(Name::Tracestate) && !context.replaces(Name::B3));
    }

    #[test]
    fn takes_one_request_id_of_bearable_length_from_outside() {
        let given = |headers: &str| {
            let bytes = format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n").into_bytes();
            let mut head = RequestHead::new();
            head.parse(&bytes, &Limits::default()).unwrap();
            given_request_id(&head, &bytes).map(<[u8]>::to_vec)
        };
        let line = |length| format!("x-request-id: {}\r\n", "i".repeat(length));
        assert_eq!(given(&line(128)), Some(vec![b'i'; 128]));
        assert_eq!(given(&line(1)), Some(vec![b'i']));
        for refused in [String::new(), line(0), line(129), line(1).repeat(2)] {
            assert_eq!(given(&refused), None, "{refused}");
        }
    }

    #[test]
    fn request_ids_are_version_4_uuids_and_differ() {
        let mut random = Random::new(7);
        let (first, second) = (request_id(&mut random), request_id(&mut random));
        assert_ne!(first, second);
        let text = std::str::from_utf8(&first).unwrap();
        assert_eq!(text.len(), 36);
        assert_eq!(text.as_bytes()[14], b'4');
        assert_eq!(text.matches('-').count(), 4);
    }
}
