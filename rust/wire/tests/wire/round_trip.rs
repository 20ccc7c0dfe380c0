//! Encoder and decoder as a pair, and any soup of bytes in any cut.

use crate::feed::{self, Body, BodyEnd};
use crate::invariants;
use meshfast_wire::h1::{
    BodyDecoder, BodyEncoder, BodyEvent, Framing, Limits, Method, write_header,
};
use proptest::prelude::*;

/// One end frames payload, the other takes the wire apart.
struct Pair {
    encoder: BodyEncoder,
    framing: Framing,
    wire: Vec<u8>,
}

impl Pair {
    fn new(framing: Framing) -> Self {
        Pair {
            encoder: BodyEncoder::new(framing),
            framing,
            wire: Vec::new(),
        }
    }

    fn send(&mut self, parts: &[Vec<u8>]) {
        for part in parts {
            self.encoder.data(&mut self.wire, part).unwrap();
        }
        self.encoder.end(&mut self.wire, None).unwrap();
        assert!(self.encoder.is_ended());
    }

    fn receive(&self, cuts: &[usize]) -> Body {
        feed::body(&self.wire, &Limits::default(), self.framing, cuts)
    }
}

fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let part = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(vec![b'\r'; 15]),
        Just(b"0\r\n\r\n".to_vec()),
        (250usize..260).prop_map(|len| vec![b'x'; len]),
        (4090usize..4100).prop_map(|len| vec![b'y'; len]),
    ];
    prop::collection::vec(part, 0..8)
}

fn seeds() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(any::<usize>(), 0..6)
}

fn cuts_of(len: usize, seeds: &[usize]) -> Vec<usize> {
    let mut cuts: Vec<_> = seeds.iter().map(|seed| seed % (len + 1)).collect();
    cuts.sort_unstable();
    cuts
}

/// Words of heads and bodies, good and bad, so that random sequences of them get deep.
fn soup() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        &b"\r\n"[..],
        b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b" ",
        b": ",
        b":",
        b"\t",
        b",",
        b"GET ",
        b"POST ",
        b"CONNECT ",
        b"OPTIONS ",
        b"/",
        b"*",
        b"http://h",
        b"h:80",
        b"#",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 101 S\r\n",
        b"HTTP/1.1 204 N\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"Host: a\r\n",
        b"Content-Length: ",
        b"Transfer-Encoding: ",
        b"chunked",
        b"gzip",
        b"5",
        b"0",
        b"ffff",
        b";a=\"b\"",
        b"Connection: ",
        b"close",
        b"upgrade",
        b"x-own",
        b"Upgrade: ",
        b"websocket",
        b"Trailer: ",
        b"Expect: ",
        b"100-continue",
        b"content_length",
        b"x",
        b"\0",
        b"\x80",
        b"\"",
    ]);
    prop::collection::vec(word, 0..24).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn chunked_payload_arrives_as_sent(parts in parts(), seeds in seeds()) {
        let mut pair = Pair::new(Framing::Chunked);
        pair.send(&parts);
        let body = pair.receive(&cuts_of(pair.wire.len(), &seeds));
        prop_assert_eq!(body.payload, parts.concat());
        prop_assert_eq!(body.end, BodyEnd::After(pair.wire.len()));
    }

    #[test]
    fn payload_of_known_length_arrives_as_sent(parts in parts(), seeds in seeds()) {
        let payload = parts.concat();
        let mut pair = Pair::new(Framing::Length(payload.len() as u64));
        pair.send(&parts);
        prop_assert_eq!(&pair.wire, &payload);
        let body = pair.receive(&cuts_of(pair.wire.len(), &seeds));
        prop_assert_eq!(body.end, BodyEnd::After(payload.len()));
        prop_assert_eq!(body.payload, payload);
    }

    #[test]
    fn any_soup_of_words_keeps_the_invariants(soup in soup(), choice in any::<u8>()) {
        invariants::request_head(&soup);
        invariants::body_chunked(&soup);
        invariants::frame(&soup);
        invariants::sniff(&soup);
        let mut response = soup;
        response.insert(0, choice);
        invariants::response_head(&response);
    }

    #[test]
    fn any_bytes_keep_the_invariants(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        invariants::request_head(&bytes);
        invariants::response_head(&bytes);
        invariants::body_chunked(&bytes);
        invariants::frame(&bytes);
        invariants::sniff(&bytes);
    }
}

