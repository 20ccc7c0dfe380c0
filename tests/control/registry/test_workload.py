"""What may be registered: names, addresses, ports."""

import pytest
from msgspec.structs import replace

from meshfast.control.registry import WorkloadRecord, claim_problem
from meshfast.control.registry.workload import is_instance
from meshfast.discovery import Port, Registration

SAID = Registration(
    workload="payment-v1",
    namespace="default",
    service="payment",
    address="127.0.0.1:15006",
    ports=[Port(8080, "http", "http"), Port(9090)],
)


def problem(**changes: object) -> str | None:
    return claim_problem(replace(SAID, **changes), "default", "payment")


def test_what_the_certificate_covers_is_taken() -> None:
    assert problem() is None
    assert problem(ports=[]) is None
    assert problem(address="[fd00::1]:15006") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"namespace": "shop"}, "namespace"),
        ({"service": "order"}, "service"),
        ({"workload": "a b"}, "workload"),
        ({"address": "payment:15006"}, "ip:port"),
        ({"address": "fd00::1:15006"}, "ip:port"),
        ({"address": "[127.0.0.1]:15006"}, "ip:port"),
        ({"address": "[fe80::1%eth0]:15006"}, "ip:port"),
        ({"address": "[::]:15006"}, "ip:port"),
        ({"address": "[ff02::1]:15006"}, "ip:port"),
        ({"address": "127.0.0.1:+1"}, "ip:port"),
        ({"address": "127.0.0.1:٣"}, "ip:port"),
        ({"address": ":15006"}, "ip:port"),
        ({"address": "169.254.169.254:80"}, "ip:port"),
        ({"labels": {"version": "v 2"}}, "label"),
        ({"labels": {"a": "\x01\n"}}, "label"),
        ({"labels": {"a\x1b[31m": ""}}, "label"),
        ({"ports": [Port(1), Port(1)]}, "twice"),
        ({"ports": [Port(1, "a/b")]}, "port"),
        ({"ports": [Port(1, "", "x" * 17)]}, "protocol"),
    ],
    ids=str,
)
def test_everything_else_is_named(changes: dict[str, object], expected: str) -> None:
    found = problem(**changes)
    assert found is not None
    assert expected in found


@pytest.mark.parametrize("text", ["p1", "Host.example_1-2", "0", "a" * 253])
def test_instances(text: str) -> None:
    assert is_instance(text)


@pytest.mark.parametrize("text", ["", ".", "..", "-a", "a/b", "a b", "a\n", "é", "a" * 254])
def test_what_is_no_instance(text: str) -> None:
    assert not is_instance(text)


def test_a_record_joins_what_is_said_with_what_is_known() -> None:
    record = WorkloadRecord.of(replace(SAID, healthy=True), "p1", "spiffe://x/ns/a/sa/b")
    assert (record.instance, record.identity, record.healthy) == (
        "p1",
        "spiffe://x/ns/a/sa/b",
        True,
    )
    assert record.ports == tuple(SAID.ports)
