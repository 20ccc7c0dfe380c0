//! Rows B1 to B20: request line, target, Host, header lines, limits, hop-by-hop options.

use crate::feed;
use meshfast_wire::Error;
use meshfast_wire::h1::{
    Framing, Limits, Method, Name, RequestHead, Span, TargetForm, Underscores, Version,
};

fn parse(bytes: &[u8], limits: &Limits) -> Result<Option<RequestHead>, Error> {
    feed::same(bytes.len(), |cuts| feed::request(bytes, limits, cuts))
}

#[track_caller]
fn takes(bytes: &[u8]) -> RequestHead {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    parse(bytes, &Limits::default())
        .expect(&shown)
        .expect(&shown)
}

#[track_caller]
fn refuses_bytes(bytes: &[u8], status: u16, detail: &str) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let error = parse(bytes, &Limits::default()).expect_err(&shown);
    assert_eq!(
        (error.status(), error.detail()),
        (status, detail),
        "{shown:?}"
    );
}

/// Each line as the whole header section (without Host) of a GET.
#[track_caller]
fn refuses_lines(lines: &[&str], status: u16, detail: &str) {
    for line in lines {
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
        refuses_bytes(bytes.as_bytes(), status, detail);
    }
}

/// Each request line with a Host.
#[track_caller]
fn refuses_request_lines(lines: &[&str], status: u16, detail: &str) {
    for line in lines {
        refuses_bytes(
            format!("{line}\r\nHost: a\r\n\r\n").as_bytes(),
            status,
            detail,
        );
    }
}

fn get(lines: &str) -> (Vec<u8>, RequestHead) {
    let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n").into_bytes();
    let head = takes(&bytes);
    (bytes, head)
}

#[test]
fn gives_spans_of_what_was_received() {
    let bytes =
        b"\r\nPOST /a/b?c=d HTTP/1.1\r\nHoSt: shop:80\r\nX-Empty:\r\nX-Pad: \t v w \t\r\n\r\nbody";
    let head = takes(bytes);
    assert_eq!(&bytes[head.len..], b"body");
    assert_eq!(
        (head.method.of(bytes), head.method_kind),
        (&b"POST"[..], Method::Post)
    );
    assert_eq!(head.target.of(bytes), b"/a/b?c=d");
    assert_eq!(
        (head.form, head.path_bytes(bytes)),
        (TargetForm::Origin, &b"/a/b?c=d"[..])
    );
    assert_eq!(
        (head.authority.of(bytes), head.scheme.of(bytes)),
        (&b"shop:80"[..], &b""[..])
    );
    assert_eq!(
        (head.version, head.framing, head.keep_alive),
        (Version::Http11, Framing::None, true)
    );
    let text = |span: Span| String::from_utf8_lossy(span.of(bytes)).into_owned();
    let seen: Vec<_> = head
        .headers
        .iter()
        .map(|h| (h.kind, [h.line, h.name, h.value].map(text)))
        .collect();
    let expected = [
        (Name::Host, ["HoSt: shop:80", "HoSt", "shop:80"]),
        (Name::Other, ["X-Empty:", "X-Empty", ""]),
        (Name::Other, ["X-Pad: \t v w \t", "X-Pad", "v w"]),
    ];
    let expected = expected.map(|(kind, texts)| (kind, texts.map(String::from)));
    assert_eq!(seen, expected);
    assert_eq!(head.header(bytes, Name::Host), Some(&b"shop:80"[..]));
    assert_eq!(head.header(bytes, Name::UserAgent), None);
}

#[test]
fn a_reused_head_carries_nothing_over() {
    let limits = Limits::default();
    let rich =
        b"POST http://b/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\
                 Expect: 100-continue\r\nConnection: close, upgrade\r\nUpgrade: x\r\n\r\n";
    let plain = b"GET / HTTP/1.0\r\n\r\n";
    let mut reused = RequestHead::new();
    reused.parse(rich, &limits).unwrap();
    reused.parse(plain, &limits).unwrap();
    let fresh = feed::request(plain, &limits, &[]).unwrap().unwrap();
    assert_eq!(format!("{reused:?}"), format!("{fresh:?}"));
    reused.parse(b"bad\r\n", &limits).unwrap_err();
    reused.reset();
    assert_eq!(format!("{reused:?}"), format!("{:?}", RequestHead::new()));
}

