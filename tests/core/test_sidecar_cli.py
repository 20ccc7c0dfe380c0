"""`run` and `sidecar`: from options, token and environment to the settings of the supervisor."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result

from meshfast.agent.state import StateDirectory
from meshfast.cli import app
from meshfast.cli import sidecar as cli
from meshfast.discovery.token import JoinToken
from meshfast.errors import ConfigError, UsageError
from meshfast.policy.document import Tracing
from meshfast.supervisor.settings import Settings

TOKEN = JoinToken(
    control="127.0.0.1:15012",
    root=b"a root",
    id="token-1",
    secret="the secret",
    service="payment",
    namespace="shop",
    service_account="payer",
    trust_domain="cluster.local",
)
GIVEN: dict[str, Any] = {
    "service": None,
    "port": 8080,
    "protocol": "http",
    "service_port": None,
    "labels": (),
    "namespace": None,
    "workload": None,
    "token_file": None,
    "upstreams": (),
    "inbound_address": "0.0.0.0:15006",
    "outbound_address": "127.0.0.1:15001",
    "metrics_address": "127.0.0.1:15020",
    "address": "",
    "key_storage": "disk",
    "workers": 2,
    "drain_ms": 45_000,
    "log_level": "info",
    "instance": None,
    "runtime_dir": "/run/meshfast",
    "access_log": "off",
    "zipkin_address": None,
    "trace_sampling": None,
}
JOINING = {"MESHFAST_TOKEN": TOKEN.text()}


class Planner:
    """Makes plans in one state directory."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def plan(
        self, environment: dict[str, str] = JOINING, *, explicit: str = "", **given: Any
    ) -> cli.Plan:
        options = {k: given.pop(k) for k in ("command", "keeps_credential") if k in given}
        return cli.make_plan(
            {**GIVEN, "state_dir": str(self.state), **given},
            frozenset(explicit.split()),
            environment,
            **options,
        )

    def start(self, environment: dict[str, str] = JOINING, **given: Any) -> cli.Plan:
        """Make a plan and keep of it what a start keeps."""
        plan = self.plan(environment, **given)
        cli.remember(plan)
        return plan

    def settings(self, plan: cli.Plan, environment: dict[str, str] = JOINING) -> dict[str, Any]:
        return cli.settings(plan, environment, 5, 6)


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(tmp_path / "state")


# who it is


def test_the_token_says_who_and_where(planner: Planner) -> None:
    mesh = planner.plan().mesh
    assert mesh.sidecar.principal == "spiffe://cluster.local/ns/shop/sa/payer"
    assert (mesh.sidecar.service, mesh.sidecar.namespace) == ("payment", "shop")
    assert (mesh.control, mesh.token_id, mesh.token_secret) == (
        "127.0.0.1:15012",
        "token-1",
        "the secret",
    )
    assert mesh.control_identity == "spiffe://cluster.local/ns/meshfast-system/sa/control"
    assert [base64.b64decode(one) for one in mesh.roots] == [b"a root"]


@pytest.mark.parametrize(
    ("labels", "workload", "expected"),
    [((), None, "payment"), (("version=v2",), None, "payment-v2"), (("version=v2",), "w", "w")],
)
def test_a_workload_is_named_after_service_and_version(
    planner: Planner, labels: tuple[str, ...], workload: str | None, expected: str
) -> None:
    assert planner.plan(labels=labels, workload=workload).mesh.sidecar.workload == expected


def test_an_instance_is_named_after_service_and_port_and_its_host(planner: Planner) -> None:
    plan = planner.plan()
    assert plan.instance == "payment-8080"
    host = os.uname().nodename
    assert re.fullmatch(rf"payment-8080\.{re.escape(host)}-[0-9a-f]{{8}}", plan.mesh.instance)
    mine = planner.plan(instance="mine")
    assert (mine.instance, mine.mesh.instance) == ("mine", f"mine.{host}")


