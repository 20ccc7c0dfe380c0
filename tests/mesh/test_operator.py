"""An operator's commands against a real `meshfast control`."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import yaml

from meshfast.discovery import JoinToken
from tests.control.server.sidecar import join
from tests.mesh.harness import Sidecar, wait_until
from tests.mesh.operating import Operator

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payment}
spec:
  hosts: [payment]
  http:
    - timeout: 3s
      route:
        - destination: {host: payment}
"""
VERSIONS = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payment}
spec: {host: payment, subsets: [{name: v1, labels: {version: v1}}]}
"""


def test_a_token_is_printed_alone_then_listed_then_revoked(operator: Operator) -> None:
    text = operator.run("token", "create", "--service", "payment", "--uses", "3", "--ttl", "1h")
    token = JoinToken.parse(text.strip())
    assert (token.service, token.service_account) == ("payment", "payment")
    assert token.control == operator.address
    (listed,) = json.loads(operator.run("token", "list", "-o", "json"))
    assert (listed["id"], listed["uses_max"]) == (token.id, 3)
    assert listed["expires_s"] - listed["created_s"] == 3600
    assert operator.run("token", "revoke", token.id) == f"token {token.id} revoked\n"
    assert operator.run("token", "list").splitlines()[1].endswith("revoked")


def test_apply_with_an_error_says_the_place_and_changes_nothing(
    operator: Operator, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(RULE)
    bad.write_text(RULE.replace("payment}", "other}").replace("3s", "soon"))
    said = operator.run("apply", "-f", str(good), "-f", str(bad), code=1)
    first, second = said.splitlines()
    assert first.startswith(f"{bad}:5:11: spec.hosts[0]: the host 'payment' is routed twice")
    assert second.startswith(f"{bad}:7:16: spec.http[0].timeout: ")
    assert json.loads(operator.run("get", "-o", "json"))["items"] == []
    missing = tmp_path / "missing.yaml"
    said = operator.run("apply", "-f", str(missing), code=1)
    assert said == f"{missing}: cannot be read: No such file or directory\n"


def test_what_was_applied_is_shown_compared_and_deleted(operator: Operator) -> None:
    applied = operator.run("apply", "-f", "-", stdin=RULE)
    assert applied == "VirtualService default/payment created\n"
    shown = operator.run("get", "virtualservice", "payment", "-o", "yaml")
    assert yaml.safe_load(shown)["spec"]["http"][0]["timeout"] == "3s"
    whole = operator.run("get", "-o", "yaml")
    assert "unchanged" in operator.run("apply", "-f", "-", stdin=whole)
    assert operator.run("get").splitlines()[1].split()[:3] == [
        "VirtualService",
        "default",
        "payment",
    ]
    difference = operator.run("diff", "-f", "-", stdin=RULE.replace("3s", "5s"), code=1)
    lines = [line.strip("+- ") for line in difference.splitlines() if line[:2] in ("+ ", "- ")]
    assert lines == ["timeout: 3s", "timeout: 5s"]
    operator.run("diff", "-f", "-", stdin=RULE)
    deleted = operator.run("delete", "VirtualService", "payment")
    assert deleted == "VirtualService default/payment deleted\n"
    said = operator.run("get", "VirtualService", "payment", code=1)
    assert said == "there is no VirtualService default/payment\n"


def test_kinds_have_the_short_names_and_plurals_of_istio(operator: Operator) -> None:
    operator.run("apply", "-f", "-", stdin=RULE)
    for kind in ("vs", "VS", "virtualservices", "virtualservice"):
        assert "payment" in operator.run("get", kind)
    for kind in ("dr", "gw", "gateways", "se", "serviceentries", "we", "workloadentries"):
        assert "payment" not in operator.run("get", kind)
    assert operator.run("delete", "vs", "payment").endswith("payment deleted\n")


def test_what_files_name_is_deleted_and_what_is_missing_is_said(operator: Operator) -> None:
    rule = RULE.replace("{host: payment}", "{host: payment, subset: v1}")
    operator.run("apply", "-f", "-", stdin=f"{rule}---\n{VERSIONS}")
    # The file has them in this order; the subset is needed until the rule is gone.
    deleted = operator.run("delete", "-f", "-", stdin=f"{VERSIONS}---\n{rule}")
    assert deleted.splitlines() == [
        "DestinationRule default/payment deleted",
        "VirtualService default/payment deleted",
    ]
    said = operator.run("delete", "-f", "-", stdin=rule, code=1)
    assert said == "there is no VirtualService default/payment\n"


def test_an_identity_is_revoked_and_restored(operator: Operator) -> None:
    operator.run("identity", "revoke", "payment")
    listed = "NAMESPACE  SERVICE ACCOUNT\ndefault    payment\n"
    wait_until(lambda: operator.run("identity", "list") == listed, "it is listed")
    assert operator.run("identity", "restore", "payment") == "identity default/payment restored\n"
    wait_until(lambda: "payment" not in operator.run("identity", "list"), "it is not listed")


def test_revoking_says_what_is_left_of_an_identity_and_what_to_do(operator: Operator) -> None:
    credentials, messages = join(operator.token("payment"))
    assert credentials is not None, messages
    ends = credentials.leaf.not_valid_after_utc
    _, said = operator.run("identity", "revoke", "payment").splitlines()
    assert said.startswith(f"its last certificate ends at {ends:%Y-%m-%d %H:%M:%S} UTC: ")
    assert "stop its workloads" in said
    assert "--cert-ttl" in said
    answer = json.loads(operator.run("identity", "revoke", "payment", "-o", "json"))
    assert answer == {
        "revoked": "default/payment",
        "certified_until_s": int(ends.timestamp()),
        "known": True,
        "note": said,
    }
    assert operator.warnings("identity", "revoke", "payment") == ""


def test_revoking_an_identity_that_nobody_has_is_done_with_a_warning(operator: Operator) -> None:
    said = "no workload and no certificate of default/nosuch is known"
    warned = operator.warnings("identity", "revoke", "nosuch")
    assert warned.startswith(f"warning: {said}")
    assert "`meshfast identity restore`" in warned
    answer = json.loads(operator.run("identity", "revoke", "nosuch", "-o", "json"))
    assert answer == {
        "revoked": "default/nosuch",
        "certified_until_s": None,
        "known": False,
        "note": said,
    }


def test_files_are_deleted_together_or_not_at_all(operator: Operator) -> None:
    """A rule that stays needs one of them, so all of them stay."""
    rules = [RULE.replace("name: payment", f"name: r{n}").replace("[payment]", f"[s{n}]")
             for n in range(3)]  # fmt: skip
    needed = RULE.replace("{host: payment}", "{host: payment, subset: v1}")
    everything = "---\n".join([*rules, needed, VERSIONS])
    applied = json.loads(operator.run("apply", "-f", "-", "-o", "json", stdin=everything))
    held = operator.run("get")
    said = operator.run("delete", "-f", "-", stdin="---\n".join([*rules, VERSIONS]), code=1)
    assert "VirtualService default/payment sends to the subset 'v1'" in said
    assert operator.run("get") == held
    gone = json.loads(operator.run("delete", "-f", "-", "-o", "json", stdin=everything))
    assert len(gone["changes"]) == 5
    assert operator.run("get").splitlines() == ["KIND  NAMESPACE  NAME  REVISION"]
    # Every transaction is one revision.
    before, after = (int(one["revision"].rpartition("-")[2]) for one in (applied, gone))
    assert after == before + 1


def test_a_service_that_is_not_known_cannot_be_forgotten(operator: Operator) -> None:
    said = operator.run("service", "forget", "payment", code=1)
    assert said == "there is no service default/payment\n"


def test_the_status_of_an_empty_mesh(operator: Operator) -> None:
    mesh = json.loads(operator.run("status", "-o", "json"))
    assert (mesh["services"], mesh["workloads"], mesh["sidecars"]) == ([], [], [])
    assert operator.run("status").startswith(f"revision {mesh['revision']}\n")


def test_a_workload_joins_with_a_token_and_is_seen_in_sync(
    operator: Operator, tmp_path: Path
) -> None:
    loopback = ("--inbound-address", "127.0.0.1:0", "--outbound-address", "127.0.0.1:0")
    sidecar = Sidecar(tmp_path, operator, "payment", *loopback)
    try:
        sidecar.until_started()

        def synced() -> bool:
            mesh = json.loads(operator.run("status", "-o", "json"))
            in_sync = [one["state"] for one in mesh["sidecars"]] == ["SYNCED"]
            return in_sync and [one["healthy"] for one in mesh["services"]] == [1]

        wait_until(synced, "the application accepts and the sidecar holds what it should")
        row = operator.run("status").splitlines()[3]
        assert row.split() == ["default", "payment", str(sidecar.port), "1/1"]
        said = operator.run("service", "forget", "payment", code=1)
        assert said.startswith("workloads are registered for default/payment (stop its workloads ")
        (used,) = json.loads(operator.run("token", "list", "-o", "json"))
        assert used["uses"] == 1
    finally:
        sidecar.close()


def test_another_user_cannot_connect(operator: Operator) -> None:
    assert stat.S_IMODE((operator.state / "api.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(operator.state.stat().st_mode) == 0o700


def test_without_a_control_plane_the_error_says_what_to_do(operator: Operator) -> None:
    operator.stop()
    said = operator.run("status", code=1)
    assert said == (
        f"no control plane answers in {operator.state} "
        "(start it with `meshfast control`, or name its --state-dir)\n"
    )
