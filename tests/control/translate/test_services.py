"""Services from workloads: what has one name is one port, whatever its number at each workload."""

from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_struct

from meshfast.control.registry import ServiceRecord
from meshfast.control.translate import mesh_services
from meshfast.discovery import Port
from meshfast.resources.kinds import Protocol
from tests.control.translate.made import workload


def shape(*workloads: object) -> dict[str, list[tuple[int, str, list[str]]]]:
    return {
        host: [
            (port.number, port.name, [one.address for one in port.workloads])
            for port in service.ports
        ]
        for host, service in mesh_services(workloads).items()  # type: ignore[arg-type]
    }


def test_a_service_exists_when_a_workload_registers_for_it() -> None:
    assert shape() == {}
    assert shape(workload(at=1), workload("order", namespace="shop", at=2)) == {
        "order.shop": [(8080, "port-8080", ["10.0.0.2:15006"])],
        "payment.default": [(8080, "port-8080", ["10.0.0.1:15006"])],
    }


def test_workloads_of_one_port_on_different_numbers_serve_one_port() -> None:
    both = shape(workload("payment", Port(8081), at=1), workload("payment", Port(8080), at=2))
    assert both == {"payment.default": [(8080, "port-8080", ["10.0.0.1:15006", "10.0.0.2:15006"])]}


def test_named_ports_are_told_apart_by_name() -> None:
    found = shape(
        workload("payment", Port(8081, "http"), Port(9091, "admin"), at=1),
        workload("payment", Port(8082, "http"), at=2),
    )
    assert found == {
        "payment.default": [
            (8081, "http", ["10.0.0.1:15006", "10.0.0.2:15006"]),
            (9091, "admin", ["10.0.0.1:15006"]),
        ]
    }


def test_several_ports_without_names_are_told_apart_by_number() -> None:
    found = shape(
        workload("payment", Port(1), Port(2), at=1), workload("payment", Port(2), Port(3), at=2)
    )
    assert [(number, len(addresses)) for number, _, addresses in found["payment.default"]] == [
        (1, 1),
        (2, 2),
        (3, 1),
    ]


def test_two_names_for_one_number_are_one_port() -> None:
    found = shape(
        workload("payment", Port(80, "http"), at=1), workload("payment", Port(80, "web"), at=2)
    )
    assert found == {"payment.default": [(80, "http", ["10.0.0.1:15006", "10.0.0.2:15006"])]}


def test_the_later_registration_of_an_address_counts() -> None:
    old = workload(at=1, instance="old")
    new = workload(at=1, instance="new")
    [service] = mesh_services([old, new]).values()
    assert [one.instance for one in service.ports[0].workloads] == ["new"]


def test_one_without_ports_serves_nothing() -> None:
    assert shape(replace_struct(workload(), ports=())) == {}


def test_protocols_are_istio_s_words() -> None:
    found = mesh_services(
        [workload("db", Port(5432, "pg", "tcp"), Port(6379, "r", "redis"), Port(80, "h", "grpc"))]
    )
    protocols = {port.number: port.protocol for port in found["db.default"].ports}
    assert protocols == {80: Protocol.HTTP, 5432: Protocol.TCP, 6379: Protocol.TCP}


def test_an_endpoint_carries_the_number_of_its_own_workload() -> None:
    [service] = mesh_services(
        [
            workload("payment", Port(8082, "http"), Port(9092, "admin"), at=1),
            workload("payment", Port(8081, "web"), Port(9091, "admin"), at=2),
            workload("payment", Port(8081, "http"), at=3),
        ]
    ).values()
    assert {
        (port.number, port.name): [(one.address, one.port) for one in port.endpoints()]
        for port in service.ports
    } == {
        (8081, "http"): [
            ("10.0.0.1:15006", 8082),
            ("10.0.0.3:15006", 8081),
            ("10.0.0.2:15006", 8081),
        ],
        (9091, "admin"): [("10.0.0.1:15006", 9092), ("10.0.0.2:15006", 9091)],
    }


@pytest.mark.parametrize(
    "ports",
    [
        [[Port(8081)], [Port(8080)]],
        [[Port(8081, "http", "http")], [Port(8080, "http", "http")]],
        [[Port(8081, "http"), Port(9091, "db", "tcp")], [Port(8082, "http")], [Port(9091, "web")]],
        [[Port(1), Port(2)], [Port(2), Port(3)]],
        [[Port(80, "http", "http")], [Port(80, "web", "tcp")]],
    ],
)
def test_a_service_that_has_left_has_the_very_ports_that_it_had(ports: list[list[Port]]) -> None:
    workloads = [workload("payment", *its, at=at) for at, its in enumerate(ports)]
    record = ServiceRecord.of(workloads)
    assert record is not None
    [served] = mesh_services(workloads, [record]).values()
    [left] = mesh_services([], [record]).values()
    assert not left.is_served
    assert left.ports == tuple(replace(port, served=()) for port in served.ports)


def test_endpoints_name_who_answers_there() -> None:
    labelled = workload(at=1, labels={"version": "v2", "app": "pay"}, healthy=True)
    [service] = mesh_services([labelled, workload(at=2)]).values()
    first, second = service.ports[0].endpoints()
    assert (first.address, first.weight, first.healthy) == ("10.0.0.1:15006", 1, True)
    assert (first.workload.name, first.workload.app, first.workload.revision) == (
        "payment-1",
        "pay",
        "v2",
    )
    assert first.workload.principal == "spiffe://cluster.local/ns/default/sa/payment"
    assert (second.workload.app, second.workload.revision, second.healthy) == (
        "payment",
        "",
        False,
    )
