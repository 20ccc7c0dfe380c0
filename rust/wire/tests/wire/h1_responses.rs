//! Rows A25 to A27 and the framing of responses. Every error here becomes a 502.

use crate::feed;
use meshfast_wire::Error;
use meshfast_wire::h1::{Framing, Limits, Method, Name, ResponseHead, Version};

fn parse(bytes: &[u8], method: Method) -> Result<Option<ResponseHead>, Error> {
    let limits = Limits::default();
    feed::same(bytes.len(), |cuts| {
        feed::response(bytes, &limits, method, cuts)
    })
}

#[track_caller]
fn takes(text: &str, method: Method) -> ResponseHead {
    parse(text.as_bytes(), method).expect(text).expect(text)
}

#[track_caller]
fn refuses(texts: &[&str], detail: &str) {
    for text in texts {
        let error = parse(text.as_bytes(), Method::Get).expect_err(text);
        assert_eq!(error.detail(), detail, "{text:?}");
    }
}

#[test]
fn reads_a_status_line_with_or_without_its_reason() {
    let text = "HTTP/1.1 404 Not  here\r\nServer: x\r\nContent-Length: 0\r\n\r\n";
    let head = takes(text, Method::Get);
    assert_eq!((head.status, head.version), (404, Version::Http11));
    assert_eq!(head.reason.of(text.as_bytes()), b"Not  here");
    assert_eq!(head.len, text.len());
    assert_eq!(
        head.header(text.as_bytes(), Name::ContentLength),
        Some(&b"0"[..])
    );
    for text in [
        "HTTP/1.0 200 \r\n\r\n",
        "HTTP/1.1 200\r\n\r\n",
        "HTTP/1.1 999 a\u{e9}\tb\r\n\r\n",
    ] {
        takes(text, Method::Get);
    }
}

#[test]
fn refuses_malformed_status_lines() {
    refuses(
        &[
            "HTTP/1.1\r\n\r\n",
            "HTTP/1.1x200 OK\r\n\r\n",
            "HTTP/1.1 200OK\r\n\r\n",
            "HTTP/1.1 2000\r\n\r\n",
            "HTTP/1.1 200 O\0K\r\n\r\n",
            "HTTP/1.1 200 O\x7f\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "ICY\r\n\r\n",
        ],
        "http1.status_line",
    );
    refuses(
        &[
            "HTTP/1.1 099 x\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 2x0 OK\r\n\r\n",
            "HTTP/1.1 20\r\n\r\n",
            "HTTP/1.1 +20 OK\r\n\r\n",
            "HTTP/1.1 -1 OK\r\n\r\n",
        ],
        "http1.status_invalid",
    );
    refuses(&["HTTP/2.0 200 OK\r\n\r\n"], "http1.version_unsupported");
    refuses(
        &["http/1.1 200 OK\r\n\r\n", "ICY 200 OKAY\r\n\r\n"],
        "http1.version_invalid",
    );
    refuses(&["HTTP/1.1 200 OK\n"], "http1.bare_lf");
    let endless = format!(
        "HTTP/1.1 200 {}",
        "a".repeat(Limits::default().field_bytes_max)
    );
    refuses(&[&endless], "http1.status_line");
}

#[test]
fn reused_heads_carry_nothing_over() {
    let limits = Limits::default();
    let rich =
        b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: x\r\nKeep-Alive: timeout=5\r\n\r\n";
    let plain = b"HTTP/1.0 200 OK\r\n\r\n";
    let mut reused = ResponseHead::new();
    reused.parse(rich, &limits, Method::Get).unwrap();
    reused.parse(plain, &limits, Method::Get).unwrap();
    let fresh = feed::response(plain, &limits, Method::Get, &[])
        .unwrap()
        .unwrap();
    assert_eq!(format!("{reused:?}"), format!("{fresh:?}"));
}

#[test]
fn a25_refuses_ambiguous_or_bad_framing() {
    let cases = [
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "http1.content_length_with_transfer_encoding",
        ),
        (
            "Content-Length: 5\r\nContent-Length: 5",
            "http1.content_length_duplicate",
        ),
        ("Content-Length: -5", "http1.content_length_invalid"),
        ("Content-Length:", "http1.content_length_empty"),
        (
            "Content-Length: 20000000000000000000",
            "http1.content_length_too_large",
        ),
        (
            "Transfer-Encoding: gzip",
            "http1.transfer_encoding_unsupported",
        ),
        (
            "Transfer-Encoding: chunked, chunked",
            "http1.transfer_encoding_invalid",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "http1.transfer_encoding_duplicate",
        ),
    ];
    for (lines, detail) in cases {
        for status in [200, 204, 304] {
            refuses(
                &[&format!("HTTP/1.1 {status} X\r\n{lines}\r\n\r\n")],
                detail,
            );
        }
    }
    refuses(
        &["HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
        "http1.transfer_encoding_version",
    );
}

