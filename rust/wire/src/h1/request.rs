//! The head of a request: request line, target and its four forms, Host, framing, expectations.
//!
//! It says what was received and refuses what two parsers could read differently. It does not
//! normalise paths (policy's part), does not lower-case names, and does not decide about CONNECT or
//! TRACE; [`RequestHead::final_status`] names the answers that never travel further.
//!
//! Tests: `tests/wire/h1_framing.rs`, `tests/wire/h1_syntax.rs`.

use super::head::{self, Connection, Scan, Scanned, Section};
use super::header::{Header, Name, Present};
use super::limits::Limits;
use super::{Framing, Parsed, Span, Version};
use crate::error::{Error, ErrorKind};
use memchr::memchr;
use std::net::Ipv6Addr;

/// The methods this proxy tells apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Method {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    /// Any method not listed here.
    #[default]
    Other,
    Patch,
    Post,
    Put,
    Trace,
}

impl Method {
    /// Which method this is. Methods are case-sensitive (RFC 9110 9.1).
    pub fn of(method: &[u8]) -> Method {
        match method {
            b"CONNECT" => Method::Connect,
            b"DELETE" => Method::Delete,
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"TRACE" => Method::Trace,
            _ => Method::Other,
        }
    }

    /// Asks for no change at the server (RFC 9110 9.2.1).
    pub fn is_safe(self) -> bool {
        matches!(
            self,
            Method::Get | Method::Head | Method::Options | Method::Trace
        )
    }

    /// Sent twice it means the same as sent once (RFC 9110 9.2.2).
    pub fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Method::Delete | Method::Put)
    }
}

/// The four forms of a request target (RFC 9112 3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TargetForm {
    /// `http://host/path`, to a forward proxy. Its authority wins over Host.
    Absolute,
    /// `*`, OPTIONS only.
    Asterisk,
    /// `host:port`, CONNECT only.
    Authority,
    /// `/path?query`.
    #[default]
    Origin,
}

/// A parsed request head: spans into the bytes it was parsed from. Made once per connection and
/// reused; `headers` keeps its memory.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// Bytes of the head with the empty line that ends it (and empty lines before it).
    pub len: usize,
    /// The method as received.
    pub method: Span,
    /// Which method it is.
    pub method_kind: Method,
    /// The target as received.
    pub target: Span,
    /// Which form it has.
    pub form: TargetForm,
    /// `http` or `https` in any case, of an absolute target; else empty.
    pub scheme: Span,
    /// `host` or `host:port` from the target, else from Host; empty in HTTP/1.0 without either.
    pub authority: Span,
    /// Path and query. Empty for an absolute target without path: see [`RequestHead::path_bytes`].
    pub path: Span,
    /// The version.
    pub version: Version,
    /// Every header line in the order received.
    pub headers: Vec<Header>,
    /// Where the body ends.
    pub framing: Framing,
    /// The client keeps the connection open after the response.
    pub keep_alive: bool,
    /// The client waits for 100 before it sends the body; never without one.
    pub expect_continue: bool,
    /// The first protocol offered by Upgrade, only together with `Connection: upgrade` in HTTP/1.1.
    pub upgrade: Option<Span>,
    /// `TE: trailers`: the client reads trailers (RFC 9110 10.1.4).
    pub te_trailers: bool,
    /// Max-Forwards of OPTIONS and TRACE; other methods ignore it (RFC 9110 7.6.2).
    pub max_forwards: Option<u32>,
    /// Host differs from the authority of an absolute target, which wins (RFC 9112 3.2.2): Host
    /// must be rewritten.
    pub host_mismatch: bool,
    present: Present,
    scan: Scan,
    answered: bool,
}

impl Default for RequestHead {
    fn default() -> Self {
        RequestHead::new()
    }
}