#[test]
fn a_reused_head_keeps_its_memory() {
    let limits = Limits::default();
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\n\r\n";
    let mut head = RequestHead::new();
    head.parse(bytes, &limits).unwrap();
    let (memory, capacity) = (head.headers.as_ptr(), head.headers.capacity());
    for _ in 0..3 {
        head.reset();
        head.parse(bytes, &limits).unwrap();
        assert_eq!(
            (head.headers.as_ptr(), head.headers.capacity()),
            (memory, capacity)
        );
    }
}

#[test]
fn b1_refuses_a_missing_double_or_empty_host() {
    refuses_bytes(b"GET / HTTP/1.1\r\nX: y\r\n\r\n", 400, "http1.host_missing");
    refuses_bytes(b"GET / HTTP/1.1\r\n\r\n", 400, "http1.host_missing");
    refuses_bytes(b"CONNECT a:1 HTTP/1.1\r\n\r\n", 400, "http1.host_missing");
    refuses_lines(&["Host: a", "host: b"], 400, "http1.host_duplicate");
    refuses_bytes(
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
        400,
        "http1.host_duplicate",
    );
    refuses_bytes(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "http1.host_empty");
    refuses_bytes(
        b"GET http://a/ HTTP/1.1\r\nHost: \t\r\n\r\n",
        400,
        "http1.host_empty",
    );
    let old = takes(b"GET / HTTP/1.0\r\n\r\n");
    assert!(old.authority.is_empty());
}

#[test]
fn b2_refuses_a_host_that_is_no_host() {
    let hosts = [
        "user@h", "h/path", "h, h2", "h,h2", "h h2", "h?q", "h#f", "h:", "h:0", "h:65536", "h:8a",
        "h:000080", ":80", "h:80:80", "[::1", "[::1]x", "[]", "[::g]", "[v1.a]", "::1", "a%62",
        "h\\x", "\"h\"", "h\u{e9}", "h;x", "h*",
    ];
    for host in hosts {
        let bytes = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        refuses_bytes(bytes.as_bytes(), 400, "http1.host_invalid");
    }
    refuses_bytes(
        b"GET / HTTP/1.1\r\nHost: h\0\r\n\r\n",
        400,
        "http1.header_value",
    );
    for host in [
        "h",
        "h:80",
        "h.",
        "_x.y-z~",
        "10.0.0.1:65535",
        "[::1]",
        "[fe80::1]:8080",
        "H",
    ] {
        let bytes = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(
            takes(bytes.as_bytes()).authority.of(bytes.as_bytes()),
            host.as_bytes()
        );
    }
}

