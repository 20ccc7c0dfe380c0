//! What request and response heads share: finding the end, the header lines, hop-by-hop options,
//! body framing.
//!
//! Two stages. The scan walks lines once with `memchr2` over CR and LF, remembers where it stopped,
//! and refuses in stream order what needs no terminator to be wrong: bare CR or LF, folding, a line
//! or section over its limit. When the empty line is found, `httparse` validates the bytes of names
//! and values into a fixed array, and each line becomes a [`Header`].
//!
//! `httparse` takes some things this proxy refuses (bare LF, empty lines before a response, tabs
//! around framing values); those are refused by the scan or by the rules below, never left to it.
//!
//! Tests: `tests/wire/h1_framing.rs`, `tests/wire/h1_syntax.rs`.

use super::header::{Header, Name, Present};
use super::limits::{Limits, Underscores};
use super::{Framing, Span, Version};
use crate::error::{Error, ErrorKind};
use memchr::{memchr, memchr2};

/// Never more header lines than this, whatever the limits say: the size of the large fixed array.
pub(super) const FIELDS_HARD_MAX: usize = 256;

/// Most heads have fewer; a smaller array is cheaper to clear.
const FIELDS_USUAL_MAX: usize = 32;

/// Options in all Connection headers of a head. Each is looked up among the headers, so this bounds
/// the work; real ones have one to three.
const CONNECTION_OPTIONS_MAX: usize = 32;

/// What the scan found next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// The empty line: the head ends before this offset.
    End(usize),
    /// The bytes so far hold no further line end.
    NeedMore,
    /// The start line, without its CRLF.
    StartLine(Span),
}

/// Which lines come before the header section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// A request line, perhaps after empty lines.
    Request,
    /// A status line.
    Response,
    /// None: a trailer section is header lines only.
    Trailers,
}

/// The resumable search for the end of a head. Positions are offsets into the caller's buffer,
/// `fields_start <= line_start <= scanned`.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    section: Section,
    empty_lines: usize,
    fields: usize,
    /// Where the header section begins; `None` while the start line is not complete.
    fields_start: Option<usize>,
    line_start: usize,
    scanned: usize,
}

impl Scan {
    pub(super) fn new(section: Section) -> Scan {
        let fields_start = (section == Section::Trailers).then_some(0);
        Scan {
            section,
            empty_lines: 0,
            fields: 0,
            fields_start,
            line_start: 0,
            scanned: 0,
        }
    }

    /// Number of header lines seen.
    pub(super) fn fields(&self) -> usize {
        self.fields
    }

    /// Where the header section begins. Zero before the start line is complete.
    pub(super) fn fields_start(&self) -> usize {
        self.fields_start.unwrap_or(0)
    }

    /// Walks to the next event. Each byte is looked at once over all calls.
    pub(super) fn next(&mut self, bytes: &[u8], limits: &Limits) -> Result<Scanned, Error> {
        loop {
            let (line_max, too_long) = self.allowance(bytes, limits);
            let end = memchr2(b'\r', b'\n', &bytes[self.scanned..]).map(|at| at + self.scanned);
            let line_len = end.unwrap_or(bytes.len()) - self.line_start;
            if line_len > line_max {
                return Err(too_long.into());
            }
            let Some(end) = end else {
                self.scanned = bytes.len();
                return Ok(Scanned::NeedMore);
            };
            if bytes[end] == b'\n' {
                return Err(ErrorKind::BareLineFeed.into());
            }
            match bytes.get(end + 1) {
                Some(b'\n') => {}
                Some(_) => return Err(ErrorKind::BareCarriageReturn.into()),
                None => {
                    self.scanned = end;
                    return Ok(Scanned::NeedMore);
                }
            }
            let line = Span::new(self.line_start, end);
            self.line_start = end + 2;
            self.scanned = end + 2;
            if let Some(found) = self.line(bytes, line, limits)? {
                return Ok(found);
            }
        }
    }

