"""The text of a join token: what is written is read, and nothing of it is shown."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.discovery import JoinToken, TokenError
from meshfast.discovery.token import TOKEN_CHARACTERS_MAX

TOKEN = JoinToken(
    control="127.0.0.1:15012",
    root=bytes(range(256)),
    id="00ff00ff00ff00ff",
    secret="s3cr3t-s3cr3t",
    service="payment",
    namespace="default",
    service_account="pay-account",
    trust_domain="cluster.local",
)


def written(**changes: object) -> str:
    data = TOKEN.text().removeprefix("mf1.")
    fields = json.loads(base64.urlsafe_b64decode(data + "=" * (-len(data) % 4)))
    encoded = base64.urlsafe_b64encode(json.dumps(fields | changes).encode())
    return "mf1." + encoded.decode().rstrip("=")


def test_what_is_written_is_read() -> None:
    assert JoinToken.parse(TOKEN.text()) == TOKEN
    assert JoinToken.parse(f"  {TOKEN.text()}\n") == TOKEN
    assert TOKEN.identity == "spiffe://cluster.local/ns/default/sa/pay-account"


def test_it_is_one_word_that_a_shell_leaves_alone() -> None:
    assert set(TOKEN.text()) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    )


def test_a_field_of_a_later_version_is_left_alone() -> None:
    assert JoinToken.parse(written(later=1)) == TOKEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mf1.",
        "mf2." + TOKEN.text()[4:],
        TOKEN.text()[4:],
        TOKEN.text()[:-3],
        TOKEN.text() + "!",
        TOKEN.text().replace("mf1.", "mf1. "),
        "mf1.bnVsbA",
        "mf1.é",
        written(service="Payment"),
        written(service="payment\n"),
        written(namespace=""),
        written(service_account="a/b"),
        written(trust_domain="cluster.local/x"),
        written(control=""),
        written(control="xyz"),
        written(secret=7),
        written(root="*"),
        written(root=""),
        "mf1." + "A" * TOKEN_CHARACTERS_MAX,
    ],
)
def test_refuses_anything_else_without_quoting_it(text: str) -> None:
    with pytest.raises(TokenError) as refused:
        JoinToken.parse(text)
    assert TOKEN.secret not in str(refused.value)
    assert refused.value.__cause__ is None


@given(st.text(max_size=80))
def test_no_text_does_anything_else(text: str) -> None:
    with pytest.raises(TokenError):
        JoinToken.parse("mf1." + text)


def test_the_secret_does_not_show() -> None:
    assert TOKEN.secret not in repr(TOKEN)
    assert TOKEN.secret not in f"{TOKEN}"