#[test]
fn b3_the_target_wins_over_host() {
    let bytes = b"GET http://shop.example:8080/x?y HTTP/1.1\r\nHost: other\r\n\r\n";
    let head = takes(bytes);
    assert_eq!(head.form, TargetForm::Absolute);
    assert_eq!(head.scheme.of(bytes), b"http");
    assert_eq!(head.authority.of(bytes), b"shop.example:8080");
    assert_eq!(head.path_bytes(bytes), b"/x?y");
    assert!(head.host_mismatch);
    let same = takes(b"GET HTTP://Shop/ HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert!(!same.host_mismatch);
    let tunnel = takes(b"CONNECT db:5432 HTTP/1.1\r\nHost: other:5432\r\n\r\n");
    assert!(tunnel.host_mismatch);
}

#[test]
fn absolute_targets_without_a_path_get_the_one_they_mean() {
    let get = b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(takes(get).path_bytes(get), b"/");
    let options = b"OPTIONS https://a HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(takes(options).path_bytes(options), b"*");
    let asterisk = b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(takes(asterisk).form, TargetForm::Asterisk);
    assert_eq!(takes(asterisk).path_bytes(asterisk), b"*");
}

#[test]
fn b4_refuses_header_lines_without_a_proper_name() {
    refuses_lines(
        &[
            "X : y",
            "X\t: y",
            "no colon",
            "nocolon",
            ": y",
            "X\u{80}: y",
            "X(: y",
            "\"X\": y",
        ],
        400,
        "http1.header_name",
    );
    refuses_bytes(
        b"GET / HTTP/1.1\r\nHost: a\r\nX\x80: y\r\n\r\n",
        400,
        "http1.header_name",
    );
    refuses_bytes(
        b"GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n",
        400,
        "http1.header_name",
    );
}

#[test]
fn b5_refuses_control_bytes_in_values() {
    refuses_lines(
        &["X: a\0b", "X: a\x01b", "X: \x7f", "X: a\x0bb", "X: \x1b[0m"],
        400,
        "http1.header_value",
    );
    refuses_lines(&["X: a\rb", "X: \r", "X\r: a"], 400, "http1.bare_cr");
    refuses_lines(&["X: a\nb", "X: \n"], 400, "http1.bare_lf");
    let (bytes, head) = get("X: caf\u{e9} \ttab");
    assert_eq!(
        head.headers[1].value.of(&bytes),
        "caf\u{e9} \ttab".as_bytes()
    );
}

#[test]
fn b6_refuses_line_folding() {
    refuses_lines(
        &["X: a\r\n b", "X: a\r\n\tb", "X: a\r\n \r\nY: z"],
        400,
        "http1.header_fold",
    );
}

#[test]
fn b7_refuses_white_space_before_the_first_header() {
    for space in [" ", "\t", "  \t"] {
        let bytes = format!("GET / HTTP/1.1\r\n{space}Host: a\r\n\r\n");
        refuses_bytes(bytes.as_bytes(), 400, "http1.header_space_before_first");
    }
}

#[test]
fn b8_refuses_bare_line_ends_without_waiting_for_more() {
    let limits = Limits::default();
    for bytes in [
        &b"GET / HTTP/1.1\n"[..],
        b"\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"\r\n\n",
    ] {
        assert_eq!(parse(bytes, &limits).unwrap_err().detail(), "http1.bare_lf");
    }
    for bytes in [
        &b"GET / HTTP/1.1\rH"[..],
        b"\r\r",
        b"GET / HTTP/1.1\r\nHost: a\r\r\n",
    ] {
        assert_eq!(parse(bytes, &limits).unwrap_err().detail(), "http1.bare_cr");
    }
}

#[test]
fn b9_refuses_other_versions() {
    refuses_request_lines(
        &[
            "GET / HTTP/1.32",
            "GET / HTTP/01.1",
            "GET / http/1.1",
            "GET / HTTP/1.1 ",
            "GET /  HTTP/1.1",
            "GET /",
            "GET / ",
            "GET / HTTP/1",
            "GET / HTTPS/1.1",
            "GET / ICY/1.1",
            "GET /a b HTTP/1.1",
            "GET / HTTP/1.1\t",
        ],
        400,
        "http1.version_invalid",
    );
    refuses_request_lines(
        &[
            "GET / HTTP/2.0",
            "GET / HTTP/1.2",
            "GET / HTTP/0.9",
            "PRI * HTTP/3.0",
        ],
        505,
        "http1.version_unsupported",
    );
    // HTTP/0.9 sends nothing after its line, so the answer must not wait for a head's end.
    let error = parse(b"GET /\r\n", &Limits::default()).unwrap_err();
    assert_eq!(error.detail(), "http1.version_invalid");
}

#[test]
fn b10_refuses_methods_that_are_none() {
    refuses_request_lines(
        &[
            "GET? / HTTP/1.1",
            "G(T / HTTP/1.1",
            "GET\t/ HTTP/1.1 x",
            " GET / HTTP/1.1",
            "\0 / HTTP/1.1",
        ],
        400,
        "http1.method_invalid",
    );
    refuses_request_lines(
        &["get / HTTP/1.1", "Get / HTTP/1.1"],
        501,
        "http1.method_lower_case",
    );
    refuses_request_lines(&["GET", "GET/HTTP/1.1"], 400, "http1.request_line");
    let limits = Limits::default();
    let junk = vec![b'A'; 1 << 20];
    let error = parse(&junk, &limits).unwrap_err();
    assert_eq!(
        (error.status(), error.detail()),
        (501, "http1.method_too_long")
    );
    let longest = "A".repeat(limits.method_bytes_max);
    let head = takes(format!("{longest} / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    assert_eq!(head.method_kind, Method::Other);
    let line = format!("{longest}A / HTTP/1.1");
    refuses_request_lines(&[&line], 501, "http1.method_too_long");
}

#[test]
fn tells_methods_apart() {
    let table = [
        ("CONNECT", Method::Connect, false, false),
        ("DELETE", Method::Delete, false, true),
        ("GET", Method::Get, true, true),
        ("HEAD", Method::Head, true, true),
        ("OPTIONS", Method::Options, true, true),
        ("PATCH", Method::Patch, false, false),
        ("POST", Method::Post, false, false),
        ("PROPFIND", Method::Other, false, false),
        ("PUT", Method::Put, false, true),
        ("TRACE", Method::Trace, true, true),
    ];
    for (name, method, safe, idempotent) in table {
        assert_eq!(Method::of(name.as_bytes()), method);
        assert_eq!(
            (method.is_safe(), method.is_idempotent()),
            (safe, idempotent),
            "{name}"
        );
    }
}

#[test]
fn b11_refuses_target_forms_the_method_does_not_have() {
    refuses_request_lines(
        &[
            "GET * HTTP/1.1",
            "OPTIONS */x HTTP/1.1",
            "GET admin HTTP/1.1",
            "GET a:80 HTTP/1.1",
            "GET http:/a HTTP/1.1",
            "GET mailto:a HTTP/1.1",
            "GET ?q HTTP/1.1",
            "OPTIONS ** HTTP/1.1",
        ],
        400,
        "http1.target_form",
    );
    refuses_request_lines(
        &[
            "GET ftp://a/ HTTP/1.1",
            "GET ://a/ HTTP/1.1",
            "GET ws://a/ HTTP/1.1",
        ],
        400,
        "http1.target_scheme",
    );
    refuses_request_lines(
        &[
            "CONNECT a HTTP/1.1",
            "CONNECT a: HTTP/1.1",
            "CONNECT a:0 HTTP/1.1",
            "CONNECT / HTTP/1.1",
            "CONNECT http://a:1/ HTTP/1.1",
            "CONNECT a:1/x HTTP/1.1",
            "CONNECT u@a:1 HTTP/1.1",
            "CONNECT :1 HTTP/1.1",
            "CONNECT [::1] HTTP/1.1",
            "CONNECT * HTTP/1.1",
            "GET http:///x HTTP/1.1",
            "GET http://u@a/ HTTP/1.1",
            "GET http://a:x/ HTTP/1.1",
            "GET http://a?q HTTP/1.1",
            "GET http://[::1/ HTTP/1.1",
        ],
        400,
        "http1.target_authority",
    );
}

#[test]
fn b12_tells_a_tunnel_by_its_method_and_form() {
    for (host, line) in [("db:5432", ""), ("[::1]:443", "Content-Length: 0\r\n")] {
        let bytes = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{line}\r\n");
        let head = takes(bytes.as_bytes());
        assert_eq!(
            (head.method_kind, head.form),
            (Method::Connect, TargetForm::Authority)
        );
        assert_eq!(head.authority.of(bytes.as_bytes()), host.as_bytes());
        assert_eq!(head.path_bytes(bytes.as_bytes()), b"");
        assert_eq!(head.framing, Framing::None);
    }
    for line in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let bytes = format!("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n{line}\r\n\r\n");
        refuses_bytes(bytes.as_bytes(), 400, "http1.connect_with_body");
    }
}

#[test]
fn b13_refuses_a_fragment() {
    refuses_request_lines(
        &[
            "GET /#x HTTP/1.1",
            "GET /a?b#c HTTP/1.1",
            "GET http://a/# HTTP/1.1",
        ],
        400,
        "http1.target_fragment",
    );
}

#[test]
fn b14_refuses_bytes_that_are_no_visible_ascii_and_decodes_nothing() {
    for target in [
        &b"/\x80"[..],
        b"/\0",
        b"/a\tb",
        b"/\xc0\xae",
        b"/\x7f",
        "/\u{e9}".as_bytes(),
        b"",
    ] {
        let bytes = [b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        refuses_bytes(&bytes, 400, "http1.target_character");
    }
    let bytes = b"GET /%c0%ae/%2e%2E/..//x;y='\"|<>{}^`\\ HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(
        takes(bytes).path_bytes(bytes),
        b"/%c0%ae/%2e%2E/..//x;y='\"|<>{}^`\\"
    );
}

#[test]
fn b15_answers_414_to_a_target_over_its_limit() {
    let max = Limits::default().target_bytes_max;
    let fits = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(max - 1));
    assert_eq!(takes(fits.as_bytes()).target.len(), max);
    let over = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(max));
    refuses_bytes(over.as_bytes(), 414, "http1.target_too_long");
    let endless = format!("GET /{}", "a".repeat(2 * max));
    refuses_bytes(endless.as_bytes(), 414, "http1.target_too_long");
}

