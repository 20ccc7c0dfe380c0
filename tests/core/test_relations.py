"""meshfast.resources.relations: what is refused is in test_golden's files; here, what warns."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from meshfast import _core
from meshfast.errors import ConfigError
from meshfast.resources import load_text
from meshfast.resources.relations import OWN_PREFIX, UNTOUCHABLE, findings_in_text

FILE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
    - route: [{destination: {host: web}}]
"""
ROUTE = {
    "name": "r",
    "matches": [],
    "timeout_ms": None,
    "destinations": [{"cluster": "c", "weight": 1}],
}
CLUSTER = {
    "name": "c",
    "service": {"host": "c", "name": "c", "namespace": ""},
    "subset": "",
    "balancer": "LEAST_REQUEST",
    "connect_timeout_ms": 1,
    "idle_timeout_ms": 1,
    "endpoints": [],
}


def warnings_of(route: str) -> list[str]:
    (loaded,) = load_text(FILE + route, "f.yaml")
    return [str(warning) for warning in loaded.warnings]


@pytest.mark.parametrize(
    ("route", "warning"),
    [
        (
            "      timeout: 1s\n      retries: {attempts: 2, perTryTimeout: 2s}\n",
            "f.yaml:9:45: spec.http[0].retries.perTryTimeout: is longer than the timeout of the "
            "route, 1s, which ends it",
        ),
        (
            "      fault: {delay: {fixedDelay: 1s}}\n",
            "f.yaml:8:22: spec.http[0].fault.delay: no request is delayed (without a percentage it "
            "is 0 %; write percentage: {value: 100} for all of them)",
        ),
        (
            "      fault: {abort: {httpStatus: 500, percentage: {}}}\n",
            "f.yaml:8:22: spec.http[0].fault.abort: no request is aborted (without a percentage it "
            "is 0 %; write percentage: {value: 100} for all of them)",
        ),
        (
            "      timeout: 1s\n      fault: {abort: {httpStatus: 500, percentage: {value: 1}}}\n",
            "f.yaml:8:16: spec.http[0].timeout: timeout has no effect (it is off on a route with a "
            "fault, as in Istio)",
        ),
        (
            "      retries: {attempts: 2, retryOn: retriable-status-codes}\n",
            "f.yaml:8:39: spec.http[0].retries.retryOn: retriable-status-codes has no effect "
            "without a status code (write it beside: retriable-status-codes,503)",
        ),
    ],
)
def test_what_will_surprise_is_a_warning(route: str, warning: str) -> None:
    assert warnings_of(route) == [warning]


def test_the_old_name_of_least_request_is_taken_with_a_warning() -> None:
    (loaded,) = load_text(
        """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets:
    - {name: v1, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}}
""",
        "f.yaml",
    )
    assert [str(warning) for warning in loaded.warnings] == [
        "f.yaml:7:57: spec.subsets[0].trafficPolicy.loadBalancer.simple: LEAST_CONN is taken for "
        "LEAST_REQUEST, which has replaced it in Istio (write LEAST_REQUEST)"
    ]


@pytest.mark.parametrize(
    "route",
    [
        "      timeout: 2s\n      retries: {attempts: 2, perTryTimeout: 2s}\n",
        "      retries: {attempts: 2, perTryTimeout: 2s}\n",
        "      timeout: 0s\n      retries: {attempts: 2, perTryTimeout: 2s}\n",
        "      retries: {attempts: 2, retryOn: 'retriable-status-codes,503'}\n",
        "      fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}}\n",
    ],
)
def test_what_will_not_is_none(route: str) -> None:
    assert warnings_of(route) == []


def test_a_virtual_service_without_hosts_is_one_for_its_name() -> None:
    (loaded,) = load_text(FILE.replace("  hosts: [web]\n", ""), "f.yaml")
    assert loaded.resource == load_text(FILE, "f.yaml")[0].resource
    assert [str(warning) for warning in loaded.warnings] == [
        "f.yaml:5:3: spec: there are no hosts; the name of the VirtualService, 'web', is taken for "
        "one (hosts: [web])"
    ]


def test_operators_and_the_snapshot_compiler_agree_on_the_headers_that_no_rule_edits() -> None:
    assert set(_core.HEADERS_NOT_EDITED) == UNTOUCHABLE
    assert _core.HEADERS_NOT_EDITED_PREFIX == OWN_PREFIX


@pytest.mark.parametrize(
    "name",
    [*sorted(UNTOUCHABLE), "HTTP2_Settings", "Expect", OWN_PREFIX, "x-meshfast", "x-a", "via"],
)
def test_what_one_of_them_refuses_the_other_does(name: str) -> None:
    document = {
        "version": 1,
        "generation": 1,
        "workload": {"name": "a", "namespace": "", "app": "", "revision": "", "principal": ""},
        "listeners": [
            {
                "name": "gateway/127.0.0.1:1",
                "direction": "gateway",
                "protocol": "HTTP",
                "forward_proxy": False,
                "virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [ROUTE | {
                    "request_headers": {"set": [], "add": [], "remove": [name]}
                }]}],
                "tcp_routes": [],
            }
        ],
        "clusters": [CLUSTER],
    }  # fmt: skip
    is_refused = list(findings_in_text("field_name", name)) != []
    with pytest.raises(ConfigError, match="belongs to the proxy") if is_refused else nullcontext():
        _core.Snapshot.build(json.dumps(document).encode())


@pytest.mark.parametrize(("share", "is_some"), [("0.00004", False), ("0.0001", True), ("0", True)])
def test_a_share_that_would_be_none_is_refused(share: str, is_some: bool) -> None:
    route = f"      fault: {{delay: {{fixedDelay: 1s, percentage: {{value: {share}}}}}}}\n"
    if is_some:
        load_text(FILE + route, "f.yaml")
        return
    with pytest.raises(ConfigError, match=r"f\.yaml:8:59: spec\.http\[0\]\.fault\.delay"):
        load_text(FILE + route, "f.yaml")