def test_an_instance_keeps_its_name_and_no_other_has_it(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = planner.plan().mesh.instance
    assert Planner(tmp_path / "other").plan().mesh.instance != name
    monkeypatch.setattr("socket.gethostname", lambda: "renamed")
    assert planner.plan().mesh.instance == name


def test_a_long_name_of_an_instance_keeps_its_random_end(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 300)
    name = planner.plan().mesh.instance
    assert len(name) == 253
    assert re.search(r"h-[0-9a-f]{8}$", name)


@pytest.mark.parametrize("option", ["service", "namespace"])
def test_options_that_contradict_the_token_are_refused(planner: Planner, option: str) -> None:
    given: dict[str, Any] = {option: "other"}
    with pytest.raises(ConfigError, match=f"--{option}: 'other' is not what the token is for"):
        planner.plan(**given)


def test_a_token_file_wins_over_the_environment(planner: Planner, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN.text() + "\n")
    assert planner.plan({"MESHFAST_TOKEN": "nonsense"}, token_file=str(path)).mesh.token_id


@pytest.mark.parametrize(("text", "why"), [("mf1.x", "damaged"), ("abc", "begins with mf1.")])
def test_what_is_no_token_is_refused_and_not_repeated(
    planner: Planner, text: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=f"MESHFAST_TOKEN: .*{why}") as refused:
        planner.plan({"MESHFAST_TOKEN": text + "SECRET"})
    assert "SECRET" not in str(refused.value)


def test_a_later_start_needs_no_token_and_none_was_kept(planner: Planner) -> None:
    first = planner.start()
    second = planner.plan({}, service="payment")
    assert (second.mesh.control, second.mesh.sidecar) == (
        first.mesh.control,
        # The proxy's password is another one at every start.
        second.mesh.sidecar,
    )
    assert second.mesh.sidecar.principal == first.mesh.sidecar.principal
    assert second.mesh.token_secret == ""
    for path in planner.state.rglob("*"):
        assert path.is_dir() or b"the secret" not in path.read_bytes()


def test_a_first_start_without_token_says_what_to_do(planner: Planner) -> None:
    with pytest.raises(ConfigError, match="meshfast token create"):
        planner.plan({}, service="payment")
    with pytest.raises(ConfigError, match="give --service, --instance or a join token"):
        planner.plan({})


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_token_file_is_an_error_though_there_was_an_earlier_start(
    planner: Planner, tmp_path: Path, text: str
) -> None:
    planner.start()
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError, match="token: is empty"):
        planner.plan({}, token_file=str(path))
    assert planner.plan({"MESHFAST_TOKEN": ""}, service="payment").mesh.token_secret == ""


def test_a_refused_start_leaves_the_earlier_one_as_it_was(planner: Planner) -> None:
    planner.start()
    other = msgspec.structs.replace(TOKEN, service="order", service_account="order")
    with pytest.raises(ConfigError, match="--service: 'payment' is not what the token is for"):
        planner.start({"MESHFAST_TOKEN": other.text()}, service="payment")
    with pytest.raises(ConfigError, match="--label"):
        planner.start({"MESHFAST_TOKEN": other.text()}, instance="payment-8080", labels=("x",))
    again = planner.plan({}, service="payment").mesh.sidecar
    assert again.principal == "spiffe://cluster.local/ns/shop/sa/payer"


def test_a_token_of_another_control_plane_drops_what_the_earlier_one_has_given(
    planner: Planner, capsys: pytest.CaptureFixture[str]
) -> None:
    state = StateDirectory(planner.start().mesh.state_dir)
    dropped = {"identity", "joining", "resources", "running"}

    def kept() -> set[str]:
        return {name for name in dropped if state.read(name) is not None}

    for name in dropped:
        state.write_now(name, b"of the first control plane")
    planner.start()
    moved = msgspec.structs.replace(TOKEN, control="10.0.0.1:15012")
    planner.start({"MESHFAST_TOKEN": moved.text()})
    assert kept() == dropped
    other = {"MESHFAST_TOKEN": msgspec.structs.replace(TOKEN, root=b"another root").text()}
    planner.plan(other)
    assert kept() == dropped
    assert capsys.readouterr().err == ""
    planner.start(other)
    assert kept() == set()
    assert "another control plane: what the earlier one has given" in capsys.readouterr().err
    assert planner.plan({}, service="payment").mesh.roots == planner.plan(other).mesh.roots