#[test]
fn b16_answers_431_to_header_sections_over_their_limits() {
    let limits = Limits::default();
    let most = "X: y\r\n".repeat(limits.headers_max - 1);
    let head = takes(format!("GET / HTTP/1.1\r\nHost: a\r\n{most}\r\n").as_bytes());
    assert_eq!(head.headers.len(), limits.headers_max);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{most}Z");
    refuses_bytes(many.as_bytes(), 431, "http1.fields_too_many");

    let longest = format!("X: {}", "y".repeat(limits.field_bytes_max - 3));
    get(&longest);
    refuses_lines(&[&format!("{longest}y")], 431, "http1.field_too_large");

    let host = "Host: a\r\n";
    let first = format!("X: {}\r\n", "y".repeat(limits.field_bytes_max - 3));
    let left = limits.head_bytes_max - host.len() - first.len();
    let last = format!("X: {}\r\n", "y".repeat(left - "X: \r\n".len()));
    takes(format!("GET / HTTP/1.1\r\n{host}{first}{last}\r\n").as_bytes());
    let over = format!("GET / HTTP/1.1\r\n{host}{first}X{last}\r\n");
    refuses_bytes(over.as_bytes(), 431, "http1.fields_too_large");
}

#[test]
fn limits_bound_what_a_caller_buffers() {
    let limits = Limits {
        headers_max: 1_000,
        ..Limits::default()
    };
    let line = format!(
        "GET /{} HTTP/1.1\r\n",
        "a".repeat(limits.target_bytes_max - 1)
    );
    let filler = format!("X: {}\r\n", "y".repeat(limits.head_bytes_max / 2 - 5));
    let bytes = format!("\r\n\r\n{line}{filler}{filler}\r\n");
    assert!(bytes.len() <= limits.buffer_bytes_max());
    assert_eq!(
        parse(bytes.as_bytes(), &limits).unwrap_err().detail(),
        "http1.host_missing"
    );
    // The fixed array has room for 256 lines, whatever is configured.
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(255));
    assert!(
        parse(format!("{many}\r\n").as_bytes(), &limits)
            .unwrap()
            .is_some()
    );
    let error = parse(format!("{many}X: y\r\n\r\n").as_bytes(), &limits).unwrap_err();
    assert_eq!(error.detail(), "http1.fields_too_many");
}