    /// How long the line at `line_start` may be, and what it is when it is longer. Depends only on
    /// bytes up to that length, so that the verdict does not depend on how they were cut.
    fn allowance(&self, bytes: &[u8], limits: &Limits) -> (usize, ErrorKind) {
        let Some(fields_start) = self.fields_start else {
            return match self.section {
                Section::Request => self.request_line_allowance(bytes, limits),
                _ => (limits.field_bytes_max, ErrorKind::StatusLine),
            };
        };
        if self.fields == limits.fields_max() {
            return (0, ErrorKind::FieldsTooMany);
        }
        let used = self.line_start - fields_start;
        let left = limits.head_bytes_max.saturating_sub(used);
        // A header line's CRLF counts too; the empty line that ends the section does not.
        if left.saturating_sub(2) < limits.field_bytes_max {
            (left.saturating_sub(2), ErrorKind::FieldsTooLarge)
        } else {
            (limits.field_bytes_max, ErrorKind::FieldTooLarge)
        }
    }

    /// The method has its own limit, so that a megabyte of junk is refused after a few bytes.
    fn request_line_allowance(&self, bytes: &[u8], limits: &Limits) -> (usize, ErrorKind) {
        let line = &bytes[self.line_start..];
        let look = line.len().min(limits.method_bytes_max + 1);
        match memchr(b' ', &line[..look]) {
            None => (limits.method_bytes_max, ErrorKind::MethodTooLong),
            Some(_) => (limits.start_line_bytes_max(), ErrorKind::TargetTooLong),
        }
    }

    /// One whole line: what it means for the scan.
    fn line(
        &mut self,
        bytes: &[u8],
        line: Span,
        limits: &Limits,
    ) -> Result<Option<Scanned>, Error> {
        if self.fields_start.is_none() {
            if !line.is_empty() {
                self.fields_start = Some(self.line_start);
                return Ok(Some(Scanned::StartLine(line)));
            }
            if self.section == Section::Response {
                return Err(ErrorKind::StatusLine.into());
            }
            self.empty_lines += 1;
            if self.empty_lines > limits.empty_lines_max {
                return Err(ErrorKind::EmptyLinesTooMany.into());
            }
            return Ok(None);
        }
        if line.is_empty() {
            return Ok(Some(Scanned::End(self.line_start)));
        }
        if matches!(bytes[line.start as usize], b' ' | b'\t') {
            let first = self.fields == 0;
            let fold = ErrorKind::HeaderFold;
            return Err(if first {
                ErrorKind::HeaderSpaceBeforeFirst
            } else {
                fold
            }
            .into());
        }
        self.fields += 1;
        Ok(None)
    }
}

/// Turns the header section `start..end` of `bytes` (`end` after the empty line) into `headers`,
/// which is cleared first; says which names are there. `count` is the number of lines the scan saw.
pub(super) fn read_fields(
    bytes: &[u8],
    start: usize,
    end: usize,
    count: usize,
    headers: &mut Vec<Header>,
) -> Result<Present, Error> {
    headers.clear();
    if count <= FIELDS_USUAL_MAX {
        read_fields_into::<FIELDS_USUAL_MAX>(bytes, start, end, headers)
    } else {
        read_fields_into::<FIELDS_HARD_MAX>(bytes, start, end, headers)
    }
}

fn read_fields_into<const MAX: usize>(
    bytes: &[u8],
    start: usize,
    end: usize,
    headers: &mut Vec<Header>,
) -> Result<Present, Error> {
    let mut array = [httparse::EMPTY_HEADER; MAX];
    let parsed = httparse::parse_headers(&bytes[start..end], &mut array).map_err(field_fault)?;
    let httparse::Status::Complete((len, fields)) = parsed else {
        unreachable!("the scan found the empty line");
    };
    debug_assert_eq!(len, end - start);
    let base = bytes.as_ptr() as usize;
    let span = |part: &[u8]| {
        let at = part.as_ptr() as usize - base;
        Span::new(at, at + part.len())
    };
    let mut present = Present::default();
    headers.reserve(fields.len());
    for (at, field) in fields.iter().enumerate() {
        let name = span(field.name.as_bytes());
        // Lines are contiguous: each ends with the CRLF before the next name, or the empty line.
        let line_end = match fields.get(at + 1) {
            Some(next) => span(next.name.as_bytes()).start as usize - 2,
            None => end - 4,
        };
        let kind = Name::of(field.name.as_bytes());
        present.add(kind);
        headers.push(Header {
            line: Span::new(name.start as usize, line_end),
            name,
            value: span(field.value),
            kind,
            hop_by_hop: kind.is_hop_by_hop(),
        });
    }
    Ok(present)
}

