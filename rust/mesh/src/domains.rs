//! Which virtual host of a listener a host name belongs to, in Envoy's order.
//!
//! Exact name, then the longest suffix wildcard (`*.example.com`, `*-api.example.com`), then the
//! longest prefix wildcard (`shop.*`), then `*`. A wildcard stands for at least one byte. Compared
//! without ASCII case; the port and one trailing dot are ignored; IPv6 literals compare by value. A
//! host of more than 255 bytes is no name (RFC 1035 2.3.4): only `*` takes it.
//!
//! Lookup allocates nothing: the host is normalised on the stack and searched in sorted tables.
//! Tests: `tests.rs`, and `tests/properties.rs` against a naive oracle.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::io::Write;
use std::net::Ipv6Addr;

use crate::authority::{Authority, AuthorityError, HOST_BYTES_MAX, split, unbracketed};

/// A domain as a virtual host lists it, normalised: lower case, no trailing dot, no wildcard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Domain {
    Any,
    Exact(String),
    Prefix(String),
    Suffix(String),
}

impl Domain {
    /// Reads a domain; the error says what would be right.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(address) = ipv6(text) {
            return Ok(Self::Exact(format!("[{address}]")));
        }
        let (fixed, make): (&str, fn(String) -> Self) = if let Some(suffix) = text.strip_prefix('*')
        {
            (suffix.strip_suffix('.').unwrap_or(suffix), Self::Suffix)
        } else if let Some(prefix) = text.strip_suffix('*') {
            (prefix, Self::Prefix)
        } else {
            (text.strip_suffix('.').unwrap_or(text), Self::Exact)
        };
        match Authority::parse(fixed.as_bytes()) {
            Ok(Authority {
                port: None,
                ipv6: false,
                host,
            }) if host.len() == fixed.len() => Ok(make(fixed.to_ascii_lowercase())),
            Ok(_) | Err(AuthorityError::Port) => {
                Err("a domain has no port: a port in the request's authority is ignored")
            }
            Err(_) => Err("expected a host name, *.name, name.*, an address or *"),
        }
    }
}

/// An IPv6 address with or without brackets.
fn ipv6(text: &str) -> Option<Ipv6Addr> {
    text.strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text)
        .parse()
        .ok()
}

/// The domains of one listener, each with the index of its virtual host.
#[derive(Clone, Debug, Default)]
pub(crate) struct Domains {
    any: Option<u32>,
    /// Sorted by length, then bytes.
    exact: Vec<Entry>,
    /// As `exact`; tried from the longest to the shortest.
    prefixes: Wildcards,
    suffixes: Wildcards,
}

#[derive(Clone, Debug)]
struct Entry {
    text: Box<str>,
    virtual_host: u32,
}

impl Entry {
    fn compare(&self, host: &[u8]) -> Ordering {
        (self.text.len(), self.text.as_bytes()).cmp(&(host.len(), host))
    }
}

#[derive(Clone, Debug, Default)]
struct Wildcards {
    entries: Vec<Entry>,
    /// The lengths that occur, longest first.
    lengths: Vec<usize>,
}

impl Domains {
    /// Makes the lookup tables; every domain occurs once.
    pub(crate) fn new(domains: impl IntoIterator<Item = (Domain, u32)>) -> Self {
        let mut made = Self::default();
        for (domain, virtual_host) in domains {
            let (table, text) = match domain {
                Domain::Any => {
                    made.any = Some(virtual_host);
                    continue;
                }
                Domain::Exact(text) => (&mut made.exact, text),
                Domain::Prefix(text) => (&mut made.prefixes.entries, text),
                Domain::Suffix(text) => (&mut made.suffixes.entries, text),
            };
            table.push(Entry {
                text: text.into_boxed_str(),
                virtual_host,
            });
        }
        sort(&mut made.exact);
        made.prefixes.prepare();
        made.suffixes.prepare();
        made
    }

    /// The virtual host for an authority.
    pub(crate) fn find(&self, authority: &[u8]) -> Option<usize> {
        if !self.has_names() {
            return self.any.map(|virtual_host| virtual_host as usize);
        }
        let mut text = [0; HOST_BYTES_MAX];
        normalised(authority, &mut text)
            .and_then(|host| self.find_host(host))
            .or(self.any)
            .map(|virtual_host| virtual_host as usize)
    }

    /// Many listeners have nothing but `*`; to them a host says nothing.
    fn has_names(&self) -> bool {
        !(self.exact.is_empty()
            && self.suffixes.entries.is_empty()
            && self.prefixes.entries.is_empty())
    }

    fn find_host(&self, host: &[u8]) -> Option<u32> {
        let longest = host.len().saturating_sub(1);
        search(&self.exact, host)
            .or_else(|| {
                self.suffixes
                    .find(longest, |length| &host[host.len() - length..])
            })
            .or_else(|| self.prefixes.find(longest, |length| &host[..length]))
    }
}

impl Wildcards {
    fn prepare(&mut self) {
        sort(&mut self.entries);
        self.lengths = self
            .entries
            .iter()
            .rev()
            .map(|entry| entry.text.len())
            .collect();
        self.lengths.dedup();
    }

    /// The longest entry, of at most `longest` bytes, that equals the `part` of that length.
    fn find<'h>(&self, longest: usize, part: impl Fn(usize) -> &'h [u8]) -> Option<u32> {
        let first = self.lengths.partition_point(|&length| length > longest);
        self.lengths[first..]
            .iter()
            .find_map(|&length| search(&self.entries, part(length)))
    }
}

fn sort(entries: &mut [Entry]) {
    entries.sort_unstable_by(|one, other| one.compare(other.text.as_bytes()));
}

fn search(entries: &[Entry], host: &[u8]) -> Option<u32> {
    let found = entries.binary_search_by(|entry| entry.compare(host)).ok()?;
    Some(entries[found].virtual_host)
}

/// The host of an authority in its one spelling, written into `text`: lower case, without port and
/// trailing dot, an IPv6 literal in its shortest form. None when it does not fit.
fn normalised<'t>(authority: &[u8], text: &'t mut [u8; HOST_BYTES_MAX]) -> Option<&'t [u8]> {
    let (host, _) = split(authority);
    if let Some(address) = ipv6_literal(host) {
        let mut left = text.as_mut_slice();
        write!(left, "[{address}]").expect("the longest text of an address has 45 bytes");
        let length = HOST_BYTES_MAX - left.len();
        return Some(&text[..length]);
    }
    let host = host.strip_suffix(b".").unwrap_or(host);
    let text = text.get_mut(..host.len())?;
    text.copy_from_slice(host);
    text.make_ascii_lowercase();
    Some(text)
}

fn ipv6_literal(host: &[u8]) -> Option<Ipv6Addr> {
    std::str::from_utf8(unbracketed(host)?).ok()?.parse().ok()
}
