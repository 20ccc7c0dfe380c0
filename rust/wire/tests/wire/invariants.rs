//! What must hold for any bytes at all. The fuzz targets call these, and `corpus` calls them for
//! every committed input.

use crate::feed::{self, Body, BodyEnd};
use meshfast_wire::frame::{
    FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_DEFAULT, FRAME_PAYLOAD_BYTES_MAX, FrameHeader,
    FrameType, PREFACE, STREAM_ID_MAX, read_preface,
};
use meshfast_wire::h1::{
    BodyDecoder, BodyEncoder, BodyEvent, Framing, Header, Limits, Method, Name, RequestHead,
    ResponseHead, TargetForm, Version,
};
use meshfast_wire::mux::{Carries, Connection, Event, Role, STREAM_WINDOW_BYTES, STREAMS_MAX};
use meshfast_wire::sniff::{Protocol, SNIFF_BYTES_MAX, sniff as sniff_bytes};

/// Small enough that a fuzzer finds the limits.
fn limits() -> Limits {
    Limits {
        chunk_extension_bytes_max: 64,
        field_bytes_max: 256,
        head_bytes_max: 512,
        headers_max: 8,
        method_bytes_max: 16,
        target_bytes_max: 64,
        ..Limits::default()
    }
}

/// Cuts to compare with the whole: byte by byte, and one in two.
fn cuts(len: usize) -> [Vec<usize>; 2] {
    [(1..len).collect(), vec![len / 2]]
}

/// A request head means the same however it is cut; every span lies in the head; a taken head has
/// one framing, one valid Host, no control byte in any line, and says the same again when its
/// lines are written out.
pub fn request_head(bytes: &[u8]) {
    let limits = limits();
    let whole = feed::request(bytes, &limits, &[]);
    for cuts in cuts(bytes.len()) {
        let cut = feed::request(bytes, &limits, &cuts);
        assert_eq!(format!("{cut:?}"), format!("{whole:?}"));
    }
    let Ok(Some(head)) = whole else {
        return;
    };
    assert!(head.len <= bytes.len() && head.len <= limits.buffer_bytes_max());
    let bytes = &bytes[..head.len];
    assert!(head.target.of(bytes).iter().all(u8::is_ascii_graphic));
    for span in [head.method, head.scheme, head.authority, head.path] {
        assert!(span.of(bytes).iter().all(u8::is_ascii_graphic));
    }
    assert_eq!(
        head.path_bytes(bytes).is_empty(),
        head.form == TargetForm::Authority
    );
    check_headers(bytes, &head.headers, &limits);
    let hosts = count(&head.headers, Name::Host);
    assert!(hosts == 1 || hosts == 0 && head.version == Version::Http10);
    assert_ne!(
        head.framing,
        Framing::Close,
        "a request never lasts until the end"
    );
    check_framing(
        &head.headers,
        head.framing,
        head.method_kind != Method::Connect,
    );
    let written = rewrite(
        &[head.method.of(bytes), head.target.of(bytes)],
        head.version,
        &head.headers,
        bytes,
    );
    let again = feed::request(&written, &limits, &[]).unwrap().unwrap();
    assert_eq!(summary(&again, &written), summary(&head, bytes));
}

/// As [`request_head`], for the answer to a request whose method the first byte chooses.
pub fn response_head(bytes: &[u8]) {
    let Some((&choice, bytes)) = bytes.split_first() else {
        return;
    };
    let method =
        [Method::Get, Method::Head, Method::Connect, Method::Post][usize::from(choice % 4)];
    let limits = limits();
    let whole = feed::response(bytes, &limits, method, &[]);
    for cuts in cuts(bytes.len()) {
        let cut = feed::response(bytes, &limits, method, &cuts);
        assert_eq!(format!("{cut:?}"), format!("{whole:?}"));
    }
    let Ok(Some(head)) = whole else {
        return;
    };
    let bytes = &bytes[..head.len];
    check_headers(bytes, &head.headers, &limits);
    check_response(&head, method);
}

fn check_response(head: &ResponseHead, method: Method) {
    assert!((100..=999).contains(&head.status));
    let never_a_body = head.status < 200
        || matches!(head.status, 204 | 304)
        || method == Method::Head
        || method == Method::Connect && head.status < 300;
    assert_eq!(head.framing == Framing::None, never_a_body);
    check_framing(
        &head.headers,
        head.framing,
        !never_a_body && head.framing != Framing::Close,
    );
    assert!(!head.keep_alive || head.framing != Framing::Close);
    assert!(head.status != 101 || head.upgrade.is_some());
}

/// A chunked body means the same however it is cut; payload is never more than its input; and
/// what was taken survives being framed anew.
pub fn body_chunked(bytes: &[u8]) {
    let limits = limits();
    let whole = feed::body(bytes, &limits, Framing::Chunked, &[]);
    for cuts in cuts(bytes.len()) {
        assert_eq!(feed::body(bytes, &limits, Framing::Chunked, &cuts), whole);
    }
    assert!(whole.payload.len() <= bytes.len());
    if let BodyEnd::After(len) = whole.end {
        assert!(len <= bytes.len());
        let written = reframe(&bytes[..len], &limits);
        let again = feed::body(&written, &limits, Framing::Chunked, &[]);
        let end = BodyEnd::After(written.len());
        assert_eq!(again, Body { end, ..whole });
    }
}

