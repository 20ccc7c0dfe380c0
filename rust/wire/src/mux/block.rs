//! The header blocks of `meshfast/1`: an opening and an answer, as literals without state.
//!
//! Of HPACK only one form: a literal without index, new name, no Huffman coding (RFC 7541 6.2.2).
//! Anything else is refused, so that there is nothing to blow up and no state between blocks.
//!
//! Tests: `tests/wire/mux.rs`.

use super::Carries;

const CARRIES: [(Carries, &[u8]); 2] = [(Carries::Http1, b"http/1.1"), (Carries::Tcp, b"tcp")];

/// Appends the fields that open a stream.
pub(super) fn write_opening(block: &mut Vec<u8>, port: u16, carries: Carries) {
    literal(block, b":method", b"CONNECT");
    literal(block, b":authority", format!("workload:{port}").as_bytes());
    let (_, name) = CARRIES[usize::from(carries == Carries::Tcp)];
    literal(block, b"x-meshfast-carries", name);
}

/// Appends the one field that takes a stream.
pub(super) fn write_answer(block: &mut Vec<u8>) {
    literal(block, b":status", b"200");
}

/// What a block opens; `None` for any block but one of [`write_opening`].
pub(super) fn read_opening(payload: &[u8]) -> Option<(u16, Carries)> {
    let mut fields = Literals(payload);
    let (b":method", b"CONNECT") = fields.next()?? else {
        return None;
    };
    let (b":authority", authority) = fields.next()?? else {
        return None;
    };
    let (b"x-meshfast-carries", carries) = fields.next()?? else {
        return None;
    };
    if fields.next().is_some() {
        return None;
    }
    let port = std::str::from_utf8(authority.strip_prefix(b"workload:")?).ok()?;
    let is_plain = port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0');
    let (carries, _) = CARRIES.iter().find(|(_, name)| *name == carries)?;
    is_plain
        .then(|| port.parse().ok())
        .flatten()
        .map(|port| (port, *carries))
}

/// Whether a block is the answer of [`write_answer`].
pub(super) fn is_answer(payload: &[u8]) -> bool {
    let mut fields = Literals(payload);
    matches!(
        (fields.next(), fields.next()),
        (Some(Some((b":status", b"200"))), None)
    )
}

/// A literal without index, new name, no Huffman coding (RFC 7541 6.2.2); both lengths below 127.
fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    debug_assert!(name.len() < 127 && value.len() < 127);
    block.push(0);
    block.push(name.len() as u8);
    block.extend_from_slice(name);
    block.push(value.len() as u8);
    block.extend_from_slice(value);
}

/// Reads literals as [`literal`] writes them; `Some(None)` for anything else.
struct Literals<'a>(&'a [u8]);

impl<'a> Iterator for Literals<'a> {
    type Item = Option<(&'a [u8], &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Literals<'a> {
    fn field(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let (0, rest) = self.0.split_first().map(|(first, rest)| (*first, rest))? else {
            return None;
        };
        let (name, rest) = string(rest)?;
        let (value, rest) = string(rest)?;
        self.0 = rest;
        Some((name, value))
    }
}

fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    // Bit 7 is Huffman coding, 127 begins a longer length (RFC 7541 5.1, 5.2).
    (*length < 127)
        .then(|| rest.split_at_checked(usize::from(*length)))
        .flatten()
}
