"""A canary in a whole mesh: two versions, a share by the YAML that users have, and back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from meshfast.cli.demo.policy import CANARY, SUBSETS
from tests.mesh.harness import Sidecar, order, wait_until
from tests.mesh.operating import Operator

LOOPBACK = ("--inbound-address", "127.0.0.1:0", "--outbound-address", "127.0.0.1:0")
CALLS = 2500  # the deviation of a share of 0.10 is then 0.006


class Mesh:
    """`order`, which calls, and two versions of `payment-service`."""

    def __init__(self, folder: Path, operator: Operator) -> None:
        self.operator = operator
        versioned = ("payment-service", *LOOPBACK, "--service-port", "80")
        self.sidecars = [
            Sidecar(folder, operator, *versioned, version="v1"),
            Sidecar(folder, operator, *versioned, version="v2"),
            Sidecar(folder, operator, "order", *LOOPBACK),
        ]
        self.caller = self.sidecars[2]

    def until_ready(self) -> None:
        for sidecar in self.sidecars:
            sidecar.until_started()
        wait_until(lambda: self._healthy() == 3, "all workloads are healthy")
        self.until_synced()

    def change(self, *words: str, stdin: str = "") -> Any:
        """Run a command that changes resources; wait until every sidecar has taken it."""
        changed = json.loads(self.operator.run(*words, "-o", "json", stdin=stdin))
        self.until_synced(changed["revision"])
        return changed

    def until_synced(self, revision: str = "0-0") -> None:
        """Wait until every sidecar has acknowledged the revision, or a later one."""
        wait_until(lambda: self._synced(revision), f"every sidecar has revision {revision}")

    def calls(self, count: int) -> Counter[str]:
        """Call the service; count who answered."""
        answered: Counter[str] = Counter()
        with self.caller.caller() as caller:
            for _ in range(count):
                answer = caller.call("http://payment-service/")
                assert answer.status == 200, answer.body
                answered[json.loads(answer.body)["name"]] += 1
        return answered

    def _status(self) -> Any:
        return json.loads(self.operator.run("status", "-o", "json"))

    def _healthy(self) -> int:
        return sum(one["workload"]["healthy"] for one in self._status()["workloads"])

    def _synced(self, revision: str) -> bool:
        mesh = self._status()
        held = [one["revision"] for one in mesh["sidecars"] if one["state"] == "SYNCED"]
        return held == 3 * [mesh["revision"]] and order(held[0]) >= order(revision)

    def close(self) -> None:
        for sidecar in self.sidecars:
            sidecar.close()


@pytest.fixture
def mesh(operator: Operator, tmp_path: Path) -> Iterator[Mesh]:
    one = Mesh(tmp_path, operator)
    try:
        one.until_ready()
        yield one
    finally:
        one.close()


def share(answered: Counter[str]) -> float:
    return answered["payment-service-v2"] / answered.total()


def test_a_tenth_goes_to_the_canary_and_none_after_it_was_rolled_back(mesh: Mesh) -> None:
    mesh.change("apply", "-f", "-", stdin=SUBSETS)
    mesh.change("apply", "-f", "-", stdin=CANARY)
    assert abs(share(mesh.calls(CALLS)) - 0.10) <= 0.03

    done = mesh.change("canary", "rollback", "payment-service")
    assert (done["subset"], done["weights"]) == ("v2", {"v1": 100, "v2": 0})
    (rule,) = done["changes"]
    before, after = (rule[when]["spec"]["http"][0]["route"] for when in ("before", "after"))
    assert [one["destination"] for one in before] == [one["destination"] for one in after]
    assert mesh.calls(500) == {"payment-service-v1": 500}


def test_a_share_is_set_by_one_command_from_the_labels_of_workloads(mesh: Mesh) -> None:
    done = mesh.change("canary", "set", "payment-service", "v2=75")
    assert done["notes"] == ["made a DestinationRule from the labels version: v1, v2"]
    assert [(one["kind"], one["action"]) for one in done["changes"]] == [
        ("DestinationRule", "created"),
        ("VirtualService", "created"),
    ]
    assert abs(share(mesh.calls(1000)) - 0.75) <= 0.08
    done = mesh.change("canary", "rollback", "payment-service")
    assert (done["subset"], done["weights"]) == ("v2", {"v1": 100, "v2": 0})
    assert mesh.calls(200) == {"payment-service-v1": 200}


def test_people_are_shown_the_difference_and_the_shares(operator: Operator) -> None:
    operator.run("apply", "-f", "-", stdin=SUBSETS)
    operator.run("apply", "-f", "-", stdin=CANARY)
    said = operator.run("canary", "rollback", "payment-service").splitlines()
    assert [line.split() for line in said if line[:2] in ("+ ", "- ")] == [
        ["-", "weight:", "90"],
        ["+", "weight:", "100"],
        ["-", "weight:", "10"],
        ["+", "weight:", "0"],
    ]
    assert said[0] == "--- mesh/VirtualService/default/payment-service"
    assert said[-1] == "payment-service.default: v1 100, v2 0"
    again = operator.run("canary", "rollback", "payment-service").splitlines()
    assert again == ["nothing changed", "payment-service.default: v1 100, v2 0"]


def test_shares_that_are_set_at_once_all_come_through(operator: Operator) -> None:
    operator.run("apply", "-f", "-", stdin=SUBSETS)
    with ThreadPoolExecutor(8) as pool:
        said = pool.map(
            lambda percent: operator.run("canary", "set", "payment-service", f"v2={percent}"),
            range(10, 18),
        )
        shares = {one.splitlines()[-1] for one in said}
    assert shares == {f"payment-service.default: v1 {100 - v2}, v2 {v2}" for v2 in range(10, 18)}
    left = operator.run("canary", "set", "payment-service", "v2=50").splitlines()[-1]
    assert left == "payment-service.default: v1 50, v2 50"


def test_what_cannot_be_decided_is_refused_with_a_next_step(operator: Operator) -> None:
    said = operator.run("canary", "rollback", "payment-service", code=1)
    assert said == "no VirtualService routes payment-service.default, so it has no canary\n"
    said = operator.run("canary", "set", "payment-service", "v2=10", code=1)
    assert "start them with `meshfast run --label version=V`" in said
    operator.run("apply", "-f", "-", stdin=SUBSETS)
    said = operator.run("canary", "set", "payment-service", "v3=10", code=1)
    assert said.startswith(
        "DestinationRule default/payment-service has no subset 'v3', only v1, v2"
    )
    said = operator.run("canary", "set", "payment-service", "v2=ten", code=2)
    assert "expected SUBSET=PERCENT" in said
    equal = CANARY.replace("90", "50").replace("10", "50")
    operator.run("apply", "-f", "-", stdin=equal)
    said = operator.run("canary", "rollback", "payment-service", code=1)
    assert "say it with --subset" in said
    said = operator.run("canary", "rollback", "payment-service", "--subset", "v1")
    assert said.splitlines()[-1] == "payment-service.default: v1 0, v2 100"


def test_a_rule_without_hosts_is_applied_with_a_warning_at_its_place(
    operator: Operator, tmp_path: Path
) -> None:
    operator.run("apply", "-f", "-", stdin=SUBSETS)
    file = tmp_path / "canary.yaml"
    file.write_text(CANARY)
    warned = operator.warnings("apply", "-f", str(file))
    assert (
        f"warning: {file}:6:3: spec: there are no hosts; the name of the VirtualService" in warned
    )
    said = operator.run("delete", "DestinationRule", "payment-service", code=1)
    assert said.startswith(
        "DestinationRule default/payment-service: VirtualService default/payment-service sends to "
        "the subset 'v1'"
    )