/// Decodes a whole chunked body and writes it chunked again.
fn reframe(bytes: &[u8], limits: &Limits) -> Vec<u8> {
    let mut decoder = BodyDecoder::new(Framing::Chunked, limits);
    let mut encoder = BodyEncoder::new(Framing::Chunked);
    let mut written = Vec::new();
    let mut rest = bytes;
    while !encoder.is_ended() {
        let (consumed, event) = decoder.decode(rest).unwrap();
        rest = &rest[consumed..];
        match event {
            BodyEvent::Data(data) => encoder.data(&mut written, data).unwrap(),
            BodyEvent::End => encoder.end(&mut written, None).unwrap(),
            BodyEvent::NeedMore => panic!("the body was whole"),
            BodyEvent::Trailers(trailers) => encoder.end(&mut written, Some(&trailers)).unwrap(),
        }
    }
    written
}

/// A header that decodes satisfies its limits and encodes to the same bytes but for the reserved
/// bit; fewer than nine bytes decode to nothing; the preface is known from its prefixes alone.
pub fn frame(bytes: &[u8]) {
    assert_eq!(
        read_preface(bytes).is_ok(),
        bytes.starts_with(PREFACE) || PREFACE.starts_with(bytes)
    );
    for payload_bytes_max in [FRAME_PAYLOAD_BYTES_DEFAULT, FRAME_PAYLOAD_BYTES_MAX] {
        let decoded = FrameHeader::decode(bytes, payload_bytes_max);
        let Some(first) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            assert_eq!(decoded, Ok(None));
            continue;
        };
        let Ok(header) = decoded else {
            continue;
        };
        let header = header.expect("nine bytes are a header");
        assert!(header.length <= payload_bytes_max && header.stream <= STREAM_ID_MAX);
        assert_eq!(FrameType::of(header.kind.code()), header.kind);
        let mut plain = *first;
        plain[5] &= 0x7f;
        assert_eq!(header.encode(), plain);
        assert_eq!(
            FrameHeader::decode(&plain, payload_bytes_max),
            Ok(Some(header))
        );
    }
}

/// What a connection of meshfast/1 came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    /// Events in words; bytes of one stream in a row are one event.
    events: Vec<String>,
    /// Bytes of the open streams so far.
    open: std::collections::BTreeMap<u32, usize>,
    sent: Vec<u8>,
    refused: Option<&'static str>,
}

/// Streams that the caller's end opens before it hears anything.
const OPENED: u32 = 3;

/// What both ends say first: as a peer's start for the other.
fn start_of(role: Role) -> Vec<u8> {
    let mut start = Vec::new();
    Connection::new(role, &mut start);
    start
}

/// Behind a good start the same events, answers and refusal come of the bytes however they are cut;
/// a stream has events only between its beginning and its end, and never more bytes than its credit.
/// The first byte chooses the end, and whether it leaves at once.
pub fn mux(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    let role = [Role::Client, Role::Server][usize::from(choice & 1)];
    let leaves = choice & 2 != 0;
    let whole = mux_told(role, leaves, bytes, &[]);
    for cuts in cuts(bytes.len()) {
        assert_eq!(mux_told(role, leaves, bytes, &cuts), whole);
    }
}

fn mux_told(role: Role, leaves: bool, bytes: &[u8], cuts: &[usize]) -> Told {
    let mut told = Told::default();
    let mut connection = Connection::new(role, &mut told.sent);
    let peer = [Role::Server, Role::Client][usize::from(role == Role::Server)];
    let mut input = start_of(peer);
    let frames_max = bytes.len() / FRAME_HEADER_BYTES + input.len();
    for _ in 0..OPENED {
        if let Some(stream) = connection.open(80, Carries::Tcp, &mut told.sent) {
            told.open.insert(stream, 0);
        }
    }
    if leaves {
        connection.leave(&mut told.sent);
    }
    let before = told.sent.len();
    let mut fed = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        input.extend_from_slice(&bytes[fed..cut]);
        fed = cut;
        match mux_take(&mut connection, role, &input, &mut told) {
            Ok(used) => drop(input.drain(..used)),
            Err(error) => {
                told.refused = Some(error.detail());
                break;
            }
        }
        assert!(input.len() < FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_DEFAULT as usize);
    }
    assert!(connection.open_streams() <= STREAMS_MAX);
    // An answer to a PING is the longest; a stream that is taken is answered twice.
    let answers = told.sent.len() - before;
    assert!(answers <= frames_max * 3 * (FRAME_HEADER_BYTES + 16));
    told
}