def test_a_state_directory_of_others_is_refused(planner: Planner) -> None:
    (planner.state / "payment-8080").mkdir(parents=True)
    os.chmod(planner.state / "payment-8080", 0o755)
    with pytest.raises(ConfigError, match=r"--state-dir: .* must be 0700"):
        planner.plan()


# how it is called


def test_a_version_that_names_no_workload_is_taken_with_a_name_for_it(planner: Planner) -> None:
    with pytest.raises(ConfigError, match=r"'payment-V2' .*give --workload too"):
        planner.plan(labels=("version=V2",))
    sidecar = planner.plan(labels=("version=V2",), workload="payment-2").mesh.sidecar
    assert (sidecar.workload, sidecar.labels) == ("payment-2", {"version": "V2"})


def test_an_address_may_be_written_with_brackets(planner: Planner) -> None:
    assert planner.plan(address="[2001:db8::1]").mesh.address == "[2001:db8::1]"


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ("version",)},
        {"labels": ("=x",)},
        {"labels": ("version=v 2",)},
        {"labels": ("version=V2",)},  # as the name of a workload
        {"labels": ("a=\x01\n",)},
        {"labels": ("a\x1b=",)},
        {"labels": tuple(f"a{n}=" for n in range(65))},
        {"workload": "A B"},
        {"workload": ""},
        {"address": "nohost"},
        {"address": "300.1.1.1"},
        {"address": "0.0.0.0"},
        {"address": "169.254.169.254"},
        {"service": "A B"},
        {"upstreams": ("db",)},
        {"upstreams": ("db=5433",)},
        {"upstreams": ("d b=127.0.0.1:1",)},
        {"inbound_address": "15006"},
        {"outbound_address": "localhost:15001"},
        {"outbound_address": "127.0.0.1:99999"},
        {"instance": "../x"},
        {"instance": ""},
        {"instance": "_x"},
        {"instance": "-x"},
        {"instance": "x" * 254},
    ],
)
def test_wrong_options_are_refused(planner: Planner, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        planner.plan(**wrong)


def test_upstreams_become_listeners_that_do_not_give_way(planner: Planner) -> None:
    plan = planner.plan(upstreams=("db=127.0.0.1:5433", "redis.cache:6379=[::1]:6379"))
    found = [(one.service, one.port, one.listener) for one in plan.mesh.sidecar.upstreams]
    assert found == [
        ("db", 0, "outbound/127.0.0.1:5433"),
        ("redis.cache", 6379, "outbound/[::1]:6379"),
    ]
    sockets = planner.settings(plan)["sockets"]
    assert [one["fallback"] for one in sockets] == [True, True, False, False, True]


def test_only_addresses_that_nobody_wrote_give_way(planner: Planner) -> None:
    plan = planner.plan(explicit="inbound_address metrics_address")
    sockets = {one["name"]: one for one in planner.settings(plan)["sockets"]}
    assert sockets["outbound/127.0.0.1:15001"]["fallback"]
    assert not sockets["inbound/0.0.0.0:15006"]["fallback"]
    assert not sockets["metrics"]["fallback"]


def test_an_address_that_nobody_wrote_begins_where_the_last_start_listened(
    planner: Planner,
) -> None:
    last = {
        "port": 8080,
        "outbound": "127.0.0.1:41001",
        "inbound": "0.0.0.0:42263",
        "metrics": "127.0.0.1:43020",
        "upstreams": [],
    }
    state = StateDirectory(planner.start().mesh.state_dir)
    state.write_now("running", json.dumps(last).encode())

    def kept(**given: Any) -> list[str]:
        sockets = planner.settings(planner.plan(**given))["sockets"]
        taken = Settings.parse(json.dumps(planner.settings(planner.plan(**given))).encode())
        assert [one.kept for one in taken.sockets] == [one["kept"] for one in sockets]
        return [one["kept"] for one in sockets]

    assert kept() == ["127.0.0.1:41001", "0.0.0.0:42263", "127.0.0.1:43020"]
    assert kept(explicit="inbound_address") == ["127.0.0.1:41001", "", "127.0.0.1:43020"]
    # Upstreams and the application come first, and so does an address that somebody wrote.
    upstreams = ("db=127.0.0.1:41001",)
    assert kept(upstreams=upstreams) == ["", "0.0.0.0:42263", "", "127.0.0.1:43020"]
    assert kept(port=42263, instance="payment-8080") == ["127.0.0.1:41001", "", "127.0.0.1:43020"]
    metrics = {"metrics_address": "127.0.0.1:42263", "explicit": "metrics_address"}
    assert kept(**metrics) == ["127.0.0.1:41001", "", ""]


def test_the_supervisor_takes_the_settings(planner: Planner) -> None:
    plan = planner.plan(command=("python", "app.py"))
    settings = Settings.parse(json.dumps(planner.settings(plan)).encode())
    assert settings.app is not None
    assert settings.app.command == ["python", "app.py"]
    assert Settings.parse(json.dumps(planner.settings(planner.plan())).encode()).app is None


@pytest.mark.parametrize(("port", "expected"), [(None, 0), (80, 80)])
def test_callers_may_name_another_port(planner: Planner, port: int | None, expected: int) -> None:
    facts = planner.plan(service_port=port).mesh.sidecar
    assert (facts.service_port, facts.app_port) == (expected, 8080)


# what the application gets


def test_the_application_finds_its_proxy_with_a_password_that_workers_can_check(
    planner: Planner,
) -> None:
    plan = planner.plan(command=("app",))
    env = planner.settings(plan)["app"]["env"]
    url = env["HTTP_PROXY"]
    assert {env[name] for name in cli.PROXY_VARIABLES} == {url}
    user, at, address = url.removeprefix("http://").partition("@")
    assert address == "{outbound/127.0.0.1:15001}"
    digest = hashlib.sha256(base64.b64encode(user.encode())).hexdigest()
    assert digest == plan.mesh.sidecar.credential_sha256
    assert at
    assert user.partition(":")[0] == "payment-8080"
    assert len(user.partition(":")[2]) >= 32
    assert env["MESHFAST_INSTANCE"] == "payment-8080"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a.example, localhost"}, "a.example,localhost,127.0.0.1,::1"),
        ({"no_proxy": "b.example"}, "b.example,localhost,127.0.0.1,::1"),
    ],
)
def test_what_the_user_excludes_from_proxying_stays_excluded(
    planner: Planner, environment: dict[str, str], expected: str
) -> None:
    env = planner.settings(planner.plan(command=("app",)), environment)["app"]["env"]
    assert (env["NO_PROXY"], env["no_proxy"]) == (expected, expected)