impl RequestHead {
    /// An empty head.
    pub fn new() -> Self {
        RequestHead {
            len: 0,
            method: Span::default(),
            method_kind: Method::default(),
            target: Span::default(),
            form: TargetForm::default(),
            scheme: Span::default(),
            authority: Span::default(),
            path: Span::default(),
            version: Version::default(),
            headers: Vec::new(),
            framing: Framing::default(),
            keep_alive: false,
            expect_continue: false,
            upgrade: None,
            te_trailers: false,
            max_forwards: None,
            host_mismatch: false,
            present: Present::default(),
            scan: Scan::new(Section::Request),
            answered: false,
        }
    }

    /// Forgets everything but the memory of `headers`.
    pub fn reset(&mut self) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        *self = RequestHead {
            headers,
            ..RequestHead::new()
        };
    }

    /// Parses the head at the start of `bytes`. While it is incomplete, call again with the same
    /// bytes and more: no byte is scanned twice. After an answer the next call begins anew.
    ///
    /// # Errors
    /// The first fault in stream order; the connection cannot be used further.
    pub fn parse(&mut self, bytes: &[u8], limits: &Limits) -> Result<Parsed, Error> {
        if self.answered {
            self.reset();
        }
        let parsed = self.parse_on(bytes, limits);
        self.answered = parsed != Ok(Parsed::Incomplete);
        parsed
    }

    /// Path and query as they go to an origin server: `/` for an absolute target without path, `*`
    /// for OPTIONS with one (RFC 9112 3.2.4). Empty for CONNECT.
    pub fn path_bytes<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match (self.form, self.path.is_empty()) {
            (TargetForm::Absolute, true) if self.method_kind == Method::Options => b"*",
            (TargetForm::Absolute, true) => b"/",
            _ => self.path.of(bytes),
        }
    }

    /// The value of the first header of this name.
    pub fn header<'a>(&self, bytes: &'a [u8], kind: Name) -> Option<&'a [u8]> {
        head::first(bytes, &self.headers, self.present, kind)
    }

    /// The status of the answer this proxy gives itself, whatever its routes say: 405 for TRACE,
    /// 200 for OPTIONS that may not be forwarded (RFC 9110 7.6.2, 9.3.8).
    pub fn final_status(&self) -> Option<u16> {
        match (self.method_kind, self.max_forwards) {
            (Method::Trace, _) => Some(405),
            (Method::Options, Some(0)) => Some(200),
            _ => None,
        }
    }

    fn parse_on(&mut self, bytes: &[u8], limits: &Limits) -> Result<Parsed, Error> {
        loop {
            match self.scan.next(bytes, limits)? {
                Scanned::NeedMore => return Ok(Parsed::Incomplete),
                Scanned::StartLine(line) => self.read_request_line(bytes, line, limits)?,
                Scanned::End(end) => {
                    self.len = end;
                    self.read_fields(bytes, limits)?;
                    return Ok(Parsed::Complete);
                }
            }
        }
    }

    /// `METHOD SP target SP HTTP/1.1`, single spaces.
    fn read_request_line(
        &mut self,
        bytes: &[u8],
        line: Span,
        limits: &Limits,
    ) -> Result<(), Error> {
        let start = line.start as usize;
        let raw = line.of(bytes);
        let method_len = memchr(b' ', raw).ok_or(ErrorKind::RequestLine)?;
        self.method = Span::new(start, start + method_len);
        self.read_method(bytes)?;
        let target_start = method_len + 1;
        let target_len = memchr(b' ', &raw[target_start..]).ok_or(ErrorKind::VersionInvalid)?;
        if target_len > limits.target_bytes_max {
            return Err(ErrorKind::TargetTooLong.into());
        }
        self.target = Span::new(start + target_start, start + target_start + target_len);
        self.version = head::read_version(&raw[target_start + target_len + 1..])?;
        self.read_target(bytes)
    }

    fn read_method(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let method = self.method.of(bytes);
        self.method_kind = Method::of(method);
        if self.method_kind != Method::Other {
            return Ok(());
        }
        if !head::is_token(method) {
            return Err(ErrorKind::MethodInvalid.into());
        }
        // Methods are case-sensitive, yet some servers fold `get`: no registered one is lower-case.
        if method.iter().any(u8::is_ascii_lowercase) {
            return Err(ErrorKind::MethodLowerCase.into());
        }
        Ok(())
    }

    fn read_target(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let target = self.target.of(bytes);
        if !target.iter().all(u8::is_ascii_graphic) || target.is_empty() {
            return Err(ErrorKind::TargetCharacter.into());
        }
        if memchr(b'#', target).is_some() {
            return Err(ErrorKind::TargetFragment.into());
        }
        match (self.method_kind, target) {
            (Method::Connect, _) => self.read_authority_form(bytes),
            (_, [b'/', ..]) => {
                self.form = TargetForm::Origin;
                self.path = self.target;
                Ok(())
            }
            (Method::Options, b"*") => {
                self.form = TargetForm::Asterisk;
                self.path = self.target;
                Ok(())
            }
            _ => self.read_absolute_form(bytes),
        }
    }

    fn read_authority_form(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.form = TargetForm::Authority;
        self.authority = self.target;
        match read_authority(self.target.of(bytes)) {
            Some(Port::Given) => Ok(()),
            Some(Port::Missing) | None => Err(ErrorKind::TargetAuthority.into()),
        }
    }

    /// `scheme "://" authority [ "/" … ]`.
    fn read_absolute_form(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let target = self.target.of(bytes);
        let start = self.target.start as usize;
        let end = self.target.end as usize;
        let scheme_len = memchr(b':', target).ok_or(ErrorKind::TargetForm)?;
        let rest = target[scheme_len..]
            .strip_prefix(b"://")
            .ok_or(ErrorKind::TargetForm)?;
        let scheme = &target[..scheme_len];
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return Err(ErrorKind::TargetScheme.into());
        }
        let authority_start = start + scheme_len + 3;
        let authority_len = memchr(b'/', rest).unwrap_or(rest.len());
        // A query right behind the host (`http://h?q`) falls into the authority and is refused
        // there: its path would have to be invented.
        if read_authority(&rest[..authority_len]).is_none() {
            return Err(ErrorKind::TargetAuthority.into());
        }
        self.form = TargetForm::Absolute;
        self.scheme = Span::new(start, start + scheme_len);
        self.authority = Span::new(authority_start, authority_start + authority_len);
        self.path = Span::new(authority_start + authority_len, end);
        Ok(())
    }

    /// Everything below the request line.
    fn read_fields(&mut self, bytes: &[u8], limits: &Limits) -> Result<(), Error> {
        let (start, count) = (self.scan.fields_start(), self.scan.fields());
        let present = head::read_fields(bytes, start, self.len, count, &mut self.headers)?;
        self.present = present;
        head::check_underscores(bytes, &mut self.headers, limits)?;
        self.framing = head::read_framing(bytes, &self.headers, present, self.version)?;
        self.check_connect()?;
        self.read_host(bytes)?;
        let connection = head::read_connection(bytes, &mut self.headers, present)?;
        self.keep_alive = connection.persists(self.version);
        self.read_offers(bytes, connection)?;
        head::settle_trailer(&mut self.headers, present, self.framing);
        Ok(())
    }

    /// CONNECT has no body; what follows belongs to the tunnel (RFC 9110 9.3.6). A length of zero
    /// says the same.
    fn check_connect(&mut self) -> Result<(), Error> {
        if self.method_kind != Method::Connect {
            return Ok(());
        }
        match self.framing {
            Framing::None | Framing::Length(0) => {
                self.framing = Framing::None;
                Ok(())
            }
            Framing::Chunked | Framing::Close | Framing::Length(_) => {
                Err(ErrorKind::ConnectWithBody.into())
            }
        }
    }

    /// Exactly one valid Host in HTTP/1.1, at most one in HTTP/1.0 (RFC 9112 3.2).
    fn read_host(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut hosts = self
            .headers
            .iter()
            .filter(|header| header.kind == Name::Host);
        let host = hosts.next().map(|header| header.value);
        if hosts.next().is_some() {
            return Err(ErrorKind::HostDuplicate.into());
        }
        let Some(host) = host else {
            return match self.version {
                Version::Http10 => Ok(()),
                Version::Http11 => Err(ErrorKind::HostMissing.into()),
            };
        };
        if host.is_empty() {
            return Err(ErrorKind::HostEmpty.into());
        }
        if read_authority(host.of(bytes)).is_none() {
            return Err(ErrorKind::HostInvalid.into());
        }
        match self.form {
            TargetForm::Asterisk | TargetForm::Origin => self.authority = host,
            TargetForm::Absolute | TargetForm::Authority => {
                let same = host
                    .of(bytes)
                    .eq_ignore_ascii_case(self.authority.of(bytes));
                self.host_mismatch = !same;
            }
        }
        Ok(())
    }

    /// Expect, Upgrade, TE, Max-Forwards.
    fn read_offers(&mut self, bytes: &[u8], connection: Connection) -> Result<(), Error> {
        let is_http11 = self.version == Version::Http11;
        let upgrade = head::read_upgrade(bytes, &self.headers, self.present)?;
        // HTTP/1.0 has neither Upgrade nor 100-continue: both are ignored (RFC 9110 7.8, 10.1.1).
        self.upgrade = upgrade.filter(|_| connection.upgrade && is_http11);
        let has_body = !matches!(self.framing, Framing::None | Framing::Length(0));
        let counts_hops = matches!(self.method_kind, Method::Options | Method::Trace);
        let offers = [Name::Expect, Name::MaxForwards, Name::Te];
        if !offers.iter().any(|offer| self.present.has(*offer)) {
            return Ok(());
        }
        for header in &self.headers {
            let value = header.value.of(bytes);
            match header.kind {
                Name::Expect if !value.eq_ignore_ascii_case(b"100-continue") => {
                    return Err(ErrorKind::Expectation.into());
                }
                Name::Expect => self.expect_continue = is_http11 && has_body,
                Name::MaxForwards if counts_hops => self.max_forwards = Some(max_forwards(value)?),
                Name::Te => {
                    let mut codings = head::list(value);
                    self.te_trailers |= codings.any(|te| te.eq_ignore_ascii_case(b"trailers"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn max_forwards(value: &[u8]) -> Result<u32, Error> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value)
        .ok()
        .filter(|_| digits)
        .and_then(|s| s.parse().ok());
    number.ok_or(ErrorKind::MaxForwards.into())
}

/// Bytes of a host name: unreserved characters (RFC 3986 2.3).
const HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        let is_mark = matches!(byte as u8, b'-' | b'.' | b'_' | b'~');
        table[byte] = is_mark || (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    table
};

/// Whether an authority names a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Given,
    Missing,
}

/// `host [ ":" port ]` as this proxy takes it, or `None`: a host of unreserved characters or an
/// IPv6 literal, a port from 1 to 65535. RFC 3986 would allow more (user info, percent-encoding,
/// sub-delimiters, an empty port); none of it names a host here, all of it has been used to make
/// two parsers disagree.
fn read_authority(authority: &[u8]) -> Option<Port> {
    let (host, port) = if let [b'[', rest @ ..] = authority {
        let end = memchr(b']', rest)?;
        let literal = std::str::from_utf8(&rest[..end]).ok()?;
        literal.parse::<Ipv6Addr>().ok()?;
        (literal.as_bytes(), &rest[end + 1..])
    } else {
        let end = memchr(b':', authority).unwrap_or(authority.len());
        let host = &authority[..end];
        let plain = |byte: &u8| HOST_BYTES[usize::from(*byte)];
        host.iter()
            .all(plain)
            .then_some((host, &authority[end..]))?
    };
    if host.is_empty() {
        return None;
    }
    match port {
        [] => Some(Port::Missing),
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            let number = digits
                .iter()
                .fold(0, |sum, &digit| sum * 10 + u32::from(digit - b'0'));
            (1..=65535).contains(&number).then_some(Port::Given)
        }
        _ => None,
    }
}