/// Takes all events out of the input; how much of it was used.
fn mux_take(
    connection: &mut Connection,
    role: Role,
    input: &[u8],
    told: &mut Told,
) -> Result<usize, meshfast_wire::Error> {
    let mut at = 0;
    loop {
        let (used, event) = connection.receive(&input[at..], &mut told.sent)?;
        at += used;
        let Some(event) = event else {
            if used == 0 {
                return Ok(at);
            }
            continue;
        };
        match event {
            Event::Accepted(stream) => assert!(role == Role::Client && stream <= 2 * OPENED),
            Event::Data(stream, data) => {
                let count = told.open.get_mut(&stream).expect("data of an open stream");
                *count += data.len();
                assert!(!data.is_empty() && *count <= STREAM_WINDOW_BYTES as usize);
                let said = format!("{stream}: bytes");
                if told.events.last() != Some(&said) {
                    told.events.push(said);
                }
                continue;
            }
            Event::Ended(stream) => {
                let count = told
                    .open
                    .remove(&stream)
                    .expect("the end of an open stream");
                connection.consumed(stream, count, &mut told.sent);
                connection.end(stream, &mut told.sent);
            }
            Event::GoAway(_) | Event::Writable(_) => {}
            Event::Opened(stream, port, _) => {
                assert!(role == Role::Server && stream % 2 == 1 && port > 0);
                assert!(told.open.insert(stream, 0).is_none(), "opened once");
                connection.accept(stream, &mut told.sent);
            }
            Event::Reset(stream, _) => {
                let count = told
                    .open
                    .remove(&stream)
                    .expect("a reset of an open stream");
                connection.consumed(stream, count, &mut told.sent);
            }
        }
        told.events.push(format!("{event:?}"));
    }
}

/// An answer given for a prefix stays; there is one after 24 bytes; HTTP/2 is its whole preface.
pub fn sniff(bytes: &[u8]) {
    let mut answer: Option<Protocol> = None;
    for len in 0..=bytes.len().min(2 * SNIFF_BYTES_MAX) {
        let next = sniff_bytes(&bytes[..len]);
        if answer.is_some() {
            assert_eq!(next, answer, "at {len}");
        }
        answer = next;
        assert!(answer.is_some() || len < SNIFF_BYTES_MAX);
        assert_eq!(
            answer == Some(Protocol::Http2),
            bytes[..len].starts_with(PREFACE)
        );
    }
    assert_eq!(sniff_bytes(bytes), answer);
}

fn count(headers: &[Header], kind: Name) -> usize {
    headers.iter().filter(|header| header.kind == kind).count()
}

fn check_headers(bytes: &[u8], headers: &[Header], limits: &Limits) {
    assert!(headers.len() <= limits.headers_max);
    for header in headers {
        let (line, name, value) = (
            header.line.of(bytes),
            header.name.of(bytes),
            header.value.of(bytes),
        );
        assert!(line.len() <= limits.field_bytes_max);
        assert!(
            line.iter()
                .all(|&byte| byte == b'\t' || byte >= b' ' && byte != 0x7f)
        );
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic));
        assert_eq!((&line[..name.len()], line[name.len()]), (name, b':'));
        assert_eq!(line[name.len() + 1..].trim_ascii(), value);
        assert_eq!(Name::of(name), header.kind);
        assert_eq!(&bytes[header.line.end as usize..][..2], b"\r\n");
    }
}

/// The framing is the one the headers give; `exact`: without such headers there is none.
fn check_framing(headers: &[Header], framing: Framing, exact: bool) {
    let lengths = count(headers, Name::ContentLength);
    let codings = count(headers, Name::TransferEncoding);
    assert!(lengths + codings <= 1);
    if exact {
        assert_eq!(framing == Framing::Chunked, codings == 1);
        assert_eq!(matches!(framing, Framing::Length(_)), lengths == 1);
    }
}

fn rewrite(start: &[&[u8]; 2], version: Version, headers: &[Header], bytes: &[u8]) -> Vec<u8> {
    let version: &[u8] = match version {
        Version::Http10 => b"HTTP/1.0",
        Version::Http11 => b"HTTP/1.1",
    };
    let mut written = [start[0], start[1], version].join(&b' ');
    written.extend_from_slice(b"\r\n");
    for header in headers {
        written.extend_from_slice(header.line.of(bytes));
        written.extend_from_slice(b"\r\n");
    }
    written.extend_from_slice(b"\r\n");
    written
}

fn summary(head: &RequestHead, bytes: &[u8]) -> impl PartialEq + std::fmt::Debug {
    let headers: Vec<_> = head
        .headers
        .iter()
        .map(|h| {
            (
                h.name.of(bytes).to_vec(),
                h.value.of(bytes).to_vec(),
                h.kind,
                h.hop_by_hop,
            )
        })
        .collect();
    let target = (
        head.form,
        head.authority.of(bytes).to_vec(),
        head.path_bytes(bytes).to_vec(),
    );
    (
        headers,
        target,
        head.framing,
        head.keep_alive,
        head.expect_continue,
        head.max_forwards,
    )
}
