//! Rows A1 to A24: where a request's body begins and ends.

use crate::feed::{self, Body, BodyEnd};
use meshfast_wire::Error;
use meshfast_wire::h1::{BodyDecoder, BodyEvent, Framing, Limits, RequestHead};

/// A POST with these header lines; `None` while it is incomplete.
fn post(lines: &str) -> Result<Option<RequestHead>, Error> {
    let bytes = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
    request(bytes.as_bytes())
}

fn request(bytes: &[u8]) -> Result<Option<RequestHead>, Error> {
    let limits = Limits::default();
    feed::same(bytes.len(), |cuts| feed::request(bytes, &limits, cuts))
}

#[track_caller]
fn refuses(lines: &[&str], status: u16, detail: &str) {
    for line in lines {
        let error = post(line).expect_err(line);
        assert_eq!(
            (error.status(), error.detail()),
            (status, detail),
            "{line:?}"
        );
    }
}

#[track_caller]
fn frames(lines: &str, framing: Framing) {
    assert_eq!(post(lines).unwrap().unwrap().framing, framing, "{lines:?}");
}

fn chunked(bytes: &[u8]) -> Body {
    let limits = Limits::default();
    feed::same(bytes.len(), |cuts| {
        feed::body(bytes, &limits, Framing::Chunked, cuts)
    })
}

#[track_caller]
fn refuses_chunks(inputs: &[&[u8]], status: u16, detail: &str) {
    for input in inputs {
        let shown = String::from_utf8_lossy(&input[..input.len().min(80)]).into_owned();
        let BodyEnd::Failed(error) = chunked(input).end else {
            panic!("{shown:?} was taken");
        };
        assert_eq!(
            (error.status(), error.detail()),
            (status, detail),
            "{shown:?}"
        );
    }
}

#[test]
fn takes_the_framings_there_are() {
    frames("X: y", Framing::None);
    frames("Content-Length: 0", Framing::Length(0));
    frames("content-length:  17 ", Framing::Length(17));
    frames(
        "Content-Length: 9999999999999999999",
        Framing::Length(9_999_999_999_999_999_999),
    );
    frames("TRANSFER-ENCODING: Chunked", Framing::Chunked);
}

#[test]
fn a1_refuses_content_length_with_transfer_encoding() {
    let detail = "http1.content_length_with_transfer_encoding";
    refuses(
        &[
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nX: y\r\nContent-Length: 0",
        ],
        400,
        detail,
    );
}

#[test]
fn a2_refuses_two_different_content_lengths() {
    let detail = "http1.content_length_duplicate";
    refuses(&["Content-Length: 5\r\nContent-Length: 6"], 400, detail);
}

#[test]
fn a3_refuses_a_repeated_content_length() {
    let detail = "http1.content_length_duplicate";
    refuses(
        &["Content-Length: 5\r\nX: y\r\ncontent-length: 5"],
        400,
        detail,
    );
    refuses(
        &["Content-Length: 5, 5"],
        400,
        "http1.content_length_invalid",
    );
}

#[test]
fn a4_refuses_a_content_length_that_is_no_plain_number() {
    let values = [
        "+5", "-0", "0x5", "5_0", "1 2", "5,6", "5.0", "five", "5;", "\"5\"", "\u{665}",
    ];
    let lines: Vec<_> = values
        .iter()
        .map(|value| format!("Content-Length: {value}"))
        .collect();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    refuses(&lines, 400, "http1.content_length_invalid");
}

#[test]
fn a5_refuses_an_empty_content_length() {
    let detail = "http1.content_length_empty";
    refuses(
        &[
            "Content-Length:",
            "Content-Length:   ",
            "Content-Length: \r\nContent-Length: 5",
        ],
        400,
        detail,
    );
}

#[test]
fn a6_refuses_leading_zeros_in_content_length() {
    refuses(
        &[
            "Content-Length: 0005",
            "Content-Length: 00",
            "Content-Length: 05",
        ],
        400,
        "http1.content_length_invalid",
    );
}

#[test]
fn a7_refuses_a_content_length_of_twenty_digits() {
    refuses(
        &[
            "Content-Length: 10000000000000000000",
            "Content-Length: 18446744073709551616",
            "Content-Length: 99999999999999999999999999999999999999999999",
        ],
        400,
        "http1.content_length_too_large",
    );
}

