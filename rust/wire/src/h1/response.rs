//! The head of a response: status line, framing by request method and status, reuse.
//!
//! The stricter half of the trust boundary towards upstreams: a response whose end two parsers
//! could see in different places is an error (the engine answers 502), because its leftover would
//! be read as the answer to the next request. It does not count interim answers and does not know
//! whether 101 was asked for; the engine does.
//!
//! Tests: `tests/wire/h1_responses.rs`.

use super::head::{self, Scan, Scanned, Section};
use super::header::{Header, Name, Present};
use super::limits::Limits;
use super::request::Method;
use super::{Framing, Parsed, Span, Version};
use crate::error::{Error, ErrorKind};

/// A parsed response head: spans into the bytes it was parsed from. Made once per connection and
/// reused; `headers` keeps its memory.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// Bytes of the head with the empty line that ends it.
    pub len: usize,
    /// The status, 100 to 999.
    pub status: u16,
    /// The reason phrase as received; may be empty.
    pub reason: Span,
    /// The version.
    pub version: Version,
    /// Every header line in the order received.
    pub headers: Vec<Header>,
    /// Where the body ends. [`Framing::None`] also for 1xx, 204, 304, the answer to HEAD, and a
    /// tunnel.
    pub framing: Framing,
    /// The upstream connection can carry another request once the body has ended.
    pub keep_alive: bool,
    /// Seconds of `Keep-Alive: timeout=`: the upstream closes an idle connection after that.
    pub keep_alive_timeout_s: Option<u32>,
    /// The protocol switched to. Always there with 101.
    pub upgrade: Option<Span>,
    present: Present,
    scan: Scan,
    answered: bool,
}

impl Default for ResponseHead {
    fn default() -> Self {
        ResponseHead::new()
    }
}

impl ResponseHead {
    /// An empty head.
    pub fn new() -> Self {
        ResponseHead {
            len: 0,
            status: 0,
            reason: Span::default(),
            version: Version::default(),
            headers: Vec::new(),
            framing: Framing::default(),
            keep_alive: false,
            keep_alive_timeout_s: None,
            upgrade: None,
            present: Present::default(),
            scan: Scan::new(Section::Response),
            answered: false,
        }
    }

