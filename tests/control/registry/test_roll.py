"""The roll: endpoints of identities and ports of services, among few workloads and among many."""

import random

from msgspec.structs import replace

from meshfast.control.registry import ServiceRecord, WorkloadRecord, service_key
from meshfast.control.registry.roll import Roll
from meshfast.discovery import Port

PAYMENT = service_key("default", "payment")


def workload(number: int, *ports: int, account: str = "payment") -> WorkloadRecord:
    return WorkloadRecord(
        instance=f"p{number}",
        workload="payment-v1",
        namespace="default",
        service="payment",
        identity=f"spiffe://cluster.local/ns/default/sa/{account}",
        address=f"10.0.0.{number}:15006",
        ports=tuple(Port(port) for port in ports),
    )


def enter(roll: Roll, record: WorkloadRecord, former: WorkloadRecord | None = None) -> None:
    roll.enter(record.key, record, former)


def endpoints(roll: Roll, account: str = "payment", besides: str = "") -> int:
    return roll.endpoints(f"spiffe://cluster.local/ns/default/sa/{account}", besides=besides)


def test_endpoints_are_those_of_an_identity_under_other_keys() -> None:
    roll = Roll()
    enter(roll, workload(1, 80, 81))
    enter(roll, workload(2, 80))
    enter(roll, workload(3, 80, account="order"))
    assert (endpoints(roll), endpoints(roll, "order"), endpoints(roll, "other")) == (3, 1, 0)
    assert endpoints(roll, besides=workload(1).key) == 1
    assert endpoints(roll, besides=workload(3, account="order").key) == 3
    roll.leave(workload(1).key)
    roll.leave(workload(1).key)
    assert endpoints(roll) == 1


def test_a_workload_that_is_to_have_fewer_has_all_until_it_is_written() -> None:
    roll = Roll()
    enter(roll, workload(1, 80, 81))
    enter(roll, workload(1), former=workload(1, 80, 81))
    assert endpoints(roll) == 2
    assert roll.service(PAYMENT) is None
    enter(roll, workload(1), former=workload(1))
    assert endpoints(roll) == 0


def test_of_workloads_at_one_address_each_is_counted() -> None:
    roll = Roll()
    enter(roll, workload(1, 80))
    enter(roll, replace(workload(1, 80), instance="again"))
    roll.leave(workload(1).key)
    assert roll.service(PAYMENT) == ServiceRecord.of([workload(1, 80)])


def test_a_service_is_what_its_workloads_make_of_it() -> None:
    roll, there, chance = Roll(), dict[str, WorkloadRecord](), random.Random(7)
    for _ in range(500):
        one = workload(chance.randrange(20), *chance.sample([80, 81, 82], chance.randrange(3)))
        if chance.random() < 0.3:
            roll.leave(one.key)
            there.pop(one.key, None)
        else:
            enter(roll, one)
            there[one.key] = one
        assert roll.service(PAYMENT) == ServiceRecord.of(there.values())
        assert endpoints(roll) == sum(len(record.ports) for record in there.values())
    assert roll.service(service_key("default", "order")) is None
