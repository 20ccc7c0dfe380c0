//! Trace context: W3C `traceparent`, B3 single (`b3`) and B3 multi (`x-b3-*`).
//!
//! A context that came with the request goes on in the form it came in; joining calls is the
//! application's part (it copies the headers). A request without one starts a trace: both
//! `traceparent` and B3 multi are added, as Istio's default propagation does, so that an application
//! that copies either keeps the trace together. A malformed context counts as none and is replaced: a
//! header that comes twice is malformed, and so is a `traceparent` in upper case. The caller's decision
//! to sample or not is kept, also where it came without identifiers.
//!
//! Where spans are recorded (`sampling_ppm`), a hop of a sampled trace is a span of its own: the
//! caller's span becomes its parent, and every form that came is written anew with its identifier.
//! What is not sampled passes unchanged, as everything does where no spans are recorded.
//! Sources: W3C Trace Context 3.2 and 3.4; openzipkin/b3-propagation.

use meshfast_mesh::Random;
use meshfast_wire::h1::{Name, RequestHead};

use crate::text::hexadecimal;

/// Istio's default `traceSampling`, 1 %: what a new trace's headers say where no spans are recorded.
const DEFAULT_SAMPLING_PPM: u32 = 10_000;

/// The whole, in parts per million.
const PARTS: u64 = 1_000_000;

/// The bits of `trace-flags`: sampled, and random (W3C Trace Context level 2, 3.2.2.5.2). Others are
/// not passed on.
const FLAG_SAMPLED: u8 = 1;
const FLAG_RANDOM: u8 = 2;

/// The longest request identifier that is taken from outside, in bytes: a UUID has 36, and every byte
/// of it goes into the log.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Whether the spans of a trace are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sampling {
    /// Recorded whatever the receiver's own sampling says (B3 only).
    Debug,
    /// The caller leaves it to whoever records (B3 only).
    Deferred,
    No,
    Yes,
}

impl Sampling {
    fn is_sampled(self) -> bool {
        matches!(self, Self::Debug | Self::Yes)
    }
}

/// The identifiers of a trace, as lower-case hexadecimal text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    pub(crate) trace_id: [u8; 32],
    /// What the upstream is told: the span of this hop when it is recorded, else the caller's.
    pub(crate) span_id: [u8; 16],
    /// The caller's span, of a recorded hop that has a caller; else 0.
    parent_id: u64,
    pub(crate) sampling: Sampling,
    /// A span of this hop is to be written.
    pub(crate) is_recorded: bool,
    /// The flags of the `traceparent` that the context came in.
    flags: Option<u8>,
    writes: Forms,
}

/// The forms of a context in headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Forms {
    b3_multi: bool,
    b3_single: bool,
    w3c: bool,
}

impl Forms {
    /// Those of a context that is made here.
    const MADE: Self = Self {
        b3_multi: true,
        b3_single: false,
        w3c: true,
    };

    fn of(head: &RequestHead) -> Self {
        let has = |kind| head.headers.iter().any(|header| header.kind == kind);
        Self {
            b3_multi: has(Name::XB3TraceId),
            b3_single: has(Name::B3),
            w3c: has(Name::Traceparent),
        }
    }
}

impl TraceContext {
    /// The context of a request: what it carries, else a new one. With `sampling_ppm` spans are
    /// recorded, and of the traces that begin here this share is sampled.
    pub(crate) fn of(
        head: &RequestHead,
        bytes: &[u8],
        random: &mut Random,
        sampling_ppm: Option<u32>,
    ) -> Self {
        let Some(mut context) = Self::that_came(head, bytes) else {
            return Self::new(decision_alone(head, bytes), random, sampling_ppm);
        };
        if let Some(sampling_ppm) = sampling_ppm {
            context.enter(head, random, sampling_ppm);
        }
        context
    }

    fn that_came(head: &RequestHead, bytes: &[u8]) -> Option<Self> {
        if let Some(context) = from_traceparent(head, bytes) {
            return Some(context);
        }
        let mut context = from_b3_single(head, bytes).or_else(|| from_b3_multi(head, bytes))?;
        // One that came next to it is malformed.
        context.writes.w3c = head.header(bytes, Name::Traceparent).is_some();
        Some(context)
    }

