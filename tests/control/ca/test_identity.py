"""Check 4 of a certificate request: a SPIFFE id has one spelling, and few are accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.control.ca import Refusal, RefusedError, SpiffeId

GOOD = "spiffe://cluster.local/ns/default/sa/payment"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "spiffe://a/ns/a/sa/b",
        f"spiffe://{'d' * 255}/ns/{'n' * 63}/sa/{'s' * 63}",
        "spiffe://under_score.and-dash/ns/0/sa/9",
    ],
)
def test_takes_an_id_and_writes_it_the_same_way(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///ns/default/sa/payment",
        "https://cluster.local/ns/default/sa/payment",
        "SPIFFE://cluster.local/ns/default/sa/payment",
        "spiffe:/cluster.local/ns/default/sa/payment",
        "spiffe://cluster.local",
        "spiffe://cluster.local/",
        "spiffe://Cluster.local/ns/default/sa/payment",
        "spiffe://clüster.local/ns/default/sa/payment",
        f"spiffe://{'d' * 256}/ns/default/sa/payment",
        "spiffe://user@cluster.local/ns/default/sa/payment",
        "spiffe://cluster.local:443/ns/default/sa/payment",
        "spiffe://cluster.local?a/ns/default/sa/payment",
        GOOD + "?q=1",
        GOOD + "#f",
        GOOD + "/",
        GOOD + "/extra",
        GOOD + "\n",
        GOOD + "\0",
        " " + GOOD,
        "spiffe://cluster.local//default/sa/payment",
        "spiffe://cluster.local/ns/../sa/payment",
        "spiffe://cluster.local/ns/./sa/payment",
        "spiffe://cluster.local/ns/def%61ult/sa/payment",
        "spiffe://cluster.local/ns/default/sa/pay ment",
        "spiffe://cluster.local/ns/default/sa/Payment",
        "spiffe://cluster.local/ns/default/sa/-payment",
        "spiffe://cluster.local/ns/default/sa/" + "p" * 64,
        "spiffe://cluster.local/sa/payment/ns/default",
        "spiffe://cluster.local/payment",
        "spiffe://cluster.local/ns/default/sa/" + "p" * 2048,
        "\udc80" + GOOD,
    ],
)
def test_refuses_every_other_spelling(text: str) -> None:
    with pytest.raises(RefusedError) as refused:
        SpiffeId.parse(text)
    assert refused.value.code is Refusal.NAME


@given(st.text(alphabet="spife:/nsa.%?#@ \0ab-_A", max_size=60).map(lambda t: "spiffe://" + t))
def test_an_id_that_is_taken_has_one_spelling(text: str) -> None:
    try:
        parsed = SpiffeId.parse(text)
    except RefusedError:
        return
    assert str(parsed) == text