#[test]
fn frames_by_method_and_status() {
    const CHUNKED: &str = "Transfer-Encoding: chunked";
    let table = [
        (
            Method::Get,
            200,
            "Content-Length: 7",
            Framing::Length(7),
            true,
        ),
        (Method::Get, 200, CHUNKED, Framing::Chunked, true),
        (Method::Get, 200, "X: y", Framing::Close, false),
        (
            Method::Get,
            200,
            "Connection: close\r\nContent-Length: 7",
            Framing::Length(7),
            false,
        ),
        (
            Method::Post,
            500,
            "Content-Length: 0",
            Framing::Length(0),
            true,
        ),
        (Method::Head, 200, "Content-Length: 7", Framing::None, true),
        (Method::Head, 200, CHUNKED, Framing::None, true),
        (Method::Head, 200, "X: y", Framing::None, true),
        (Method::Get, 304, "Content-Length: 7", Framing::None, true),
        (Method::Get, 204, "X: y", Framing::None, true),
        (Method::Get, 204, "Content-Length: 0", Framing::None, true),
        (Method::Get, 204, "Content-Length: 7", Framing::None, false),
        (Method::Get, 204, CHUNKED, Framing::None, false),
        (Method::Get, 100, "X: y", Framing::None, true),
        (Method::Get, 103, "Link: a", Framing::None, true),
        (Method::Connect, 200, "X: y", Framing::None, true),
        (
            Method::Connect,
            200,
            "Content-Length: 7",
            Framing::None,
            true,
        ),
        (Method::Connect, 200, CHUNKED, Framing::None, true),
        (
            Method::Connect,
            407,
            "Content-Length: 7",
            Framing::Length(7),
            true,
        ),
    ];
    for (method, status, lines, framing, keep_alive) in table {
        let head = takes(&format!("HTTP/1.1 {status} X\r\n{lines}\r\n\r\n"), method);
        let seen = (head.framing, head.keep_alive);
        assert_eq!(seen, (framing, keep_alive), "{method:?} {status} {lines}");
    }
}

#[test]
fn withdraws_lengths_that_mean_nothing() {
    let cases = [
        (Method::Get, 204, true),
        (Method::Connect, 200, true),
        (Method::Head, 200, false),
    ];
    for (method, status, withdrawn) in cases {
        let head = takes(
            &format!("HTTP/1.1 {status} X\r\nContent-Length: 7\r\n\r\n"),
            method,
        );
        assert_eq!(head.headers[0].hop_by_hop, withdrawn, "{method:?} {status}");
    }
}

#[test]
fn a26_ends_where_the_message_ends() {
    let head = "HTTP/1.1 204 No\r\n\r\n";
    let unasked = format!("{head}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(takes(&unasked, Method::Get).len, head.len());
    let limits = Limits::default();
    let body = feed::body(b"helloEXTRA", &limits, Framing::Length(5), &[]);
    assert_eq!(
        (body.payload.as_slice(), body.end),
        (&b"hello"[..], feed::BodyEnd::After(5))
    );
    let none = feed::body(b"EXTRA", &limits, Framing::None, &[]);
    assert_eq!(
        (none.payload.as_slice(), none.end),
        (&b""[..], feed::BodyEnd::After(0))
    );
}

#[test]
fn a27_tells_interim_answers_and_refuses_those_with_a_body() {
    for (status, interim) in [
        (100, true),
        (102, true),
        (103, true),
        (199, true),
        (200, false),
    ] {
        let head = takes(&format!("HTTP/1.1 {status} X\r\n\r\n"), Method::Get);
        assert_eq!(head.is_interim(), interim);
    }
    refuses(
        &[
            "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 103 Hints\r\nTransfer-Encoding: chunked\r\n\r\n",
        ],
        "http1.interim_with_body",
    );
}

#[test]
fn a27_refuses_101_without_its_upgrade() {
    let text = "HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x01\x05";
    let head = takes(text, Method::Get);
    assert_eq!(head.upgrade.unwrap().of(text.as_bytes()), b"websocket");
    assert_eq!((head.framing, head.is_interim()), (Framing::None, false));
    refuses(
        &[
            "HTTP/1.1 101 S\r\n\r\n",
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.1 101 S\r\nConnection: upgrade\r\n\r\n",
            "HTTP/1.0 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        ],
        "http1.switching_without_upgrade",
    );
}

#[test]
fn learns_how_long_an_idle_connection_lives() {
    let table = [
        ("Keep-Alive: timeout=5, max=100", Some(5)),
        ("Keep-Alive: max=1,TIMEOUT=60", Some(60)),
        ("Keep-Alive: timeout=", None),
        ("Keep-Alive: timeout=x", None),
        ("Keep-Alive: timeout=99999999999", None),
        ("X: y", None),
    ];
    for (line, seconds) in table {
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{line}\r\n\r\n");
        assert_eq!(
            takes(&text, Method::Get).keep_alive_timeout_s,
            seconds,
            "{line}"
        );
    }
}

#[test]
fn http_1_0_answers_close_unless_kept_alive() {
    let length = "Content-Length: 0\r\n";
    assert!(!takes(&format!("HTTP/1.0 200 OK\r\n{length}\r\n"), Method::Get).keep_alive);
    let kept = format!("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n{length}\r\n");
    assert!(takes(&kept, Method::Get).keep_alive);
    let unframed = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n";
    assert!(!takes(unframed, Method::Get).keep_alive);
}

#[test]
fn underscores_of_an_upstream_are_its_own() {
    let head = takes(
        "HTTP/1.1 200 OK\r\nx_request_id: 1\r\nmy_x: 2\r\n\r\n",
        Method::Get,
    );
    assert!(head.headers.iter().all(|header| !header.hop_by_hop));
}