#[test]
fn takes_every_number_of_header_lines_up_to_the_limit() {
    let limits = Limits::default();
    for count in 1..=limits.headers_max {
        let lines = "X: y\r\n".repeat(count - 1);
        let bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        let head = feed::request(bytes.as_bytes(), &limits, &[])
            .unwrap()
            .unwrap();
        assert_eq!(head.headers.len(), count);
    }
}

#[test]
fn tolerates_a_few_empty_lines_before_a_request() {
    takes(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let three = b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    refuses_bytes(three, 400, "http1.empty_lines_too_many");
}

#[test]
fn b17_refuses_underscore_look_alikes_of_names_that_matter() {
    refuses_lines(
        &[
            "content_length: 5",
            "Transfer_Encoding: chunked",
            "X_Request_Id: 1",
            "x-request_id: 1",
            "x_forwarded_client_cert: By=x",
            "x-forwarded-client_cert: By=x",
            "x-meshfast-source_: a",
            "X_Forwarded_For: 1",
            "x_meshfast_source: a",
            "x_envoy_peer: a",
            "authorization_: a\r\nx_real_ip: 1",
            "x_b3_traceid: 1",
            "ho_st: a\r\nkeep_alive: 1",
        ],
        400,
        "http1.header_name_underscore",
    );
    let (_, head) = get("my_header: 1\r\n_: 2\r\ncontent_: 3");
    assert!(head.headers.iter().all(|header| !header.hop_by_hop));
}

#[test]
fn b17_drops_or_refuses_all_underscores_when_told_to() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nmy_header: 1\r\nx: 2\r\n\r\n";
    let reject = Limits {
        underscores: Underscores::RejectAll,
        ..Limits::default()
    };
    let error = parse(bytes, &reject).unwrap_err();
    assert_eq!(
        (error.status(), error.detail()),
        (400, "http1.header_name_underscore")
    );
    let drop = Limits {
        underscores: Underscores::Drop,
        ..Limits::default()
    };
    let head = parse(bytes, &drop).unwrap().unwrap();
    let dropped: Vec<_> = head
        .headers
        .iter()
        .map(|header| header.hop_by_hop)
        .collect();
    assert_eq!(dropped, [false, true, false]);
}