/// What `httparse` refuses within lines the scan let through.
fn field_fault(error: httparse::Error) -> Error {
    match error {
        httparse::Error::HeaderValue => ErrorKind::HeaderValue,
        _ => ErrorKind::HeaderName,
    }
    .into()
}

/// Applies the rule for underscores in names of a request.
pub(super) fn check_underscores(
    bytes: &[u8],
    headers: &mut [Header],
    limits: &Limits,
) -> Result<(), Error> {
    for header in headers
        .iter_mut()
        .filter(|header| header.kind.may_hold_underscore())
    {
        let name = header.name.of(bytes);
        if memchr(b'_', name).is_none() {
            continue;
        }
        match limits.underscores {
            Underscores::Drop => header.hop_by_hop = true,
            Underscores::RejectAll => return Err(ErrorKind::HeaderNameUnderscore.into()),
            Underscores::RejectKnown if Name::of_underscored(name).is_guarded() => {
                return Err(ErrorKind::HeaderNameUnderscore.into());
            }
            Underscores::RejectKnown => {}
        }
    }
    Ok(())
}

/// The elements of a comma-separated value, trimmed, empty ones included.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// `tchar` of RFC 9110 5.6.2.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is_token_byte(byte))
}

/// What the Connection headers of a head say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

impl Connection {
    /// Whether the connection outlives the message (RFC 9112 9.3). `close` wins.
    pub(super) fn persists(self, version: Version) -> bool {
        match version {
            Version::Http10 => self.keep_alive && !self.close,
            Version::Http11 => !self.close,
        }
    }
}

/// Reads the Connection options and marks the headers they name as hop-by-hop, except protected
/// ones (RFC 9110 7.6.1).
pub(super) fn read_connection(
    bytes: &[u8],
    headers: &mut [Header],
    present: Present,
) -> Result<Connection, Error> {
    let mut connection = Connection::default();
    if !present.has(Name::Connection) {
        return Ok(connection);
    }
    let mut options = 0;
    for at in 0..headers.len() {
        if headers[at].kind != Name::Connection {
            continue;
        }
        for option in list(headers[at].value.of(bytes)).filter(|option| !option.is_empty()) {
            options += 1;
            if options > CONNECTION_OPTIONS_MAX {
                return Err(ErrorKind::ConnectionOptionsTooMany.into());
            }
            if !is_token(option) {
                return Err(ErrorKind::ConnectionOption.into());
            }
            if option.eq_ignore_ascii_case(b"close") {
                connection.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                connection.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                connection.upgrade = true;
            } else {
                nominate(bytes, headers, option);
            }
        }
    }
    Ok(connection)
}

fn nominate(bytes: &[u8], headers: &mut [Header], option: &[u8]) {
    for header in headers {
        if !header.kind.is_protected() && header.name.of(bytes).eq_ignore_ascii_case(option) {
            header.hop_by_hop = true;
        }
    }
}

/// A Trailer header stays only where trailers can follow: behind a chunked body.
pub(super) fn settle_trailer(headers: &mut [Header], present: Present, framing: Framing) {
    if !present.has(Name::Trailer) {
        return;
    }
    for header in headers
        .iter_mut()
        .filter(|header| header.kind == Name::Trailer)
    {
        header.hop_by_hop |= framing != Framing::Chunked;
    }
}

/// The first protocol of the Upgrade headers, or `None` without any.
pub(super) fn read_upgrade(
    bytes: &[u8],
    headers: &[Header],
    present: Present,
) -> Result<Option<Span>, Error> {
    let mut first = None;
    if !present.has(Name::Upgrade) {
        return Ok(first);
    }
    for header in headers.iter().filter(|header| header.kind == Name::Upgrade) {
        let value = header.value.of(bytes);
        for protocol in list(value) {
            // protocol = token [ "/" token ]
            let mut parts = protocol.splitn(2, |&byte| byte == b'/');
            if !parts.all(is_token) {
                return Err(ErrorKind::UpgradeInvalid.into());
            }
        }
        let len = list(value).next().map_or(0, <[u8]>::len);
        let start = header.value.start as usize;
        first = first.or(Some(Span::new(start, start + len)));
    }
    Ok(first)
}