    fn new(decided: Option<Sampling>, random: &mut Random, sampling_ppm: Option<u32>) -> Self {
        let mut trace_id = [0; 32];
        trace_id[..16].copy_from_slice(&hexadecimal(random.next_u64()));
        trace_id[16..].copy_from_slice(&hexadecimal(random.next_u64() | 1));
        let span_id = new_span_id(random);
        let sampling =
            decided.unwrap_or_else(|| draw(random, sampling_ppm.unwrap_or(DEFAULT_SAMPLING_PPM)));
        Self {
            trace_id,
            span_id,
            parent_id: 0,
            sampling,
            is_recorded: sampling_ppm.is_some() && sampling.is_sampled(),
            flags: None,
            writes: Forms::MADE,
        }
    }

    /// Makes this hop a span of the trace, if that is sampled; decides it if nobody has.
    fn enter(&mut self, head: &RequestHead, random: &mut Random, sampling_ppm: u32) {
        let was_decided = self.sampling != Sampling::Deferred;
        if !was_decided {
            self.sampling = draw(random, sampling_ppm);
        }
        self.is_recorded = self.sampling.is_sampled();
        if self.is_recorded {
            self.parent_id = number(&self.span_id);
            self.span_id = new_span_id(random);
        }
        if self.is_recorded || !was_decided {
            self.writes = Forms::of(head);
        }
    }

    /// The caller's span, of a recorded hop that has a caller.
    pub(crate) fn parent_id(&self) -> Option<[u8; 16]> {
        (self.parent_id != 0).then(|| hexadecimal(self.parent_id))
    }

    /// The trace's identifier as B3 and Zipkin write it: one of 64 bits has 16 digits.
    pub(crate) fn b3_trace_id(&self) -> &[u8] {
        match self.trace_id.split_first_chunk::<16>() {
            Some((b"0000000000000000", low)) => low,
            _ => &self.trace_id,
        }
    }

    /// Appends the headers of the forms that are written here.
    pub(crate) fn write_headers(&self, out: &mut Vec<u8>) {
        if self.writes.w3c {
            self.write_traceparent(out);
        }
        if self.writes.b3_single {
            self.write_b3_single(out);
        }
        if self.writes.b3_multi {
            self.write_b3_multi(out);
        }
    }

    fn write_traceparent(&self, out: &mut Vec<u8>) {
        let kept = self.flags.unwrap_or(0) & FLAG_RANDOM;
        let flags = kept | (u8::from(self.sampling.is_sampled()) * FLAG_SAMPLED);
        out.extend_from_slice(b"traceparent: 00-");
        out.extend_from_slice(&self.trace_id);
        out.push(b'-');
        out.extend_from_slice(&self.span_id);
        out.extend_from_slice(&[b'-', b'0', b'0' + flags, b'\r', b'\n']);
    }

    fn write_b3_single(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"b3: ");
        out.extend_from_slice(self.b3_trace_id());
        out.push(b'-');
        out.extend_from_slice(&self.span_id);
        out.extend_from_slice(match self.sampling {
            Sampling::Debug => b"-d",
            Sampling::Deferred => b"",
            Sampling::No => b"-0",
            Sampling::Yes => b"-1",
        });
        if let Some(parent_id) = self.parent_id() {
            out.push(b'-');
            out.extend_from_slice(&parent_id);
        }
        out.extend_from_slice(b"\r\n");
    }

    fn write_b3_multi(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"x-b3-traceid: ");
        out.extend_from_slice(self.b3_trace_id());
        out.extend_from_slice(b"\r\nx-b3-spanid: ");
        out.extend_from_slice(&self.span_id);
        if let Some(parent_id) = self.parent_id() {
            out.extend_from_slice(b"\r\nx-b3-parentspanid: ");
            out.extend_from_slice(&parent_id);
        }
        out.extend_from_slice(match self.sampling {
            Sampling::Debug => b"\r\nx-b3-flags: 1\r\n",
            Sampling::Deferred => b"\r\n",
            Sampling::No => b"\r\nx-b3-sampled: 0\r\n",
            Sampling::Yes => b"\r\nx-b3-sampled: 1\r\n",
        });
    }

    /// Whether a header that came is replaced by those of this context.
    pub(crate) fn replaces(&self, kind: Name) -> bool {
        match kind {
            // A context made here has no use for the single form of another one.
            Name::B3 => self.writes.b3_single || self.writes.b3_multi,
            Name::Traceparent => self.writes.w3c,
            // It belongs to the trace of the `traceparent` that it came with.
            Name::Tracestate => self.writes.w3c && self.flags.is_none(),
            Name::XB3TraceId
            | Name::XB3SpanId
            | Name::XB3ParentSpanId
            | Name::XB3Sampled
            | Name::XB3Flags => self.writes.b3_multi,
            _ => false,
        }
    }
}

