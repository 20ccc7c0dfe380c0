//! What a route asks of a request: conditions on target, method, authority, headers and query.
//!
//! Inside one [`Match`] every condition must hold; a route with several takes any of them. The
//! values are compared as bytes, as they were sent:
//!
//! - uri: the path without the query; nothing is percent-decoded or normalised here (the caller
//!   normalises once, before routing and policy). `ignore_uri_case` concerns exact and prefix only.
//! - authority: as sent, with its port, case-sensitive (Envoy and Istio do the same).
//! - headers: any line of a repeated header may match; an inverted condition holds when none does,
//!   so also when the header is absent. `host` means the request's authority, whatever its form.
//! - query parameters: split at `&` and the first `=`, not percent-decoded; of a repeated parameter
//!   the first counts, one without `=` is empty (Envoy's matcher does the same).
//! - regular expressions: RE2 syntax, the whole value must match. `\d`, `\w`, `\s` and `\b` are
//!   ASCII as in RE2; `.` is one byte, unless the pattern itself needs Unicode.
//!
//! Tests: `tests.rs`.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use regex::bytes::{Regex, RegexBuilder};

use crate::document;

/// Longer patterns are refused; Envoy's and Istio's examples stay far below.
const PATTERN_BYTES_MAX: usize = 4096;
/// Memory of one compiled pattern; the crate's default of 10 MiB is too much per route.
const PATTERN_COMPILED_BYTES_MAX: usize = 1 << 20;
/// Memory of the cache a pattern fills while it matches, per worker.
const PATTERN_CACHE_BYTES_MAX: usize = 1 << 20;

/// What routing sees of a request; empty bytes mean that a part is absent.
pub trait Request {
    /// The method, as sent.
    fn method(&self) -> &[u8];
    /// The path and the query.
    fn path(&self) -> &[u8];
    /// Host and port, from the target or else from `Host`.
    fn authority(&self) -> &[u8];
    /// `http` or `https`.
    fn scheme(&self) -> &[u8];
    /// Hands the value of every header line called `name` (lower case; lines compare without case)
    /// to `each`, in order, until it answers true.
    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool);
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default)]
pub struct Match {
    pub(crate) uri: Option<StringMatch>,
    pub(crate) ignore_uri_case: bool,
    pub(crate) method: Option<StringMatch>,
    pub(crate) scheme: Option<StringMatch>,
    pub(crate) authority: Option<StringMatch>,
    pub(crate) headers: Vec<NamedMatch>,
    pub(crate) query_params: Vec<NamedMatch>,
}

impl Match {
    /// Whether every condition holds for `request`.
    #[must_use]
    pub fn matches(&self, request: &dyn Request) -> bool {
        let (path, query) = split_path(request.path());
        self.uri
            .as_ref()
            .is_none_or(|uri| uri.matches_part(path, self.ignore_uri_case))
            && holds(self.method.as_ref(), request.method())
            && holds(self.scheme.as_ref(), request.scheme())
            && holds(self.authority.as_ref(), request.authority())
            && self
                .headers
                .iter()
                .all(|header| header.matches_header(request))
            && self
                .query_params
                .iter()
                .all(|parameter| parameter.matches_query(query))
    }
}

fn holds(condition: Option<&StringMatch>, part: &[u8]) -> bool {
    condition.is_none_or(|condition| condition.matches_part(part, false))
}

/// Path and query; the query is empty when there is none.
fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|&byte| byte == b'?') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, b""),
    }
}

/// A condition on one header or query parameter.
#[derive(Clone, Debug)]
pub(crate) struct NamedMatch {
    pub(crate) name: String,
    pub(crate) value: StringMatch,
    pub(crate) invert: bool,
}

impl NamedMatch {
    fn matches_header(&self, request: &dyn Request) -> bool {
        let mut found = false;
        if self.name == "host" {
            found = self.value.matches_part(request.authority(), false);
        } else {
            request.header_values(&self.name, &mut |value| {
                found = self.value.matches(value);
                found
            });
        }
        found != self.invert
    }

    fn matches_query(&self, query: &[u8]) -> bool {
        let found = query
            .split(|&byte| byte == b'&')
            .map(|pair| match pair.iter().position(|&byte| byte == b'=') {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &b""[..]),
            })
            .find(|&(name, _)| name == self.name.as_bytes())
            .is_some_and(|(_, value)| self.value.matches(value));
        found != self.invert
    }
}

/// A condition on one string.
#[derive(Clone, Debug)]
pub(crate) enum StringMatch {
    Exact(String),
    Prefix(String),
    Present,
    Regex(Pattern),
}

impl StringMatch {
    /// Whether a value that is there matches.
    pub(crate) fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => value == exact.as_bytes(),
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Present => true,
            Self::Regex(pattern) => pattern.regex.is_match(value),
        }
    }

    /// Whether a part of every request matches: empty means that the request does not have it.
    fn matches_part(&self, part: &[u8], ignore_case: bool) -> bool {
        match self {
            Self::Exact(exact) if ignore_case => part.eq_ignore_ascii_case(exact.as_bytes()),
            Self::Prefix(prefix) if ignore_case => part
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes())),
            Self::Present => !part.is_empty(),
            _ => self.matches(part),
        }
    }

    /// The condition as the document writes it.
    pub(crate) fn to_document(&self) -> document::StringMatch {
        match self {
            Self::Exact(text) => document::StringMatch::Exact(text.clone()),
            Self::Prefix(text) => document::StringMatch::Prefix(text.clone()),
            Self::Present => document::StringMatch::Present(true),
            Self::Regex(pattern) => document::StringMatch::Regex(pattern.text.clone()),
        }
    }
}

/// A regular expression that matches whole values.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: String,
    regex: Regex,
}

/// The patterns of one snapshot; each distinct one is compiled once and shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patterns {
    compiled: HashMap<String, Regex>,
}

impl Patterns {
    /// Compiles a pattern, or takes it from `earlier` ones; the error says what is wrong with it.
    pub(crate) fn compile(
        &mut self,
        text: String,
        earlier: Option<&Self>,
    ) -> Result<Pattern, String> {
        let known = self
            .compiled
            .get(&text)
            .or_else(|| earlier?.compiled.get(&text));
        let regex = known.map_or_else(|| compile(&text), |regex| Ok(regex.clone()))?;
        self.compiled
            .entry(text.clone())
            .or_insert_with(|| regex.clone());
        Ok(Pattern { text, regex })
    }
}

fn compile(text: &str) -> Result<Regex, String> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(format!(
            "a regular expression has at most {PATTERN_BYTES_MAX} bytes"
        ));
    }
    // Alone first: `a)|(b` is no expression, but would become one inside the anchors.
    let unicode = needs_unicode(text)?;
    build(&format!("^(?:{text})$"), unicode).map_err(|error| reason(&error))
}

/// Whether a pattern can only be read with Unicode; the error says that it is none.
fn needs_unicode(text: &str) -> Result<bool, String> {
    let needs = match build(text, false) {
        Ok(_) => Ok(false),
        Err(regex::Error::Syntax(_)) => build(text, true).map(|_| true),
        Err(error) => Err(error),
    };
    needs.map_err(|error| reason(&error))
}

fn build(text: &str, unicode: bool) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text)
        .unicode(unicode)
        .size_limit(PATTERN_COMPILED_BYTES_MAX)
        .dfa_size_limit(PATTERN_CACHE_BYTES_MAX)
        .build()
}

/// The last line of the crate's text: the others draw the pattern.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    format!(
        "not a regular expression: {}",
        last.trim_start_matches("error: ")
    )
}