#[test]
fn a8_answers_501_to_other_transfer_codings() {
    let lines = [
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: x-gzip, deflate",
    ];
    refuses(&lines, 501, "http1.transfer_encoding_unsupported");
}

#[test]
fn a9_refuses_chunked_not_last_or_repeated() {
    let lines = [
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked, chunked",
        "Transfer-Encoding: chunked, identity",
    ];
    refuses(&lines, 400, "http1.transfer_encoding_invalid");
}

#[test]
fn a10_answers_501_to_gzip_before_chunked() {
    refuses(
        &["Transfer-Encoding: gzip, chunked"],
        501,
        "http1.transfer_encoding_unsupported",
    );
}

#[test]
fn a11_refuses_transfer_encoding_twice() {
    refuses(
        &[
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nX: y\r\ntransfer-encoding: identity",
        ],
        400,
        "http1.transfer_encoding_duplicate",
    );
}

#[test]
fn a12_refuses_a_malformed_transfer_encoding() {
    let lines = [
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunk",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked chunked",
        "Transfer-Encoding:",
    ];
    refuses(&lines, 400, "http1.transfer_encoding_invalid");
    // An apostrophe is a token byte: an unknown coding rather than a malformed one.
    let quote = "Transfer-Encoding: 'chunked'";
    refuses(&[quote], 501, "http1.transfer_encoding_unsupported");
}

#[test]
fn a13_refuses_white_space_and_its_look_alikes_around_framing_fields() {
    refuses(
        &[
            "Transfer-Encoding : chunked",
            "Content-Length : 5",
            "Transfer-Encoding\t: chunked",
        ],
        400,
        "http1.header_name",
    );
    refuses(
        &[
            "Transfer-Encoding:\tchunked",
            "Content-Length: 5\t",
            "Transfer-Encoding: chunked\t ",
        ],
        400,
        "http1.framing_field_space",
    );
    refuses(
        &[
            "Transfer-Encoding: \x0bchunked",
            "Content-Length: 5\x0c",
            "Content-Length: \x7f5",
        ],
        400,
        "http1.header_value",
    );
    for byte in [0xa0, 0x85, 0xff] {
        let mut before = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ".to_vec();
        before.push(byte);
        before.extend_from_slice(b"chunked\r\n\r\n");
        let error = request(&before).unwrap_err();
        assert_eq!(error.detail(), "http1.transfer_encoding_invalid");
        let mut name = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding".to_vec();
        name.push(byte);
        name.extend_from_slice(b": chunked\r\n\r\n");
        assert_eq!(request(&name).unwrap_err().detail(), "http1.header_name");
    }
}