def test_every_run_has_a_password_of_its_own_and_a_sidecar_keeps_its(planner: Planner) -> None:
    runs = [planner.plan(command=("app",)).proxy_url for _ in range(2)]
    assert runs[0] != runs[1]
    kept = [planner.plan(keeps_credential=True) for _ in range(2)]
    assert kept[0].proxy_url == kept[1].proxy_url
    path = planner.state / "payment-8080" / "credential"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_sidecar_writes_the_variables_for_a_shell(planner: Planner) -> None:
    plan = planner.plan({**JOINING, "NO_PROXY": "it's"}, keeps_credential=True)
    lines = plan.mesh.environment.splitlines()
    assert lines[0] == f"export HTTP_PROXY='{plan.proxy_url}'"
    assert """export NO_PROXY='it'"'"'s,localhost,127.0.0.1,::1'""" in lines
    assert planner.plan(command=("app",)).mesh.environment == ""


# output


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, arguments, env={**JOINING, **environment})


@pytest.mark.parametrize("command", [("run",), ("sidecar",)])
def test_the_plan_is_printed_without_secrets(tmp_path: Path, command: tuple[str, ...]) -> None:
    tail = ("--", "app", "--flag") if command == ("run",) else ()
    done = invoke(*command, "--port", "80", "--state-dir", str(tmp_path), "-o", "json", *tail)
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["command"] == list(tail[1:])
    assert plan["mesh"]["sidecar"]["app_port"] == 80
    assert "the secret" not in done.stdout
    if command == ("sidecar",):
        kept = StateDirectory(str(tmp_path / "payment-80")).read("credential")
        assert kept is not None
        assert kept.decode() not in done.stdout


