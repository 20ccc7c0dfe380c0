//! Tests of conditions, one kind after the other.
#![allow(clippy::unwrap_used)]

use super::{Match, NamedMatch, Patterns, StringMatch};
use crate::example::Get;

fn regex(text: &str) -> StringMatch {
    StringMatch::Regex(Patterns::default().compile(text.to_owned(), None).unwrap())
}

fn exact(text: &str) -> StringMatch {
    StringMatch::Exact(text.to_owned())
}

fn prefix(text: &str) -> StringMatch {
    StringMatch::Prefix(text.to_owned())
}

fn named(name: &str, value: StringMatch, invert: bool) -> NamedMatch {
    NamedMatch {
        name: name.to_owned(),
        value,
        invert,
    }
}

fn header(value: StringMatch, invert: bool) -> Match {
    Match {
        headers: vec![named("x-user", value, invert)],
        ..Match::default()
    }
}

fn query(value: StringMatch, invert: bool) -> Match {
    Match {
        query_params: vec![named("q", value, invert)],
        ..Match::default()
    }
}

#[test]
fn a_match_without_conditions_takes_everything() {
    assert!(Match::default().matches(&Get::new("", "")));
}

#[test]
fn all_conditions_of_a_match_must_hold() {
    let both = Match {
        uri: Some(prefix("/api")),
        method: Some(exact("GET")),
        authority: Some(exact("shop:80")),
        scheme: Some(exact("http")),
        ..Match::default()
    };
    let request = Get::new("shop:80", "/api/x");
    assert!(both.matches(&request));
    assert!(!both.matches(&Get {
        method: "POST",
        ..request.clone()
    }));
    assert!(!both.matches(&Get {
        path: "/".to_owned(),
        ..request.clone()
    }));
    assert!(!both.matches(&Get {
        authority: "Shop:80".to_owned(),
        ..request.clone()
    }));
    assert!(
        !Match {
            scheme: Some(exact("https")),
            ..both
        }
        .matches(&request)
    );
}

#[test]
fn uri_is_the_path_without_the_query() {
    let uri = |uri| Match {
        uri: Some(uri),
        ..Match::default()
    };
    for (condition, path, expected) in [
        (exact("/x"), "/x?a=/y", true),
        (exact("/x"), "/x?", true),
        (exact("/x"), "/x/", false),
        (exact("/x?a=1"), "/x?a=1", false),
        (prefix("/x"), "/xyz", true),
        (prefix("/x/"), "/x", false),
        (prefix(""), "/", true),
        (exact("/a b"), "/a%20b", false),
        (exact("/X"), "/x", false),
        (regex("/v[0-9]+/.*"), "/v1/a?b", true),
        (regex("/v[0-9]+"), "/v1/a", false),
        (StringMatch::Present, "/", true),
        (StringMatch::Present, "?q", false),
    ] {
        let text = format!("{condition:?} on {path}");
        assert_eq!(
            uri(condition).matches(&Get::new("a", path)),
            expected,
            "{text}"
        );
    }
}

#[test]
fn ignores_uri_case_for_exact_and_prefix_only() {
    let uri = |uri| Match {
        uri: Some(uri),
        ignore_uri_case: true,
        ..Match::default()
    };
    for (condition, path, expected) in [
        (exact("/Shop"), "/sHOP", true),
        (exact("/Shop"), "/sHOPs", false),
        (prefix("/Shop/"), "/SHOP/cart", true),
        (prefix("/Shop/"), "/SHOP", false),
        (regex("/Shop"), "/shop", false),
        (regex("/Shop"), "/Shop", true),
    ] {
        let text = format!("{condition:?} on {path}");
        assert_eq!(
            uri(condition).matches(&Get::new("a", path)),
            expected,
            "{text}"
        );
    }
}

#[test]
fn any_line_of_a_repeated_header_may_match() {
    let request = Get::new("a", "/")
        .with("x-user", "ann")
        .with("X-User", "bob");
    assert!(header(exact("ann"), false).matches(&request));
    assert!(header(exact("bob"), false).matches(&request));
    assert!(!header(exact("ann,bob"), false).matches(&request));
    assert!(!header(exact("ann"), true).matches(&request));
    assert!(!header(exact("bob"), true).matches(&request));
    assert!(header(exact("eve"), true).matches(&request));
}

#[test]
fn an_absent_header_matches_only_inverted() {
    let request = Get::new("a", "/");
    for value in [
        exact("ann"),
        exact(""),
        prefix(""),
        regex(".*"),
        StringMatch::Present,
    ] {
        assert!(!header(value.clone(), false).matches(&request), "{value:?}");
        assert!(header(value.clone(), true).matches(&request), "{value:?}");
    }
}