#[test]
fn a14_refuses_transfer_encoding_in_http_1_0() {
    let error = request(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap_err();
    assert_eq!(
        (error.status(), error.detail()),
        (400, "http1.transfer_encoding_version")
    );
}

#[test]
fn decodes_chunks_with_extensions_and_trailers() {
    let whole = "5;a;b=c;d=\"e;\\\"\"\r\nhello\r\n00001\r\n!\r\n0;x\r\nX-Sum: 1\r\n\r\n";
    let body = chunked(format!("{whole}next").as_bytes());
    assert_eq!(body.payload, b"hello!");
    assert_eq!(body.trailers, [(b"X-Sum".to_vec(), b"1".to_vec())]);
    assert_eq!(body.end, BodyEnd::After(whole.len()));
    let bare = chunked(b"a\r\n0123456789\r\n0\r\n\r\n");
    assert_eq!((bare.payload.len(), bare.end), (10, BodyEnd::After(20)));
}

#[test]
fn a15_refuses_a_chunk_size_that_is_not_plain_hex() {
    refuses_chunks(
        &[
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n",
            b"-5\r\nhello\r\n",
            b"5_0\r\nhello",
            b" 5\r\nhello",
            b"5 \r\nhello",
            b"5 ;a\r\nhello",
            b"\t5\r\nhello",
            b"\r\n",
            b";a\r\n",
            b"g\r\n",
            b"\xef\xbc\x95\r\nhello",
        ],
        400,
        "http1.chunk_size",
    );
}

#[test]
fn a16_refuses_a_chunk_size_of_more_than_sixteen_digits() {
    let detail = "http1.chunk_size_too_long";
    refuses_chunks(
        &[b"00000000000000005\r\nhello", b"fffffffffffffffff\r\n"],
        400,
        detail,
    );
    let largest = chunked(b"ffffffffffffffff\r\nhello");
    assert_eq!(
        (largest.payload.as_slice(), largest.end),
        (&b"hello"[..], BodyEnd::NeedsMore)
    );
}

#[test]
fn a17_refuses_chunk_data_that_does_not_end_with_its_size() {
    refuses_chunks(
        &[
            b"5\r\nhello!\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhello\rx\n",
        ],
        400,
        "http1.chunk_data_end",
    );
}

#[test]
fn a18_refuses_bare_line_ends_in_chunk_lines() {
    refuses_chunks(
        &[
            b"5\nhello\r\n",
            b"5\rhello\r\n",
            b"5\r\rhello",
            b"0\rx",
            b"5;a\nhello",
            b"0\n\n",
            b"5;a\rx",
        ],
        400,
        "http1.chunk_line_end",
    );
    refuses_chunks(&[b"0\r\n\n", b"0\r\nX: y\n\r\n"], 400, "http1.bare_lf");
    refuses_chunks(
        &[b"0\r\n\r\r\n", b"0\r\nX: y\rz\r\n\r\n"],
        400,
        "http1.bare_cr",
    );
}

#[test]
fn a19_refuses_a_malformed_chunk_extension() {
    refuses_chunks(
        &[
            b"5;\r\nhello\r\n",
            b"5;;a\r\n",
            b"5;a;\r\n",
            b"5;a=\r\n",
            b"5;a=;b\r\n",
            b"5; a\r\n",
            b"5;a =b\r\n",
            b"5;a=\"b\r\n",
            b"5;a=\"b\\\r\n",
            b"5;a=\"b\"c\r\n",
            b"5;a=b\"c\"\r\n",
            b"5;a\0\r\n",
            b"5;a=\"\0\"\r\n",
            b"5;a=\"\n\"\r\n",
            b"5;a\x80\r\n",
        ],
        400,
        "http1.chunk_extension",
    );
}

#[test]
fn a20_refuses_chunk_extensions_over_the_budget_of_a_message() {
    let limits = Limits::default();
    let name = "a".repeat(limits.chunk_extension_bytes_max - 1);
    let fits = format!("1;{name}\r\nx\r\n0\r\n\r\n");
    assert_eq!(chunked(fits.as_bytes()).end, BodyEnd::After(fits.len()));
    let over = format!("1;{name}a\r\nx\r\n0\r\n\r\n");
    let spread = "1;a\r\nx\r\n".repeat(limits.chunk_extension_bytes_max / 2 + 1);
    let inputs: [&[u8]; 2] = [over.as_bytes(), spread.as_bytes()];
    refuses_chunks(&inputs, 400, "http1.chunk_extensions_too_long");
}

#[test]
fn a21_refuses_trailers_over_the_header_limits() {
    let limits = Limits::default();
    let many = format!("0\r\n{}\r\n", "X: y\r\n".repeat(limits.headers_max + 1));
    refuses_chunks(&[many.as_bytes()], 431, "http1.fields_too_many");
    let long = format!("0\r\nX: {}\r\n\r\n", "y".repeat(limits.field_bytes_max));
    refuses_chunks(&[long.as_bytes()], 431, "http1.field_too_large");
    let half = format!("X: {}\r\n", "y".repeat(limits.head_bytes_max / 2));
    refuses_chunks(
        &[format!("0\r\n{half}{half}\r\n").as_bytes()],
        431,
        "http1.fields_too_large",
    );
    let all = format!("0\r\n{}\r\n", "X: y\r\n".repeat(limits.headers_max));
    assert_eq!(chunked(all.as_bytes()).trailers.len(), limits.headers_max);
}

#[test]
fn a21_drops_trailers_that_must_not_come_after_a_body() {
    let dropped = "Content-Length: 5\r\nHost: b\r\nauthorization: x\r\n\
                   Transfer-Encoding: chunked\r\n\
                   Cookie: a\r\nSet-Cookie: b\r\nTrailer: X\r\nConnection: close\r\n\
                   content_length: 6\r\nx-forwarded-for: 1\r\nX-Meshfast-Port: 1\r\nTE: a\r\n\
                   Cache-Control: no-store\r\nDate: now\r\n";
    let bytes = format!("1\r\nx\r\n0\r\n{dropped}Grpc-Status: 0\r\nX-Sum: 1\r\n\r\n");
    let body = chunked(bytes.as_bytes());
    let names: Vec<_> = body
        .trailers
        .iter()
        .map(|(name, _)| name.as_slice())
        .collect();
    assert_eq!(names, [&b"Grpc-Status"[..], b"X-Sum"]);
    let only = format!("0\r\n{dropped}\r\n");
    assert_eq!(chunked(only.as_bytes()).trailers, []);
    assert_eq!(chunked(only.as_bytes()).end, BodyEnd::After(only.len()));
}

#[test]
fn a21_refuses_malformed_trailers_as_a_whole() {
    refuses_chunks(
        &[b"0\r\nX: y\r\nbad\r\n\r\n", b"0\r\nX : y\r\n\r\n"],
        400,
        "http1.header_name",
    );
    refuses_chunks(&[b"0\r\nX: \0\r\n\r\n"], 400, "http1.header_value");
    refuses_chunks(&[b"0\r\nX: y\r\n z\r\n\r\n"], 400, "http1.header_fold");
    refuses_chunks(
        &[b"0\r\n X: y\r\n\r\n"],
        400,
        "http1.header_space_before_first",
    );
}

#[test]
fn a22_a_body_cut_short_never_ends() {
    let whole = b"5\r\nhello\r\n3;a\r\nabc\r\n0\r\nX: y\r\n\r\n";
    let cases = [
        (&whole[..], Framing::Chunked),
        (&b"hello"[..], Framing::Length(5)),
    ];
    for (bytes, framing) in cases {
        for cut in 0..bytes.len() {
            let mut decoder = BodyDecoder::new(framing, &Limits::default());
            let mut rest = &bytes[..cut];
            loop {
                let (consumed, event) = decoder.decode(rest).unwrap();
                rest = &rest[consumed..];
                assert_ne!(event, BodyEvent::End);
                if event == BodyEvent::NeedMore {
                    break;
                }
            }
            assert!(!decoder.is_ended());
            let error = decoder.finish().unwrap_err();
            assert_eq!(error.detail(), "http1.body_incomplete");
        }
    }
}

#[test]
fn only_the_end_of_the_connection_ends_a_relay() {
    let mut relay = BodyDecoder::raw();
    assert_eq!(
        relay.decode(b"GET / HTTP").unwrap(),
        (10, BodyEvent::Data(b"GET / HTTP"))
    );
    assert_eq!(relay.decode(b"").unwrap(), (0, BodyEvent::NeedMore));
    assert!(!relay.is_ended());
    relay.finish().unwrap();
    assert!(relay.is_ended());
    assert_eq!(relay.decode(b"late").unwrap(), (0, BodyEvent::End));
}

#[test]
fn a23_frames_a_get_with_a_body_and_the_request_behind_it() {
    let second = b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n";
    let bodies: [(&str, &[u8]); 2] = [
        ("Content-Length: 5", b"GET /"),
        ("Transfer-Encoding: chunked", b"1\r\nG\r\n0\r\n\r\n"),
    ];
    for (line, body) in bodies {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
        let bytes = [head.as_bytes(), body, second].concat();
        let first = request(&bytes).unwrap().unwrap();
        assert_eq!(first.len, head.len());
        let rest = &bytes[first.len..];
        let limits = Limits::default();
        let decoded = feed::same(rest.len(), |cuts| {
            feed::body(rest, &limits, first.framing, cuts)
        });
        assert_eq!(decoded.end, BodyEnd::After(body.len()));
        let next = request(&rest[body.len()..]).unwrap().unwrap();
        assert_eq!(next.path_bytes(&rest[body.len()..]), b"/second");
    }
}

#[test]
fn a24_a_closing_request_ends_where_its_garbage_begins() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let bytes = [&head[..], b"\0\n\ngarbage"].concat();
    let parsed = request(&bytes).unwrap().unwrap();
    assert_eq!((parsed.len, parsed.keep_alive), (head.len(), false));
    assert_eq!(parsed.framing, Framing::None);
}