/// The one framing the Content-Length and Transfer-Encoding headers give, `None` without any.
/// Anything that two parsers might read differently is refused (RFC 9112 6.1 to 6.3, 11.2).
pub(super) fn read_framing(
    bytes: &[u8],
    headers: &[Header],
    present: Present,
    version: Version,
) -> Result<Framing, Error> {
    if !present.has(Name::ContentLength) && !present.has(Name::TransferEncoding) {
        return Ok(Framing::None);
    }
    let mut length = None;
    let mut chunked = false;
    for header in headers {
        if !matches!(header.kind, Name::ContentLength | Name::TransferEncoding) {
            continue;
        }
        if memchr(b'\t', header.line.of(bytes)).is_some() {
            return Err(ErrorKind::FramingFieldSpace.into());
        }
        let value = header.value.of(bytes);
        if header.kind == Name::ContentLength {
            if length.replace(content_length(value)?).is_some() {
                return Err(ErrorKind::ContentLengthDuplicate.into());
            }
        } else {
            if version == Version::Http10 {
                return Err(ErrorKind::TransferEncodingVersion.into());
            }
            if chunked {
                return Err(ErrorKind::TransferEncodingDuplicate.into());
            }
            check_chunked(value)?;
            chunked = true;
        }
    }
    match (chunked, length) {
        (true, Some(_)) => Err(ErrorKind::ContentLengthWithTransferEncoding.into()),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(length)) => Ok(Framing::Length(length)),
        (false, None) => Ok(Framing::None),
    }
}

/// One plain decimal number: no sign, no list, no leading zero, at most 19 digits.
fn content_length(value: &[u8]) -> Result<u64, Error> {
    /// `u64::MAX` has 20 digits; with 19 nothing overflows.
    const DIGITS_MAX: usize = 19;
    if value.is_empty() {
        return Err(ErrorKind::ContentLengthEmpty.into());
    }
    if !value.iter().all(u8::is_ascii_digit) || (value.len() > 1 && value[0] == b'0') {
        return Err(ErrorKind::ContentLengthInvalid.into());
    }
    if value.len() > DIGITS_MAX {
        return Err(ErrorKind::ContentLengthTooLarge.into());
    }
    Ok(value
        .iter()
        .fold(0, |sum, &digit| sum * 10 + u64::from(digit - b'0')))
}

/// Exactly `chunked`. Other codings are not implemented (501); what is no coding list, or has
/// chunked in the wrong place, is malformed (400).
fn check_chunked(value: &[u8]) -> Result<(), Error> {
    const CHUNKED: &[u8] = b"chunked";
    if value.eq_ignore_ascii_case(CHUNKED) {
        return Ok(());
    }
    let mut chunked = 0;
    let mut last_is_chunked = false;
    for coding in list(value) {
        last_is_chunked = coding.eq_ignore_ascii_case(CHUNKED);
        chunked += usize::from(last_is_chunked);
        let cut_off = CHUNKED.get(..coding.len()).is_some_and(|start| {
            coding.len() < CHUNKED.len() && coding.eq_ignore_ascii_case(start)
        });
        if !is_token(coding) || cut_off {
            return Err(ErrorKind::TransferEncodingInvalid.into());
        }
    }
    if chunked > 1 || (chunked == 1 && !last_is_chunked) {
        return Err(ErrorKind::TransferEncodingInvalid.into());
    }
    Err(ErrorKind::TransferEncodingUnsupported.into())
}

/// `HTTP/1.0` or `HTTP/1.1`; another well-formed version is unsupported, anything else malformed.
pub(super) fn read_version(version: &[u8]) -> Result<Version, Error> {
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(ErrorKind::VersionUnsupported.into())
        }
        _ => Err(ErrorKind::VersionInvalid.into()),
    }
}

/// The value of the first header of this name.
pub(super) fn first<'a>(
    bytes: &'a [u8],
    headers: &[Header],
    present: Present,
    kind: Name,
) -> Option<&'a [u8]> {
    if !present.has(kind) {
        return None;
    }
    headers
        .iter()
        .find(|header| header.kind == kind)
        .map(|header| header.value.of(bytes))
}
