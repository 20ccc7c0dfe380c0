"""meshfast.resources.texts: names, hosts, addresses and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.resources.texts import CHECKS, CLAIM_CHECKS, duration_ms

ALL = {**CHECKS, **CLAIM_CHECKS}

ACCEPTED = {
    "address": ["127.0.0.1", "::1", "2001:db8::1"],
    "duration": ["10s", "1h", "250ms", "1m30s", "0s", "1.5s", "24h", "1000us", "1000000ns"],
    "endpoint_address": ["10.0.0.1", "::1", "db", "db.example.com", "unix:///run/a.sock"],
    "field_name": ["x-user", "X-User", "a!#$%&'*+.^_`|~0"],
    "field_value": ["a", "a b", "a\tb", "%", "a" * 4096],
    "gateway_name": ["edge", "infra/edge", "mesh", "edge.v2"],
    "header_name": ["x-user", "x_user", "cookie"],
    "host": [
        "payment",
        "payment.default",
        "Shop.Example.com",
        "example.com.",
        "a_b.example",
        "a." * 126 + "a",
    ],
    "host_pattern": ["*", "*.example.com", "shop.example.com", "127.0.0.1", "::1"],
    "host_port": ["a:1", "control.example.com:15012", "10.0.0.1:65535", "[::1]:80"],
    "instance": ["p1", "Host.example_1-2", "0", "a" * 253],
    "interval": ["1ms", "1s", "24h"],
    "label": ["a", "http-1", "a" * 63],
    "name": ["a", "a.b", "payment-v1"],
    "peer_address": ["10.0.0.1", "127.0.0.1", "2001:db8::1", "::1"],
    "service": ["payment"],
    "server_host": ["*", "shop/*", "./a.example.com", "*/*.example.com", "a.example.com"],
    "workload": ["payment-v1", "a.b"],
    "label_key": ["version", "app.kubernetes.io/name", "A_b.c-1", "a" * 63],
    "label_value": ["", "v2", "1.0_Beta-3", "a" * 63],
}
REFUSED = {
    "address": ["", "localhost", "127.0.0.1:80", "[::1]", "fe80::1%eth0", "127.1", "1.2.3.04"],
    "duration": [
        "",
        "10",
        "s",
        "10 s",
        "-1s",
        "1d",
        "0.5ms",
        "24h1s",
        "1s ",
        "1" * 40 + "s",
        "\u0661s",
    ],
    "endpoint_address": ["", "a:80", "*.a", "unix://a", "unix:///", "unix:///" + "a" * 107, "a/b"],
    "gateway_name": ["", "/", "a/", "/a", "a/b/c", "A", "a b"],
    "field_name": ["", "a b", ":path", "a:", "\u00e9", "a" * 257],
    "field_value": ["", " a", "a ", "a\nb", "a\0b", "\u00e9", "a" * 4097],
    "header_name": ["", "X-User", "a b", ":path", "a:", "é"],
    "host": ["", ".", "*", "*.a", "a..b", "-a", "a-", "a:80", "a" * 64, "a." * 127 + "a", "é.com"],
    "host_pattern": ["", "*.", "**", "*a.com", "a.*", "*.*.com", "a:80", "*:80"],
    "host_port": ["", "xyz", "a:", ":1", "a:0", "a:65536", "a:+1", "::1:80", "[a]:1", "[127.1]:1"],
    "instance": ["", ".", "-a", "_a", "a/b", "a b", "a\n", "a\x1b[31m", "é", "a" * 254],
    "interval": ["", "0", "0s", "0.1ms", "25h", "5"],
    "label": ["", "A", "a_b", "-a", "a-", "a.b", "a" * 64],
    "name": ["", "A", ".", "a..b", "a/b", "a" * 64],
    "peer_address": [
        "",
        "host",
        "300.1.1.1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "169.254.169.254",
        "fe80::1",
        "255.255.255.255",
        "10.0.0.1:80",
    ],
    "service": ["", "A B", "a.b"],
    "server_host": ["", "a/b/c", "/a", "a/", "**/a", "A B/c"],
    "workload": ["", "A B", "payment-V2"],
    "label_key": ["", "a b", "/a", "a/", "a/b/c", "A/b", "-a", "a\n", "é", "a" * 64],
    "label_value": [" ", "v 2", "-a", "a.", "a\x01\n", "é", "a" * 64],
}


@pytest.mark.parametrize(
    ("check", "text"), [(check, text) for check, texts in ACCEPTED.items() for text in texts]
)
def test_accepts(check: str, text: str) -> None:
    assert ALL[check](text) is None


@pytest.mark.parametrize(
    ("check", "text"), [(check, text) for check, texts in REFUSED.items() for text in texts]
)
def test_refuses_and_says_what_is_expected(check: str, text: str) -> None:
    assert ALL[check](text)


def test_every_check_has_cases() -> None:
    assert set(ACCEPTED) == set(REFUSED) == set(ALL)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("0s", 0), ("1ms", 1), ("1h30m", 5_400_000), ("1.5s", 1500), ("2s500ms", 2500), (".5s", 500)],
)
def test_reads_durations_in_milliseconds(text: str, milliseconds: int) -> None:
    assert duration_ms(text) == milliseconds


@given(st.integers(1, 24 * 3_600_000))
def test_reads_any_whole_number_of_milliseconds(milliseconds: int) -> None:
    assert duration_ms(f"{milliseconds}ms") == milliseconds
    assert duration_ms(f"{milliseconds / 1000:.3f}s") == milliseconds


@given(st.sampled_from(sorted(ALL)), st.text(max_size=300))
def test_no_text_makes_a_check_raise(check: str, text: str) -> None:
    complaint = ALL[check](text)
    assert complaint is None or complaint