    /// Forgets everything but the memory of `headers`.
    pub fn reset(&mut self) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        *self = ResponseHead {
            headers,
            ..ResponseHead::new()
        };
    }

    /// Parses the head at the start of `bytes`, the answer to a request of `request_method`. While
    /// it is incomplete, call again with the same bytes and more: no byte is scanned twice. After
    /// an answer the next call begins anew.
    ///
    /// # Errors
    /// The first fault in stream order; the upstream connection cannot be used further.
    pub fn parse(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
        request_method: Method,
    ) -> Result<Parsed, Error> {
        if self.answered {
            self.reset();
        }
        let parsed = self.parse_on(bytes, limits, request_method);
        self.answered = parsed != Ok(Parsed::Incomplete);
        parsed
    }

    /// The value of the first header of this name.
    pub fn header<'a>(&self, bytes: &'a [u8], kind: Name) -> Option<&'a [u8]> {
        head::first(bytes, &self.headers, self.present, kind)
    }

    /// An answer before the final one: 1xx except 101.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    fn parse_on(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
        request_method: Method,
    ) -> Result<Parsed, Error> {
        loop {
            match self.scan.next(bytes, limits)? {
                Scanned::NeedMore => return Ok(Parsed::Incomplete),
                Scanned::StartLine(line) => self.read_status_line(bytes, line)?,
                Scanned::End(end) => {
                    self.len = end;
                    self.read_fields(bytes, request_method)?;
                    return Ok(Parsed::Complete);
                }
            }
        }
    }

    /// `HTTP/1.1 SP 3DIGIT [ SP reason ]`. Servers that leave out the space before an empty reason
    /// are common; nothing hangs on it.
    fn read_status_line(&mut self, bytes: &[u8], line: Span) -> Result<(), Error> {
        const VERSION_LEN: usize = "HTTP/1.1".len();
        let raw = line.of(bytes);
        let (version, rest) = raw
            .split_at_checked(VERSION_LEN)
            .ok_or(ErrorKind::StatusLine)?;
        self.version = head::read_version(version)?;
        let rest = rest.strip_prefix(b" ").ok_or(ErrorKind::StatusLine)?;
        let reason = match rest {
            [a, b, c, reason @ ..] if [a, b, c].iter().all(|digit| digit.is_ascii_digit()) => {
                let digit = |byte: &u8| u16::from(byte - b'0');
                self.status = digit(a) * 100 + digit(b) * 10 + digit(c);
                reason
            }
            _ => return Err(ErrorKind::StatusInvalid.into()),
        };
        if self.status < 100 {
            return Err(ErrorKind::StatusInvalid.into());
        }
        let end = line.end as usize;
        match reason {
            [] => self.reason = Span::new(end, end),
            [b' ', text @ ..] if text.iter().all(is_reason_byte) => {
                self.reason = Span::new(end - text.len(), end);
            }
            _ => return Err(ErrorKind::StatusLine.into()),
        }
        Ok(())
    }

    /// Everything below the status line.
    fn read_fields(&mut self, bytes: &[u8], request_method: Method) -> Result<(), Error> {
        let (start, count) = (self.scan.fields_start(), self.scan.fields());
        let present = head::read_fields(bytes, start, self.len, count, &mut self.headers)?;
        self.present = present;
        let connection = head::read_connection(bytes, &mut self.headers, present)?;
        self.keep_alive = connection.persists(self.version);
        self.read_body_framing(bytes, request_method)?;
        self.keep_alive_timeout_s = self
            .header(bytes, Name::KeepAlive)
            .and_then(keep_alive_timeout_s);
        let upgrade = head::read_upgrade(bytes, &self.headers, present)?;
        self.upgrade = upgrade.filter(|_| connection.upgrade && self.version == Version::Http11);
        if self.status == 101 && self.upgrade.is_none() {
            return Err(ErrorKind::SwitchingWithoutUpgrade.into());
        }
        head::settle_trailer(&mut self.headers, present, self.framing);
        Ok(())
    }

    /// RFC 9112 6.3, in its order.
    fn read_body_framing(&mut self, bytes: &[u8], request_method: Method) -> Result<(), Error> {
        let announced = head::read_framing(bytes, &self.headers, self.present, self.version)?;
        let is_tunnel = request_method == Method::Connect && self.status / 100 == 2;
        match self.status {
            // Interim answers have no body, and one that promises it is about to be misread.
            100..=199 if !matches!(announced, Framing::None | Framing::Length(0)) => {
                return Err(ErrorKind::InterimWithBody.into());
            }
            _ if is_tunnel => self.withdraw_framing(),
            100..=199 => self.withdraw_framing(),
            204 => {
                // A promised body may follow all the same: not reused, not forwarded.
                self.keep_alive &= matches!(announced, Framing::None | Framing::Length(0));
                self.withdraw_framing();
            }
            304 => {}
            _ if request_method == Method::Head => {}
            _ => {
                self.framing = match announced {
                    Framing::None => Framing::Close,
                    framing => framing,
                };
                self.keep_alive &= self.framing != Framing::Close;
            }
        }
        Ok(())
    }

    /// The framing headers say nothing here and must not be forwarded (RFC 9110 8.6, 9.3.6).
    fn withdraw_framing(&mut self) {
        for header in &mut self.headers {
            header.hop_by_hop |= header.kind == Name::ContentLength;
        }
    }
}

fn is_reason_byte(byte: &u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// `timeout=5, max=100`; what is malformed is not there.
fn keep_alive_timeout_s(value: &[u8]) -> Option<u32> {
    head::list(value).find_map(|parameter| {
        let (name, seconds) = parameter.split_at_checked("timeout=".len())?;
        if !name.eq_ignore_ascii_case(b"timeout=") || !seconds.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(seconds).ok()?.parse().ok()
    })
}