#[test]
fn an_empty_header_is_present() {
    let request = Get::new("a", "/").with("x-user", "");
    assert!(header(StringMatch::Present, false).matches(&request));
    assert!(header(exact(""), false).matches(&request));
    assert!(!header(StringMatch::Present, true).matches(&request));
}

#[test]
fn host_means_the_authority_even_beside_another_host_line() {
    let host = |value, invert| Match {
        headers: vec![named("host", value, invert)],
        ..Match::default()
    };
    let request = Get::new("shop", "/").with("host", "other");
    assert!(host(exact("shop"), false).matches(&request));
    assert!(!host(exact("other"), false).matches(&request));
    assert!(host(StringMatch::Present, true).matches(&Get::new("", "/")));
}

#[test]
fn query_parameters_are_compared_as_sent() {
    for (condition, path, expected) in [
        (exact("1"), "/?q=1", true),
        (exact("1"), "/?a=2&q=1&b", true),
        (exact("1"), "/?q=2&q=1", false),
        (exact("a=b"), "/?q=a=b", true),
        (exact(""), "/?q", true),
        (exact(""), "/?q=", true),
        (exact("a b"), "/?q=a%20b", false),
        (exact("a%20b"), "/?q=a%20b", true),
        (exact("1"), "/?%71=1", false),
        (exact("1"), "/?Q=1", false),
        (exact("1"), "/?qq=1", false),
        (exact("1"), "/", false),
        (StringMatch::Present, "/?q", true),
        (StringMatch::Present, "/?", false),
        (regex("[0-9]+"), "/?q=12", true),
        (prefix("v"), "/?q=v2", true),
    ] {
        let text = format!("{condition:?} on {path}");
        let request = Get::new("a", path);
        assert_eq!(
            query(condition.clone(), false).matches(&request),
            expected,
            "{text}"
        );
        assert_eq!(
            query(condition, true).matches(&request),
            !expected,
            "inverted {text}"
        );
    }
}

#[test]
fn a_regex_matches_the_whole_value() {
    for (pattern, value, expected) in [
        ("a|ab", "ab", true),
        ("a|ab", "abc", false),
        ("", "", true),
        ("", "a", false),
        ("(?i)a", "A", true),
        ("(?m)a$", "a\nb", false),
        ("a", "a\n", false),
        (".*", "a\nb", false),
        ("(?s).*", "a\nb", true),
    ] {
        assert_eq!(
            regex(pattern).matches(value.as_bytes()),
            expected,
            "{pattern} on {value:?}"
        );
    }
}

#[test]
fn regex_classes_are_ascii_as_in_re2() {
    assert!(!regex(r"\d").matches("٣".as_bytes()));
    assert!(!regex(r"\w+").matches("é".as_bytes()));
    assert!(regex(r"\w+").matches(b"e_1"));
    assert!(regex(".*").matches(b"\xff\xfe"));
    assert!(regex("é+").matches("éé".as_bytes()));
    assert!(regex("[é]").matches("é".as_bytes()));
    assert!(regex(r"\p{Greek}").matches("λ".as_bytes()));
}

#[test]
fn refuses_patterns_that_are_not_whole_or_too_large() {
    let compile = |text: &str| {
        Patterns::default()
            .compile(text.to_owned(), None)
            .map(|_| ())
    };
    for pattern in [
        "a)|(b",
        "(",
        "[",
        "a{2,1}",
        r"\C",
        "(?=a)",
        "(?x)a # comment",
        "*",
    ] {
        let error = compile(pattern).unwrap_err();
        assert!(
            error.starts_with("not a regular expression: "),
            "{pattern}: {error}"
        );
    }
    assert!(compile(&"a".repeat(super::PATTERN_BYTES_MAX)).is_ok());
    assert!(compile(&"a".repeat(super::PATTERN_BYTES_MAX + 1)).is_err());
    assert!(
        compile("((a{100}){100}){100}")
            .unwrap_err()
            .contains("size limit")
    );
    assert!(compile(r"(\p{L}{100}){100}").is_err());
}

#[test]
fn one_pattern_is_compiled_once_and_kept_only_while_used() {
    let mut earlier = Patterns::default();
    for text in ["a+", "a+", "b+"] {
        earlier.compile(text.to_owned(), None).unwrap();
    }
    assert_eq!(earlier.compiled.len(), 2);
    let mut later = Patterns::default();
    let pattern = later.compile("a+".to_owned(), Some(&earlier)).unwrap();
    assert!(StringMatch::Regex(pattern).matches(b"aa"));
    assert_eq!(later.compiled.keys().collect::<Vec<_>>(), ["a+"]);
}