fn draw(random: &mut Random, sampling_ppm: u32) -> Sampling {
    if random.below(PARTS) < u64::from(sampling_ppm) {
        Sampling::Yes
    } else {
        Sampling::No
    }
}

fn new_span_id(random: &mut Random) -> [u8; 16] {
    hexadecimal(random.next_u64() | 1)
}

/// The value of hexadecimal digits, 16 at most.
fn number(digits: &[u8]) -> u64 {
    let digit = |byte: &u8| u64::from((byte & 0xf) + 9 * (byte >> 6));
    digits
        .iter()
        .fold(0, |value, byte| value << 4 | digit(byte))
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
    let flags = octet(flags)?;
    let sampling = match flags & FLAG_SAMPLED {
        0 => Sampling::No,
        _ => Sampling::Yes,
    };
    let context = context(trace_id, span_id, sampling)?;
    Some(TraceContext {
        flags: Some(flags),
        ..context
    })
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
    let sampling = parts
        .next()
        .and_then(decision)
        .unwrap_or(Sampling::Deferred);
    context(trace_id, span_id, sampling)
}

fn from_b3_multi(head: &RequestHead, bytes: &[u8]) -> Option<TraceContext> {
    let trace_id = only(head, bytes, Name::XB3TraceId)?;
    let span_id = only(head, bytes, Name::XB3SpanId)?;
    let sampling = decision_b3_multi(head, bytes).unwrap_or(Sampling::Deferred);
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
        parent_id: 0,
        sampling,
        is_recorded: false,
        flags: None,
        writes: Forms::default(),
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
        recording(headers, seed, None)
    }

    fn recording(headers: &str, seed: u64, sampling_ppm: Option<u32>) -> TraceContext {
        let bytes = format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n").into_bytes();
        let mut head = RequestHead::new();
        head.parse(&bytes, &Limits::default()).unwrap();
        TraceContext::of(&head, &bytes, &mut Random::new(seed), sampling_ppm)
    }

    /// What a hop that records all of its traces sends on of these headers.
    fn sent_on(headers: &str) -> (TraceContext, String) {
        let context = recording(headers, 1, Some(1_000_000));
        let mut out = Vec::new();
        context.write_headers(&mut out);
        (context, String::from_utf8(out).unwrap())
    }

    fn text(digits: &[u8]) -> &str {
        std::str::from_utf8(digits).unwrap()
    }

    const ALL: [Name; 9] = [
        Name::B3,
        Name::Traceparent,
        Name::Tracestate,
        Name::XB3Flags,
        Name::XB3ParentSpanId,
        Name::XB3Sampled,
        Name::XB3SpanId,
        Name::XB3TraceId,
        Name::XRequestId,
    ];

    fn replaced(context: &TraceContext) -> Vec<Name> {
        ALL.into_iter()
            .filter(|kind| context.replaces(*kind))
            .collect()
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
            assert_eq!(context.writes, Forms::default(), "{form}");
            assert!(
                !context.is_recorded && replaced(&context).is_empty(),
                "{form}"
            );
        }
    }

    #[test]
    fn widens_a_short_b3_trace() {
        let context = read("b3: a3ce929d0e0e4736-00f067aa0ba902b7\r\n");
        assert_eq!(&context.trace_id[..16], b"0000000000000000");
        assert_eq!(context.sampling, Sampling::Deferred);
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
            assert_eq!(context.writes, Forms::MADE, "{broken}");
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
                assert_eq!(context.writes, Forms::MADE, "{line}");
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
    fn a_recorded_hop_is_a_child_of_the_span_that_came_in_the_form_it_came_in() {
        let caller = "00f067aa0ba902b7";
        let multi = format!("x-b3-traceid: {TRACE}\r\nx-b3-spanid: {caller}\r\n");
        type Expected = fn(&str) -> String;
        let forms: [(String, Expected); 5] = [
            (
                format!("traceparent: 00-{TRACE}-{caller}-03\r\ntracestate: a=b\r\n"),
                |span| format!("traceparent: 00-{TRACE}-{span}-03\r\n"),
            ),
            (
                format!("traceparent: cc-{TRACE}-{caller}-f1-x\r\n"),
                |span| format!("traceparent: 00-{TRACE}-{span}-01\r\n"),
            ),
            (
                format!("b3: {TRACE}-{caller}-1-00000000000000aa\r\n"),
                |span| format!("b3: {TRACE}-{span}-1-00f067aa0ba902b7\r\n"),
            ),
            (format!("b3: {}-{caller}-d\r\n", &TRACE[16..]), |span| {
                format!("b3: {}-{span}-d-00f067aa0ba902b7\r\n", &TRACE[16..])
            }),
            (format!("{multi}X-B3-Sampled: 1\r\n"), |span| {
                format!(
                    "x-b3-traceid: {TRACE}\r\nx-b3-spanid: {span}\r\n\
                     x-b3-parentspanid: 00f067aa0ba902b7\r\nx-b3-sampled: 1\r\n"
                )
            }),
        ];
        for (came, expected) in forms {
            let (context, headers) = sent_on(&came);
            assert!(context.is_recorded, "{came}");
            assert_eq!(
                context.parent_id().as_ref().map(|it| text(it)),
                Some(caller)
            );
            assert_ne!(text(&context.span_id), caller);
            assert_eq!(headers, expected(text(&context.span_id)));
            assert!(
                !context.replaces(Name::Tracestate),
                "it is of the same trace"
            );
            let next = sent_on(&headers).0;
            assert_eq!(next.parent_id(), Some(context.span_id), "one chain");
            assert_eq!(next.trace_id, context.trace_id);
        }
    }

    #[test]
    fn every_form_that_came_carries_the_span_of_the_hop() {
        let other = "0".repeat(31) + "1";
        let came = format!(
            "traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nb3: {other}-00f067aa0ba902b7-0\r\n\
             x-b3-traceid: {other}\r\nx-b3-spanid: 00f067aa0ba902b7\r\n"
        );
        let (context, headers) = sent_on(&came);
        assert_eq!(
            headers.matches(text(&context.span_id)).count(),
            3,
            "{headers}"
        );
        assert_eq!(headers.matches(TRACE).count(), 3, "{headers}");
        let kept = ALL.into_iter().filter(|kind| !context.replaces(*kind));
        assert_eq!(
            kept.collect::<Vec<_>>(),
            [Name::Tracestate, Name::XRequestId]
        );
    }

    #[test]
    fn what_is_not_sampled_passes_unchanged() {
        for came in [
            format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-02\r\n"),
            format!("b3: {TRACE}-00f067aa0ba902b7-0\r\n"),
            format!(
                "x-b3-traceid: {TRACE}\r\nx-b3-spanid: 00f067aa0ba902b7\r\nx-b3-sampled: 0\r\n"
            ),
        ] {
            let (context, headers) = sent_on(&came);
            assert!(
                !context.is_recorded && replaced(&context).is_empty(),
                "{came}"
            );
            assert_eq!(headers, "", "{came}");
            assert_eq!(context.span_id, *b"00f067aa0ba902b7");
        }
    }

    #[test]
    fn a_decision_that_was_left_to_us_is_made_once_for_the_whole_trace() {
        let came = format!("b3: {TRACE}-00f067aa0ba902b7\r\n");
        for (sampling_ppm, is_sampled) in [(0, false), (1_000_000, true)] {
            let context = recording(&came, 1, Some(sampling_ppm));
            assert_eq!(context.is_recorded, is_sampled);
            let mut headers = Vec::new();
            context.write_headers(&mut headers);
            let headers = String::from_utf8(headers).unwrap();
            let next = recording(&headers, 1, Some(1_000_000 - sampling_ppm));
            assert_eq!(next.is_recorded, is_sampled, "{headers}");
        }
        assert!(replaced(&read(&came)).is_empty(), "nobody records here");
    }

    #[test]
    fn samples_the_share_it_is_told() {
        let sampled = |sampling_ppm| {
            let of = |seed| recording("", seed, Some(sampling_ppm)).is_recorded;
            (0..20_000).filter(|seed| of(*seed)).count()
        };
        assert_eq!(sampled(0), 0);
        assert_eq!(sampled(1_000_000), 20_000);
        // Six standard deviations of 1 % and of 25 % of 20,000.
        assert!(sampled(10_000).abs_diff(200) <= 84);
        assert!(sampled(250_000).abs_diff(5_000) <= 367);
    }

    #[test]
    fn a_span_that_begins_a_trace_has_no_parent() {
        let (context, headers) = sent_on("");
        assert!(context.is_recorded && context.parent_id().is_none());
        assert!(!headers.contains("parentspanid"), "{headers}");
        assert!(headers.contains(&format!("-{}-01\r\n", text(&context.span_id))));
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
