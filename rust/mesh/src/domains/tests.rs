//! Tests of the order in which domains are tried, and of what a domain may be.
#![allow(clippy::unwrap_used)]

use super::{Domain, Domains};

/// Domains whose virtual hosts are numbered in the order given.
fn domains(texts: &[&str]) -> Domains {
    let number = |at: usize| u32::try_from(at).unwrap();
    Domains::new(texts.iter().enumerate().map(|(at, text)| {
        (
            Domain::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")),
            number(at),
        )
    }))
}

/// Which of `texts` takes each host.
fn assert_found(texts: &[&str], expected: &[(&str, Option<&str>)]) {
    let domains = domains(texts);
    for (host, domain) in expected {
        let found = domains.find(host.as_bytes()).map(|at| texts[at]);
        assert_eq!(found, *domain, "{host:?}");
    }
}

#[test]
fn prefers_exact_then_longest_suffix_then_longest_prefix_then_any() {
    assert_found(
        &[
            "*",
            "shop.*",
            "shop.example.*",
            "*.com",
            "*.example.com",
            "*-bar.example.com",
            "shop.example.com",
        ],
        &[
            ("shop.example.com", Some("shop.example.com")),
            ("other.example.com", Some("*.example.com")),
            ("foo-bar.example.com", Some("*-bar.example.com")),
            ("shop.other.com", Some("*.com")),
            ("shop.example.org", Some("shop.example.*")),
            ("shop.org", Some("shop.*")),
            ("org", Some("*")),
            ("", Some("*")),
        ],
    );
}

#[test]
fn takes_nothing_where_no_domain_fits() {
    assert_found(
        &["shop.example.com", "*.internal", "db.*"],
        &[
            ("example.com", None),
            ("shop.example.co", None),
            ("internal", None),
            ("", None),
        ],
    );
    assert_eq!(domains(&[]).find(b"shop"), None);
}

#[test]
fn a_wildcard_stands_for_at_least_one_byte() {
    assert_found(
        &["*.example.com", "*-bar.example.org", "shop.*"],
        &[
            (".example.com", None),
            ("example.com", None),
            ("a.example.com", Some("*.example.com")),
            ("-bar.example.org", None),
            ("a-bar.example.org", Some("*-bar.example.org")),
            ("shop.", None),
            ("shop.a", Some("shop.*")),
        ],
    );
}

#[test]
fn ignores_case_port_and_one_trailing_dot() {
    assert_found(
        &["Shop.Example.COM", "*.Internal.", "DB.*"],
        &[
            ("shop.example.com", Some("Shop.Example.COM")),
            ("SHOP.EXAMPLE.COM:8080", Some("Shop.Example.COM")),
            ("shop.example.com.", Some("Shop.Example.COM")),
            ("shop.example.com.:80", Some("Shop.Example.COM")),
            ("shop.example.com:", Some("Shop.Example.COM")),
            ("shop.example.com..", None),
            ("A.INTERNAL:1", Some("*.Internal.")),
            ("Db.Local.:5432", Some("DB.*")),
        ],
    );
}

#[test]
fn compares_ipv6_literals_by_value() {
    assert_found(
        &["[2001:DB8:0::1]", "::1", "10.0.0.1", "::ffff:192.0.2.1"],
        &[
            ("[2001:db8::1]", Some("[2001:DB8:0::1]")),
            ("[2001:db8:0:0:0:0:0:1]:443", Some("[2001:DB8:0::1]")),
            ("[::1]:80", Some("::1")),
            ("[0:0:0:0:0:0:0:1]", Some("::1")),
            ("::1", None),
            ("10.0.0.1:80", Some("10.0.0.1")),
            ("[::ffff:c000:201]", Some("::ffff:192.0.2.1")),
            ("[::2]", None),
            ("[::1", None),
        ],
    );
}

#[test]
fn a_host_too_long_for_a_name_is_left_to_any() {
    let fits = format!("{}.example.com", "a".repeat(243));
    let too_long = format!("a{fits}");
    assert_eq!(fits.len(), 255);
    assert_found(
        &["*.example.com", "*"],
        &[(&fits, Some("*.example.com")), (&too_long, Some("*"))],
    );
    assert_found(&["*.example.com", "aaa*"], &[(&too_long, None)]);
}

#[test]
fn finds_each_of_many_domains() {
    let texts: Vec<String> = (0..1000)
        .flat_map(|i| {
            [
                format!("s{i}.mesh"),
                format!("*.s{i}.mesh"),
                format!("s{i}.*"),
            ]
        })
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let all = domains(&texts);
    for i in 0..1000 {
        assert_eq!(all.find(format!("s{i}.mesh").as_bytes()), Some(3 * i));
        assert_eq!(
            all.find(format!("a.s{i}.mesh:80").as_bytes()),
            Some(3 * i + 1)
        );
        assert_eq!(all.find(format!("s{i}.x").as_bytes()), Some(3 * i + 2));
    }
}

#[test]
fn refuses_what_could_never_match_as_meant() {
    let long = "a".repeat(256);
    for text in [
        "",
        "a*b",
        "*a*",
        "**",
        "*.*",
        "a b",
        "a/b",
        "user@a",
        "a%2e",
        &long,
        "é.example.com",
        "[::1",
        ".*.com",
    ] {
        assert!(Domain::parse(text).is_err(), "{text:?}");
    }
    for text in ["shop:80", "shop:", "[::1]:80", "shop:x"] {
        assert!(
            Domain::parse(text).unwrap_err().contains("has no port"),
            "{text:?}"
        );
    }
}

#[test]
fn two_spellings_of_a_domain_are_one() {
    for (one, other) in [
        ("A.b", "a.B."),
        ("[::1]", "0:0:0:0:0:0:0:1"),
        ("*.A", "*.a."),
        ("A.*", "a.*"),
    ] {
        assert_eq!(Domain::parse(one), Domain::parse(other));
    }
    assert_ne!(Domain::parse("a"), Domain::parse("*a"));
}