#[test]
fn a_relay_passes_bytes_as_they_are() {
    let mut encoder = BodyEncoder::raw();
    let mut wire = Vec::new();
    encoder.data(&mut wire, b"0\r\n\r\n").unwrap();
    encoder.end(&mut wire, None).unwrap();
    assert_eq!(wire, b"0\r\n\r\n");
}

#[test]
fn chunk_sizes_are_plain_hex_at_every_width() {
    for len in [
        1,
        9,
        10,
        15,
        16,
        255,
        256,
        4_095,
        4_096,
        65_535,
        65_536,
        1 << 20,
    ] {
        let mut wire = Vec::new();
        BodyEncoder::new(Framing::Chunked)
            .data(&mut wire, &vec![b'x'; len])
            .unwrap();
        let line = format!("{len:x}\r\n");
        assert!(wire.starts_with(line.as_bytes()), "{len}");
        assert_eq!(wire.len(), line.len() + len + 2);
    }
}

#[test]
fn an_empty_payload_is_not_the_last_chunk() {
    let mut encoder = BodyEncoder::new(Framing::Chunked);
    let mut wire = Vec::new();
    encoder.data(&mut wire, b"").unwrap();
    assert_eq!(wire, b"");
    encoder.end(&mut wire, None).unwrap();
    assert_eq!(wire, b"0\r\n\r\n");
}

#[test]
fn refuses_to_write_more_or_less_than_promised() {
    let mut wire = Vec::new();
    let mut encoder = BodyEncoder::new(Framing::Length(5));
    let short = encoder.end(&mut wire, None).unwrap_err();
    assert_eq!(short.detail(), "http1.body_too_short");
    encoder.data(&mut wire, b"hell").unwrap();
    let long = encoder.data(&mut wire, b"o!").unwrap_err();
    assert_eq!(long.detail(), "http1.body_too_long");
    assert_eq!(wire, b"hell");
    encoder.data(&mut wire, b"o").unwrap();
    encoder.end(&mut wire, None).unwrap();
    let none = BodyEncoder::new(Framing::None)
        .data(&mut wire, b"x")
        .unwrap_err();
    assert_eq!(none.detail(), "http1.body_too_long");
}

#[test]
fn writes_nothing_after_the_end() {
    for framing in [
        Framing::Chunked,
        Framing::Close,
        Framing::Length(0),
        Framing::None,
    ] {
        let mut encoder = BodyEncoder::new(framing);
        let mut wire = Vec::new();
        encoder.end(&mut wire, None).unwrap();
        let ended = wire.clone();
        encoder.end(&mut wire, None).unwrap();
        encoder.data(&mut wire, b"x").unwrap_err();
        assert_eq!(wire, ended, "{framing:?}");
    }
}

#[test]
fn trailers_travel_in_chunked_bodies_and_are_dropped_in_others() {
    let bytes = b"1\r\nx\r\n0\r\nX-Sum: 1\r\nHost: b\r\nX-More:\t2 \r\n\r\n";
    let mut decoder = BodyDecoder::new(Framing::Chunked, &Limits::default());
    let (first, _) = decoder.decode(bytes).unwrap();
    let (_, event) = decoder.decode(&bytes[first..]).unwrap();
    let BodyEvent::Trailers(trailers) = event else {
        panic!("{event:?}")
    };
    let mut wire = Vec::new();
    BodyEncoder::new(Framing::Chunked)
        .end(&mut wire, Some(&trailers))
        .unwrap();
    assert_eq!(wire, b"0\r\nX-Sum: 1\r\nX-More:\t2 \r\n\r\n");
    let mut fixed = Vec::new();
    BodyEncoder::new(Framing::Length(0))
        .end(&mut fixed, Some(&trailers))
        .unwrap();
    assert_eq!(fixed, b"");
}

#[test]
fn a_written_header_parses_back() {
    let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
    write_header(&mut bytes, b"Host", b"shop");
    write_header(&mut bytes, b"X-Empty", b"");
    bytes.extend_from_slice(b"\r\n");
    let head = feed::request(&bytes, &Limits::default(), &[])
        .unwrap()
        .unwrap();
    assert_eq!((head.headers.len(), head.method_kind), (2, Method::Get));
    assert_eq!(head.headers[1].value.of(&bytes), b"");
}
