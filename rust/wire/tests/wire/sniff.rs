//! What the first bytes of a connection say.

use meshfast_wire::frame::PREFACE;
use meshfast_wire::sniff::{Protocol, SNIFF_BYTES_MAX, sniff};

#[track_caller]
fn says(bytes: &[u8], protocol: Protocol) {
    assert_eq!(
        sniff(bytes),
        Some(protocol),
        "{:?}",
        String::from_utf8_lossy(bytes)
    );
    crate::invariants::sniff(bytes);
}

#[test]
fn knows_http_1_by_its_request_line() {
    for line in [
        "GET / HTTP/1.1\r\n",
        "POST /x HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1",
        "GET http://a/ HTTP/1.1",
        "GET HTTPS://a/ HTTP/1.1",
        "CONNECT db:5432 HTTP/1.1",
        "CONNECT [::1]:5432",
        "M-SEARCH * HTTP/1.1",
        "UPDATEREDIRECTREF /x",
        "PRI * HTTP/1.1\r\n\r\n",
        "G /",
    ] {
        says(line.as_bytes(), Protocol::Http1);
    }
}

#[test]
fn knows_http_2_by_its_whole_preface() {
    says(PREFACE, Protocol::Http2);
    says(&[PREFACE, &[0u8; 9][..]].concat(), Protocol::Http2);
    for len in 0..PREFACE.len() {
        assert_eq!(sniff(&PREFACE[..len]), None);
    }
}

#[test]
fn knows_tls_by_its_client_hello() {
    for minor in 0..=4 {
        says(&[0x16, 3, minor, 2, 0, 1, 0, 1], Protocol::Tls);
    }
    says(&[0x16, 3, 1, 2, 0, 2], Protocol::Opaque);
    says(&[0x16, 3, 5], Protocol::Opaque);
    says(&[0x16, 2], Protocol::Opaque);
    assert_eq!(sniff(&[0x16, 3, 1, 2, 0]), None);
}

#[test]
fn takes_everything_else_as_opaque() {
    let others: [&[u8]; 10] = [
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"*1\r\n$4\r\nPING\r\n",
        b"EHLO mail.example\r\n",
        b"USER anonymous\r\n",
        b"NICK http\r\n\x01",
        b"SSH-2.0-OpenSSH",
        b"get key\r\n",
        b"\r\n\r\nGET / HTTP/1.1",
        b"AAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        b"PING\r\n",
    ];
    for bytes in &others[..4] {
        says(bytes, Protocol::Opaque);
    }
    // A command whose argument starts like a scheme is the price of deciding on 24 bytes.
    says(others[4], Protocol::Http1);
    for bytes in &others[5..] {
        says(bytes, Protocol::Opaque);
    }
}

#[test]
fn waits_only_while_the_bytes_leave_it_open() {
    for bytes in [
        &b""[..],
        b"G",
        b"GET",
        b"GET ",
        b"GET h",
        b"PRI * HTT",
        b"\x16\x03",
    ] {
        assert_eq!(sniff(bytes), None, "{bytes:?}");
    }
    let longest = [b'A'; SNIFF_BYTES_MAX];
    says(&longest, Protocol::Opaque);
}