#[test]
fn b18_knows_one_expectation() {
    refuses_lines(
        &[
            "Expect: x",
            "Expect:",
            "Expect: 100-continue, x",
            "Expect: 100-continue\r\nExpect: y",
        ],
        417,
        "http1.expectation",
    );
    let (_, head) = get("Expect: 100-Continue\r\nContent-Length: 5");
    assert!(head.expect_continue);
    assert_eq!(head.framing, Framing::Length(5));
    for line in ["X: y", "Content-Length: 0"] {
        let (_, nothing_to_wait_for) = get(&format!("Expect: 100-continue\r\n{line}"));
        assert!(!nothing_to_wait_for.expect_continue, "{line}");
    }
    let old = takes(b"PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert!(!old.expect_continue);
}

#[test]
fn marks_what_does_not_travel_beyond_this_hop() {
    let (bytes, head) = get(
        "Connection: keep-alive, X-Private,, upgrade\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: x\r\nProxy-Authorization: x\r\nProxy-Authenticate: x\r\nTE: trailers\r\n\
         Trailer: X-Sum\r\nUpgrade: websocket\r\nx-private: 1\r\nX-PRIVATE: 2\r\nx-public: 3",
    );
    let kept: Vec<_> = head
        .headers
        .iter()
        .filter(|header| !header.hop_by_hop)
        .map(|header| header.name.of(&bytes))
        .collect();
    assert_eq!(kept, [&b"Host"[..], b"x-public"]);
    assert!(head.te_trailers);
}

#[test]
fn a_trailer_header_stays_where_trailers_can_follow() {
    let (_, chunked) = get("Trailer: X-Sum\r\nTransfer-Encoding: chunked");
    assert!(!chunked.headers[1].hop_by_hop && chunked.headers[2].hop_by_hop);
    let (_, fixed) = get("Trailer: X-Sum\r\nContent-Length: 5");
    assert!(fixed.headers[1].hop_by_hop && !fixed.headers[2].hop_by_hop);
}

#[test]
fn b19_keeps_protected_headers_end_to_end() {
    let protected = [
        "Host",
        "Content-Length",
        "Authorization",
        "Cookie",
        "x-request-id",
        "X-Forwarded-For",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-client-cert",
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
        "x-meshfast-source",
        "x-envoy-attempt-count",
        "baggage",
        "forwarded",
        "x-real-ip",
    ];
    for name in protected {
        let line = match name {
            "Host" => "X: y".to_string(),
            "Content-Length" => format!("{name}: 0"),
            _ => format!("{name}: 1"),
        };
        let (bytes, head) = get(&format!("Connection: {name}, x-own\r\n{line}\r\nx-own: 1"));
        for header in &head.headers {
            let own = header.name.of(&bytes) == b"x-own" || header.kind == Name::Connection;
            assert_eq!(header.hop_by_hop, own, "{name}");
        }
    }
}

#[test]
fn refuses_connection_options_that_are_none_or_too_many() {
    refuses_lines(
        &["Connection: a b", "Connection: \"a\"", "Connection: a;b"],
        400,
        "http1.connection_option",
    );
    let many = format!("Connection: {}", "a,".repeat(33));
    refuses_lines(&[&many], 400, "http1.connection_options_too_many");
    get(&format!("Connection: {}", "a,".repeat(32)));
}

#[test]
fn keeps_connections_alive_by_version_and_option() {
    let table = [
        ("1.1", "X: y", true),
        ("1.1", "Connection: close", false),
        ("1.1", "Connection: x, CLOSE", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close", false),
        ("1.1", "Proxy-Connection: close", true),
        ("1.0", "X: y", false),
        ("1.0", "Connection: Keep-Alive", true),
        ("1.0", "Connection: keep-alive, close", false),
        ("1.0", "Proxy-Connection: keep-alive", false),
    ];
    for (version, line, keep_alive) in table {
        let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{line}\r\n\r\n");
        assert_eq!(
            takes(bytes.as_bytes()).keep_alive,
            keep_alive,
            "{version} {line}"
        );
    }
}

#[test]
fn offers_an_upgrade_only_with_its_connection_option() {
    let (bytes, head) = get("Connection: Upgrade\r\nUpgrade: websocket, h2c/1");
    assert_eq!(head.upgrade.unwrap().of(&bytes), b"websocket");
    let (bytes, twice) = get("Connection: Upgrade\r\nUpgrade: first\r\nUpgrade: second");
    assert_eq!(twice.upgrade.unwrap().of(&bytes), b"first");
    let (_, unnamed) = get("Upgrade: websocket");
    assert_eq!(unnamed.upgrade, None);
    let old = takes(b"GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(old.upgrade, None);
    refuses_lines(
        &["Upgrade: a b", "Upgrade: a/", "Upgrade:", "Upgrade: a/b/c"],
        400,
        "http1.upgrade_invalid",
    );
}

#[test]
fn b20_names_the_answers_that_go_no_further() {
    let status = |bytes: &[u8]| takes(bytes).final_status();
    assert_eq!(status(b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"), Some(405));
    assert_eq!(
        status(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"),
        Some(200)
    );
    assert_eq!(
        status(b"OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 1\r\n\r\n"),
        None
    );
    assert_eq!(
        status(b"GET / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"),
        None
    );
    assert_eq!(
        status(b"GET / HTTP/1.1\r\nHost: a\r\nMax-Forwards: x\r\n\r\n"),
        None
    );
    for value in ["x", "", "-1", "+1", "4294967296", "1, 2"] {
        let bytes = format!("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: {value}\r\n\r\n");
        refuses_bytes(bytes.as_bytes(), 400, "http1.max_forwards");
    }
}
