//! Heads as the engine sends them: what the peer sent, minus what belongs to its hop, plus ours.
//!
//! Header lines that pass are copied as they came: order, case and spacing are kept. Removed are
//! hop-by-hop fields (RFC 9110 7.6.1) and the identity headers only a proxy may set (row C9); added
//! are framing, `x-request-id`, trace context and, at the edge, `x-forwarded-for` and `-proto`.

use meshfast_mesh::{Direction, HeaderEdits};
use meshfast_wire::h1::{
    self, Framing, Header, Name, RequestHead, ResponseHead, TargetForm, Version,
};

use crate::date;
use crate::exchange::Exchange;
use crate::stream::Peer;
use crate::text;

/// Appends the request head for the upstream.
pub(crate) fn write_request(
    exchange: &Exchange,
    direction: Direction,
    peer: Peer,
    called: &str,
    out: &mut Vec<u8>,
) {
    let request = exchange
        .request
        .as_ref()
        .expect("an HTTP exchange has a request");
    let (head, bytes) = (&request.head, request.bytes.as_slice());
    out.extend_from_slice(request.method_bytes());
    out.push(b' ');
    out.extend_from_slice(if head.form == TargetForm::Asterisk {
        b"*"
    } else {
        request.path_bytes()
    });
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let is_edge = direction == Direction::Gateway;
    let (trace, new_id) = (exchange.trace.as_ref(), exchange.request_id.as_ref());
    let mut has_host = false;
    for header in &head.headers {
        let skipped = header.hop_by_hop
            || is_identity(header.kind)
            || (is_edge && header.kind == Name::XForwardedFor)
            || (is_edge && header.kind == Name::XForwardedProto)
            || (new_id.is_some() && header.kind == Name::XRequestId)
            || trace.is_some_and(|trace| trace.replaces(header.kind));
        if header.kind == Name::Host {
            has_host = true;
            if head.form == TargetForm::Absolute {
                // RFC 9112 3.2.2: the target's authority replaces whatever Host said.
                h1::write_header(out, header.name.of(bytes), request.authority_bytes());
                continue;
            }
        }
        if !skipped {
            line(out, header.line.of(bytes));
        }
    }
    if !has_host {
        write_missing_host(exchange, out);
    }
    write_request_framing(head, bytes, out);
    if let Some(request_id) = new_id {
        h1::write_header(out, b"x-request-id", request_id);
    }
    if let Some(trace) = trace {
        trace.write_headers(out);
    }
    if is_edge {
        write_forwarded(head, bytes, peer, out);
    }
    if let Some(caller) = &exchange.caller {
        // XFCC as Istio's sidecars write it: who was called, and by whom.
        out.extend_from_slice(b"x-forwarded-client-cert: By=");
        out.extend_from_slice(called.as_bytes());
        out.extend_from_slice(b";URI=");
        out.extend_from_slice(caller.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// HTTP/1.0 may come without Host; HTTP/1.1 may not go without.
fn write_missing_host(exchange: &Exchange, out: &mut Vec<u8>) {
    let authority = exchange
        .request
        .as_ref()
        .map_or(&b""[..], |it| it.authority_bytes());
    if authority.is_empty() {
        let address = exchange.upstream_address.as_ref();
        let text = address.map_or_else(|| "localhost".to_owned(), ToString::to_string);
        h1::write_header(out, b"host", text.as_bytes());
    } else {
        h1::write_header(out, b"host", authority);
    }
}

/// A length passes as its own header line; everything else is hop-by-hop and written anew. An offer
/// to switch to cleartext HTTP/2 is not passed on (row H20): the two hops choose their own versions.
fn write_request_framing(head: &RequestHead, bytes: &[u8], out: &mut Vec<u8>) {
    if head.framing == Framing::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if let Some(token) = head.upgrade
        && !token.of(bytes).eq_ignore_ascii_case(b"h2c")
    {
        out.extend_from_slice(b"connection: upgrade\r\n");
        h1::write_header(out, b"upgrade", token.of(bytes));
    }
}

/// The edge appends the caller to what earlier proxies said.
fn write_forwarded(head: &RequestHead, bytes: &[u8], peer: Peer, out: &mut Vec<u8>) {
    out.extend_from_slice(b"x-forwarded-for: ");
    let copy = |out: &mut Vec<u8>, value: &[u8]| out.extend_from_slice(value);
    forwarded_for(head, bytes, Some(peer), copy, out);
    out.extend_from_slice(b"\r\nx-forwarded-proto: http\r\n");
}

/// Appends the value of `x-forwarded-for`: what earlier proxies said, each by way of `write`, then, at
/// the edge, the caller.
pub(crate) fn forwarded_for(
    head: &RequestHead,
    bytes: &[u8],
    caller: Option<Peer>,
    write: impl Fn(&mut Vec<u8>, &[u8]),
    out: &mut Vec<u8>,
) {
    let mut between: &[u8] = b"";
    for header in head
        .headers
        .iter()
        .filter(|header| header.kind == Name::XForwardedFor)
    {
        out.extend_from_slice(between);
        write(out, header.value.of(bytes));
        between = b", ";
    }
    if let Some(caller) = caller {
        out.extend_from_slice(between);
        match caller {
            Peer::Ip(address) => text::ip(out, address.ip()),
            Peer::Local => out.extend_from_slice(b"unknown"),
        }
    }
}

/// Headers that tell who the caller is or how a peer proxy reads it: never believed from a caller.
fn is_identity(kind: Name) -> bool {
    matches!(kind, Name::XForwardedClientCert | Name::XMeshfast)
}

/// Appends an interim (1xx) response; HTTP/1.0 knows none (RFC 9110 15.2).
pub(crate) fn write_interim(
    exchange: &Exchange,
    head: &ResponseHead,
    bytes: &[u8],
    out: &mut Vec<u8>,
) {
    if exchange
        .head()
        .is_some_and(|request| request.version == Version::Http10)
    {
        return;
    }
    write_status(b"HTTP/1.1", head.status, head.reason.of(bytes), out);
    pass_headers(&head.headers, bytes, out);
    out.extend_from_slice(b"\r\n");
}

/// Appends the final response head for the downstream, framed as `framing` says.
pub(crate) fn write_response(
    exchange: &Exchange,
    head: &ResponseHead,
    bytes: &[u8],
    framing: Framing,
    keep_alive: bool,
    out: &mut Vec<u8>,
) {
    let is_old = exchange
        .head()
        .is_some_and(|request| request.version == Version::Http10);
    let version: &[u8] = if is_old { b"HTTP/1.0" } else { b"HTTP/1.1" };
    write_status(version, head.status, head.reason.of(bytes), out);
    pass_headers(&head.headers, bytes, out);
    if framing == Framing::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    match (head.upgrade, head.status) {
        (Some(token), 101) => {
            out.extend_from_slice(b"connection: upgrade\r\n");
            h1::write_header(out, b"upgrade", token.of(bytes));
        }
        (Some(token), 426) => h1::write_header(out, b"upgrade", token.of(bytes)),
        _ => {}
    }
    match (keep_alive, is_old) {
        (false, _) => out.extend_from_slice(b"connection: close\r\n"),
        (true, true) => out.extend_from_slice(b"connection: keep-alive\r\n"),
        (true, false) => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Edits of a head, those that come first first.
pub(crate) type Edits<'e> = [Option<&'e HeaderEdits>; 2];

/// Applies edits to the head that stands in `out` from `start` on: a line that any of them takes away
/// goes, whether a peer sent it or we wrote it; what earlier ones bring is there for later ones to take
/// away. The start line and what cannot be edited stay as they are.
pub(crate) fn edit(edits: Edits<'_>, start: usize, out: &mut Vec<u8>) {
    let head = out.split_off(start);
    let each = |from: usize| edits[from..].iter().copied().flatten();
    let stays = |name: &[u8], from: usize| !each(from).any(|edits| edits.takes_away(name));
    for (place, text) in head.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let name = text.split(|byte| *byte == b':').next().unwrap_or(text);
        if text == b"\r\n" {
            break;
        }
        if place == 0 || stays(name, 0) {
            out.extend_from_slice(text);
        }
    }
    for (place, edits) in edits.iter().enumerate() {
        for field in edits.iter().flat_map(|edits| edits.fields()) {
            let name = field.name.as_bytes();
            if stays(name, place + 1) {
                h1::write_header(out, name, field.value.as_bytes());
            }
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// A response meshfast makes itself.
pub(crate) struct LocalReply<'a> {
    pub(crate) version: Version,
    pub(crate) status: u16,
    pub(crate) keep_alive: bool,
    /// A HEAD request gets the head only.
    pub(crate) is_head: bool,
    /// What the access record is found by.
    pub(crate) request_id: &'a [u8],
    /// For `date`, which an origin server must send (RFC 9110 6.6.1): us since 1970.
    pub(crate) wall_us: u64,
    /// Of a caller that reads it: its status and message are there, and there is no body.
    pub(crate) grpc: Option<(u32, &'a str)>,
    pub(crate) body: &'a str,
}

impl LocalReply<'_> {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let is_old = self.version == Version::Http10;
        let version: &[u8] = if is_old { b"HTTP/1.0" } else { b"HTTP/1.1" };
        write_status(version, self.status, reason(self.status), out);
        out.extend_from_slice(b"server: meshfast\r\ndate: ");
        date::imf_fixdate(out, self.wall_us);
        out.extend_from_slice(b"\r\n");
        h1::write_header(out, b"x-request-id", self.request_id);
        if self.status == 405 {
            // RFC 9110 15.5.6 wants the list; ours is of what may be sent instead.
            out.extend_from_slice(b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n");
        }
        if self.status == 407 {
            out.extend_from_slice(b"proxy-authenticate: Basic realm=\"meshfast\"\r\n");
        }
        match self.grpc {
            Some((status, message)) => {
                out.extend_from_slice(b"content-type: application/grpc\r\n");
                h1::write_header(out, b"grpc-status", status.to_string().as_bytes());
                h1::write_header(out, b"grpc-message", message.as_bytes());
            }
            None => out.extend_from_slice(b"content-type: text/plain\r\n"),
        }
        h1::write_header(
            out,
            b"content-length",
            self.body.len().to_string().as_bytes(),
        );
        match (self.keep_alive, is_old) {
            (false, _) => out.extend_from_slice(b"connection: close\r\n"),
            (true, true) => out.extend_from_slice(b"connection: keep-alive\r\n"),
            (true, false) => {}
        }
        out.extend_from_slice(b"\r\n");
        if !self.is_head {
            out.extend_from_slice(self.body.as_bytes());
        }
    }
}

fn pass_headers(headers: &[Header], bytes: &[u8], out: &mut Vec<u8>) {
    for header in headers.iter().filter(|header| !header.hop_by_hop) {
        line(out, header.line.of(bytes));
    }
}

fn write_status(version: &[u8], status: u16, reason: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(version);
    let digits = [
        b' ',
        digit(status / 100),
        digit(status / 10),
        digit(status),
        b' ',
    ];
    out.extend_from_slice(&digits);
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

fn digit(number: u16) -> u8 {
    b'0' + (number % 10) as u8
}

fn line(out: &mut Vec<u8>, line: &[u8]) {
    out.extend_from_slice(line);
    out.extend_from_slice(b"\r\n");
}

/// Reason phrases of the statuses meshfast makes itself or is asked to make as a fault, as far as they
/// are usual (RFC 9110 15, RFC 6585).
fn reason(status: u16) -> &'static [u8] {
    match status {
        200 => b"OK",
        400 => b"Bad Request",
        401 => b"Unauthorized",
        403 => b"Forbidden",
        404 => b"Not Found",
        405 => b"Method Not Allowed",
        407 => b"Proxy Authentication Required",
        408 => b"Request Timeout",
        409 => b"Conflict",
        414 => b"URI Too Long",
        417 => b"Expectation Failed",
        429 => b"Too Many Requests",
        431 => b"Request Header Fields Too Large",
        500 => b"Internal Server Error",
        501 => b"Not Implemented",
        502 => b"Bad Gateway",
        503 => b"Service Unavailable",
        504 => b"Gateway Timeout",
        505 => b"HTTP Version Not Supported",
        508 => b"Loop Detected",
        _ => b"Error",
    }
}
