//! Numbers, addresses and identifiers as text, without `core::fmt`.
//!
//! Every request writes a dozen of them into heads and its access-log line. Through `Display` and
//! `to_string` they cost 250 to 600 instructions each, here 20 to 80. What is written is the same,
//! byte for byte; the tests hold it against `Display`. An address that is not IPv4 is rare enough to
//! go the plain way.
//!
//! Tests: below.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use meshfast_mesh::Address;

use crate::stream::Peer;

/// `00` to `99`, one behind the other.
const PAIRS: &[u8; 200] = b"0001020304050607080910111213141516171819\
2021222324252627282930313233343536373839\
4041424344454647484950515253545556575859\
6061626364656667686970717273747576777879\
8081828384858687888990919293949596979899";

/// The most digits of a `u64`.
const DIGITS_MAX: usize = 20;

/// Appends a number without leading zeros.
pub(crate) fn decimal(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; DIGITS_MAX];
    let mut start = DIGITS_MAX;
    let mut left = number;
    while left >= 100 {
        let pair = 2 * (left % 100) as usize;
        left /= 100;
        start -= 2;
        digits[start..start + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    }
    if left >= 10 {
        let pair = 2 * left as usize;
        start -= 2;
        digits[start..start + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
    } else {
        start -= 1;
        digits[start] = b'0' + left as u8;
    }
    out.extend_from_slice(&digits[start..]);
}

/// Appends the last two digits of a number.
pub(crate) fn two_digits(out: &mut Vec<u8>, number: u64) {
    let pair = 2 * (number % 100) as usize;
    out.extend_from_slice(&PAIRS[pair..pair + 2]);
}

/// Appends the last three digits of a number.
pub(crate) fn three_digits(out: &mut Vec<u8>, number: u64) {
    out.push(b'0' + (number / 100 % 10) as u8);
    two_digits(out, number);
}

/// Appends an address without its port.
pub(crate) fn ip(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            // Every request is told its caller's address; so one append instead of seven.
            let mut text = [b'.'; "255.255.255.255.".len()];
            let mut end = 0;
            for octet in address.octets() {
                let (hundreds, pair) = (octet / 100, 2 * usize::from(octet % 100));
                if octet >= 100 {
                    text[end] = b'0' + hundreds;
                    end += 1;
                }
                if octet >= 10 {
                    text[end] = PAIRS[pair];
                    end += 1;
                }
                text[end] = PAIRS[pair + 1];
                end += 2;
                text[end - 1] = b'.';
            }
            out.extend_from_slice(&text[..end - 1]);
        }
        // Writing to a vector does not fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// Appends an address with its port.
pub(crate) fn socket(out: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(address) => {
            ip(out, IpAddr::V4(*address.ip()));
            out.push(b':');
            decimal(out, u64::from(address.port()));
        }
        SocketAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// Appends the address of one end of a connection.
pub(crate) fn peer(out: &mut Vec<u8>, peer: Peer) {
    match peer {
        Peer::Ip(address) => socket(out, address),
        Peer::Local => out.extend_from_slice(b"unix"),
    }
}

/// Appends an address that is listened on or dialled.
pub(crate) fn address(out: &mut Vec<u8>, address: &Address) {
    match address {
        Address::Tcp(address) => socket(out, *address),
        Address::Unix(_) => drop(write!(out, "{address}")),
    }
}

/// `value` as 16 digits of lower-case hexadecimal.
pub(crate) fn hexadecimal(value: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&eight_digits((value >> 32) as u32));
    digits[8..].copy_from_slice(&eight_digits(value as u32));
    digits
}

/// Eight digits at once: a request without identifiers gets 80 of them. The half-bytes of `value` are
/// spread over the bytes of a word; ten and more carry into bit 4 when 6 is added, and are letters.
fn eight_digits(value: u32) -> [u8; 8] {
    const EACH: u64 = u64::MAX / 255;
    const LETTER: u64 = (b'a' - b'0' - 10) as u64;
    let mut spread = u64::from(value);
    spread = (spread | (spread << 16)) & 0x0000_ffff_0000_ffff;
    spread = (spread | (spread << 8)) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | (spread << 4)) & (0x0f * EACH);
    let is_letter = ((spread + 6 * EACH) >> 4) & EACH;
    (spread + u64::from(b'0') * EACH + is_letter * LETTER).to_be_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_written_as_display_writes_them() {
        let edges = (0..20).map(|power| 10u64.pow(power));
        let around = edges.flat_map(|edge| [edge - 1, edge, edge + 1, edge.saturating_mul(7)]);
        for number in around.chain([u64::MAX, u64::MAX - 1]).chain(0..1_100) {
            assert_eq!(text(|out| decimal(out, number)), number.to_string());
        }
        for number in 0..2_000 {
            let (two, three) = (number % 100, number % 1_000);
            assert_eq!(text(|out| two_digits(out, number)), format!("{two:02}"));
            assert_eq!(text(|out| three_digits(out, number)), format!("{three:03}"));
        }
    }

    #[test]
    fn addresses_are_written_as_display_writes_them() {
        for octet in 0..=255u8 {
            let address =
                SocketAddr::from(([octet, 255 - octet, 0, octet / 2], 257 * u16::from(octet)));
            assert_eq!(text(|out| socket(out, address)), address.to_string());
            assert_eq!(text(|out| ip(out, address.ip())), address.ip().to_string());
        }
        for written in [
            "[::1]:80",
            "[2001:db8::1]:65535",
            "0.0.0.0:0",
            "unix:/run/a.sock",
        ] {
            let parsed: Address = written.parse().unwrap();
            assert_eq!(text(|out| address(out, &parsed)), written);
        }
        assert_eq!(text(|out| ip(out, "::1".parse().unwrap())), "::1");
        assert_eq!(text(|out| peer(out, Peer::Local)), Peer::Local.to_string());
    }

    #[test]
    fn hexadecimal_is_written_as_format_writes_it() {
        let patterns = (0..=15).map(|digit| digit * (u64::MAX / 15));
        let steps = (0..64).map(|bit| 0x0123_4567_89ab_cdef_u64.rotate_left(bit));
        for value in patterns.chain(steps) {
            let digits = String::from_utf8(hexadecimal(value).to_vec()).unwrap();
            assert_eq!(digits, format!("{value:016x}"));
        }
    }
}
