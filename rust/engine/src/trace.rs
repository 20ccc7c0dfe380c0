//! Trace context: W3C `traceparent`, B3 single (`b3`) and B3 multi (`x-b3-*`).
//!
//! A context that came with the request goes on unchanged in the form it came in; joining calls is
//! the application's part (it copies the headers). A request without one starts a trace: both
//! `traceparent` and B3 multi are added, as Istio's default propagation does, so that an application
//! that copies either keeps the trace together. A malformed context counts as none and is replaced.
//! Sources: W3C Trace Context 3.2; openzipkin/b3-propagation.

use meshfast_mesh::Random;
use meshfast_wire::h1::{Name, RequestHead};

use crate::text::hexadecimal;

/// Istio's default `traceSampling` is 1 %.
const SAMPLED_ONE_IN: u64 = 100;

/// The identifiers of a trace, as lower-case hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    pub(crate) trace_id: [u8; 32],
    pub(crate) span_id: [u8; 16],
    pub(crate) sampled: bool,
    /// Made here, so the headers must be added.
    pub(crate) is_new: bool,
}

impl TraceContext {
    /// The context of a request: what it carries, else a new one.
    pub(crate) fn of(head: &RequestHead, bytes: &[u8], random: &mut Random) -> Self {
        from_traceparent(head, bytes)
            .or_else(|| from_b3_single(head, bytes))
            .or_else(|| from_b3_multi(head, bytes))
            .unwrap_or_else(|| Self::new(random))
    }

    fn new(random: &mut Random) -> Self {
        let mut trace_id = [0; 32];
        trace_id[..16].copy_from_slice(&hexadecimal(random.next_u64()));
        trace_id[16..].copy_from_slice(&hexadecimal(random.next_u64() | 1));
        Self {
            trace_id,
            span_id: hexadecimal(random.next_u64() | 1),
            sampled: random.below(SAMPLED_ONE_IN) == 0,
            is_new: true,
        }
    }

    /// Appends the headers of a new context.
    pub(crate) fn write_headers(&self, out: &mut Vec<u8>) {
        let sampled = if self.sampled { b'1' } else { b'0' };
        out.extend_from_slice(b"traceparent: 00-");
        out.extend_from_slice(&self.trace_id);
        out.push(b'-');
        out.extend_from_slice(&self.span_id);
        out.extend_from_slice(b"-0");
        out.push(sampled);
        out.extend_from_slice(b"\r\nx-b3-traceid: ");
        out.extend_from_slice(&self.trace_id);
        out.extend_from_slice(b"\r\nx-b3-spanid: ");
        out.extend_from_slice(&self.span_id);
        out.extend_from_slice(b"\r\nx-b3-sampled: ");
        out.push(sampled);
        out.extend_from_slice(b"\r\n");
    }

    /// Whether a header belongs to a context that is replaced by a new one.
    pub(crate) fn is_trace_header(kind: Name) -> bool {
        matches!(
            kind,
            Name::Traceparent
                | Name::Tracestate
                | Name::B3
                | Name::XB3TraceId
                | Name::XB3SpanId
                | Name::XB3ParentSpanId
                | Name::XB3Sampled
                | Name::XB3Flags
        )
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; a later version may go on after that.
fn from_traceparent(head: &RequestHead, bytes: &[u8]) -> Option<TraceContext> {
    let value = head.header(bytes, Name::Traceparent)?;
    let mut parts = value.split(|byte| *byte == b'-');
    let version = parts.next()?;
    let trace_id = parts.next()?;
    let span_id = parts.next()?;
    let flags = parts.next()?;
    let is_known = version.len() == 2 && version != b"ff" && flags.len() == 2;
    if !is_known || (version == b"00" && parts.next().is_some()) {
        return None;
    }
    let sampled = u8::from_str_radix(std::str::from_utf8(flags).ok()?, 16).ok()? & 1 == 1;
    context(trace_id, span_id, sampled)
}

/// `<trace>-<span>[-<0|1|d>[-<parent>]]`, or only `0` or `1`, which carries no identifiers.
fn from_b3_single(head: &RequestHead, bytes: &[u8]) -> Option<TraceContext> {
    let value = head.header(bytes, Name::B3)?;
    let mut parts = value.split(|byte| *byte == b'-');
    let trace_id = parts.next()?;
    let span_id = parts.next()?;
    let sampled = matches!(parts.next(), Some(b"1" | b"d"));
    context(trace_id, span_id, sampled)
}

fn from_b3_multi(head: &RequestHead, bytes: &[u8]) -> Option<TraceContext> {
    let trace_id = head.header(bytes, Name::XB3TraceId)?;
    let span_id = head.header(bytes, Name::XB3SpanId)?;
    let sampled = matches!(head.header(bytes, Name::XB3Sampled), Some(b"1" | b"true"))
        || head.header(bytes, Name::XB3Flags) == Some(b"1");
    context(trace_id, span_id, sampled)
}

/// B3 allows 64-bit trace identifiers; they are the low half of a 128-bit one.
fn context(trace_id: &[u8], span_id: &[u8], sampled: bool) -> Option<TraceContext> {
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
        sampled,
        is_new: false,
    })
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
        let bytes = format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n").into_bytes();
        let mut head = RequestHead::new();
        head.parse(&bytes, &Limits::default()).unwrap();
        TraceContext::of(&head, &bytes, &mut Random::new(1))
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
            assert!(context.sampled && !context.is_new, "{form}");
        }
    }

    #[test]
    fn widens_a_short_b3_trace() {
        let context = read("b3: a3ce929d0e0e4736-00f067aa0ba902b7\r\n");
        assert_eq!(&context.trace_id[..16], b"0000000000000000");
        assert!(!context.sampled);
    }

    #[test]
    fn starts_a_trace_where_there_is_none_or_a_broken_one() {
        let zero = format!("traceparent: 00-{}-00f067aa0ba902b7-01\r\n", "0".repeat(32));
        for broken in ["", "traceparent: 00-xyz-1-01\r\n", "b3: 0\r\n", &zero] {
            let context = read(broken);
            assert!(context.is_new, "{broken}");
            let mut headers = Vec::new();
            context.write_headers(&mut headers);
            let again = read(std::str::from_utf8(&headers).unwrap());
            assert_eq!(again.trace_id, context.trace_id);
            assert_eq!(again.span_id, context.span_id);
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
