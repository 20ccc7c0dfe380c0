//! Changes to the fields of a head: what a route or one of its destinations removes, sets and adds.
//!
//! Within one set of edits, removing comes first, then setting, then adding, as in Envoy. A name is
//! compared without case; a field keeps the spelling it was given. What belongs to a hop, decides
//! framing or routing, or tells who somebody is cannot be edited, and is refused with the document.
//! Not here: bytes of heads. Tests: below.

/// The edits of a route or a destination for one direction; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderEdits {
    pub(crate) set: Vec<Field>,
    pub(crate) add: Vec<Field>,
    pub(crate) remove: Vec<String>,
}

/// A field that is written as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// A token.
    pub name: String,
    /// A field value without white space around it.
    pub value: String,
}

impl HeaderEdits {
    /// Whether a field that was there before does not stay.
    #[must_use]
    pub fn takes_away(&self, name: &[u8]) -> bool {
        let is_it = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        self.remove.iter().any(|it| is_it(it)) || self.set.iter().any(|it| is_it(&it.name))
    }

    /// The fields that come in their place, and those that come in addition.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        self.set.iter().chain(&self.add)
    }
}

/// What no rule edits, in lower case: hop-by-hop (RFC 9110 7.6.1, RFC 7540 3.2.1), framing (with
/// `expect`, which holds back a body), routing, and identity, which only a proxy may tell.
///
/// The resources of an operator are judged by the same table in `meshfast.resources.relations`.
pub const NOT_EDITED: [&str; 14] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
];

/// Internal to meshfast: what begins so is not edited either.
pub const NOT_EDITED_PREFIX: &str = "x-meshfast-";

/// Why a field of this name cannot be edited.
pub(crate) fn name_problem(name: &str) -> Option<&'static str> {
    if name.starts_with(':') {
        return Some("pseudo headers are not edited");
    }
    if name.is_empty() || !name.bytes().all(is_token_byte) {
        return Some("a header name is a token (RFC 9110 5.6.2)");
    }
    // Some servers read an underscore as a dash.
    let read = name.to_ascii_lowercase().replace('_', "-");
    if NOT_EDITED.contains(&read.as_str()) || read.starts_with(NOT_EDITED_PREFIX) {
        return Some("this header belongs to the proxy and is not edited");
    }
    None
}

/// Whether text may stand as a field value (RFC 9110 5.5).
pub(crate) fn is_field_value(value: &str) -> bool {
    let is_inside = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    let is_blank = |byte: Option<u8>| matches!(byte, Some(b' ' | b'\t'));
    value.bytes().all(is_inside)
        && !is_blank(value.bytes().next())
        && !is_blank(value.bytes().next_back())
}

/// RFC 9110 5.6.2.
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: &str) -> Field {
        Field {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn what_is_set_or_removed_does_not_stay_and_what_is_added_to_does() {
        let edits = HeaderEdits {
            set: vec![field("X-Set", "1")],
            add: vec![field("x-add", "2")],
            remove: vec!["x-remove".to_owned()],
        };
        for (name, is_gone) in [
            ("x-set", true),
            ("X-REMOVE", true),
            ("x-add", false),
            ("x-other", false),
        ] {
            assert_eq!(edits.takes_away(name.as_bytes()), is_gone, "{name}");
        }
        let names: Vec<&str> = edits.fields().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["X-Set", "x-add"]);
    }

    #[test]
    fn refuses_the_names_that_are_the_proxys() {
        for name in [
            "Host",
            "content-length",
            "Content_Length",
            "Transfer-Encoding",
            "connection",
            "TE",
            "upgrade",
            "Expect",
            "HTTP2-Settings",
            "x-meshfast-port",
            "X-Meshfast-",
            "X-Forwarded-Client-Cert",
            ":path",
            "",
            "x a",
            "x-ü",
            "x:",
        ] {
            assert!(name_problem(name).is_some(), "{name:?}");
        }
        for name in [
            "x-a",
            "X-Meshfast",
            "server",
            "x-forwarded-for",
            "!#$%&'*+-.^_`|~",
        ] {
            assert_eq!(name_problem(name), None, "{name:?}");
        }
    }

    #[test]
    fn refuses_values_that_would_end_their_line_or_not_come_back_the_same() {
        for value in [
            "a\r\nb: c",
            "a\n",
            "\0",
            "\x7f",
            " a",
            "a ",
            "\ta",
            "a\t",
            " ",
        ] {
            assert!(!is_field_value(value), "{value:?}");
        }
        for value in ["", "a", "a b\tc", "%!\"", "grün"] {
            assert!(is_field_value(value), "{value:?}");
        }
    }
}