@pytest.mark.parametrize("protocol", ["grpc", "http2"])
def test_a_protocol_that_is_not_spoken_yet_is_said_to_be_that(protocol: str) -> None:
    done = invoke("sidecar", "--port", "80", "--protocol", protocol)
    assert done.exit_code == 2
    assert f"{protocol} is not supported yet" in " ".join(done.output.replace("│", "").split())


def test_the_plan_is_printed_as_yaml_too(tmp_path: Path) -> None:
    words = ("sidecar", "--port", "80", "--state-dir", str(tmp_path), "-o")
    printed = yaml.safe_load(invoke(*words, "yaml").stdout)
    assert printed == json.loads(invoke(*words, "json").stdout)


def test_an_access_log_that_cannot_be_opened_refuses_the_start(tmp_path: Path) -> None:
    log = str(tmp_path / "missing" / "x.log")
    words = ("run", "--port", "80", "--state-dir", str(tmp_path / "state"), "--access-log", log)
    done = invoke(*words, "--", "app")
    assert isinstance(done.exception, ConfigError)
    assert f"--access-log {log}: cannot be opened" in str(done.exception)
    assert not list((tmp_path / "state").rglob("membership"))


@pytest.mark.parametrize("arguments", [("run", "--", "app"), ("run", "--port", "1"), ("sidecar",)])
def test_a_command_line_that_lacks_something_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("environment", "uid", "expected"),
    [
        ({}, 0, "/var/lib/meshfast/sidecars"),
        ({"XDG_STATE_HOME": "/x"}, 0, "/x/meshfast/sidecars"),
        ({"XDG_STATE_HOME": "/x"}, 1000, "/x/meshfast/sidecars"),
        ({}, 1000, f"{Path.home()}/.local/state/meshfast/sidecars"),
    ],
)
def test_state_is_kept_where_it_outlives_a_reboot(
    environment: dict[str, str], uid: int, expected: str
) -> None:
    assert cli.default_state_dir(environment, uid) == expected


# tracing


def test_a_sidecar_records_spans_when_it_has_a_zipkin_server(planner: Planner) -> None:
    plan = planner.plan(zipkin_address="zipkin:9411", trace_sampling=250_000)
    assert plan.mesh.sidecar.tracing == Tracing(sampling_parts_per_million=250_000)
    assert planner.settings(plan)["agent"]["zipkin_address"] == "zipkin:9411"
    default = planner.plan(zipkin_address="zipkin:9411")
    assert default.mesh.sidecar.tracing == Tracing(sampling_parts_per_million=10_000)
    without = planner.plan()
    assert without.mesh.sidecar.tracing is None
    assert planner.settings(without)["agent"]["zipkin_address"] is None
    with pytest.raises(ConfigError, match="give --zipkin-address too"):
        planner.plan(trace_sampling=1)
