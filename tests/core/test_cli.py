"""The `meshfast` command: arguments, output and exit codes, as a user sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml

from meshfast import cli
from meshfast.cli import launch, proxy
from meshfast.policy import Source, load_source
from tests.core.test_sidecar_cli import TOKEN

ROOT = Path(__file__).parents[2]
CANARY = str(ROOT / "examples/canary.yaml")
REFUSED = Path(__file__).parent / "refused"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def meshfast(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["meshfast", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, *capsys.readouterr())

    return run


def test_every_command_says_what_it_does(meshfast: Run) -> None:
    done = meshfast("--help")
    assert done.returncode == 0
    for name in cli.COMMANDS:
        assert name in done.stdout
        assert meshfast(name, "-h").returncode == 0


def test_version_is_the_one_of_the_workspace(meshfast: Run) -> None:
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    assert meshfast("version").stdout == f"meshfast {workspace['version']}\n"
    assert json.loads(meshfast("version", "-o", "json").stdout)["version"] == workspace["version"]


def test_the_option_prints_what_the_command_prints(meshfast: Run) -> None:
    assert meshfast("--version").stdout == meshfast("version").stdout


def test_a_file_that_is_not_utf_8_is_refused_at_its_byte(meshfast: Run, tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"kind: Gateway\nname: caf\xe9\n")
    for command in ("apply", "diff", "delete"):
        said = meshfast(command, "-f", str(file)).stderr
        hint = "the byte 0xE9 is none of it; save the file as UTF-8"
        assert said == f"{file}:2:10: the file is not UTF-8 text ({hint})\n"


def test_a_variable_of_a_build_does_not_ask_for_the_version(
    meshfast: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHFAST_VERSION", "1")
    assert "oneOf" in meshfast("schema").stdout


def test_version_is_said_to_programs_in_both_forms(meshfast: Run) -> None:
    facts = yaml.safe_load(meshfast("version", "-o", "yaml").stdout)
    assert facts == json.loads(meshfast("version", "-o", "json").stdout)


@pytest.mark.parametrize("option", ["--label", "--address", "--trace-sampling", "--upstream"])
def test_a_wrong_option_ends_with_2_wherever_it_is_found(
    meshfast: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    monkeypatch.setenv("MESHFAST_TOKEN", TOKEN.text())
    done = meshfast("sidecar", "--port", "80", "--state-dir", str(tmp_path), option, "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(option)


@pytest.mark.parametrize("file", ["-f", "--filename"])
def test_shells_complete_files_of_resources(file: str) -> None:
    from meshfast.cli.resource import apply

    (option,) = [one for one in apply.params if file in one.opts]
    (completed,) = option.type.shell_complete(click.Context(apply), option, "a")
    assert completed.type == "file"


def test_a_file_without_end_is_not_read_to_its_end(meshfast: Run) -> None:
    done = meshfast("apply", "-f", "/dev/zero")
    assert done.returncode == 1
    assert done.stderr.startswith("/dev/zero: has more than ")


def test_a_difference_that_cannot_be_made_is_not_taken_for_one(
    meshfast: Run, tmp_path: Path
) -> None:
    done = meshfast("diff", "-f", str(tmp_path / "missing"))
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path}/missing: cannot be read: No such file or directory\n"


def test_a_duration_beyond_the_limit_is_told_the_limit(meshfast: Run) -> None:
    done = meshfast("token", "create", "--service", "a", "--ttl", "99999h")
    assert done.returncode == 2
    assert "24h at most" in " ".join(done.stderr.replace("│", "").split())


@pytest.mark.parametrize("words", [[], ["vs"], ["vs", "a", "-f", "x"]])
def test_what_to_delete_is_named_in_one_way(meshfast: Run, words: list[str]) -> None:
    done = meshfast("delete", *words)
    assert done.returncode == 2


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_completion_prints_a_script(meshfast: Run, shell: str) -> None:
    done = meshfast("completion", shell)
    assert done.returncode == 0
    assert "_MESHFAST_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--listen", ":80"],
        ["--to", "a:1"],
        ["-c", CANARY, "--listen", ":80", "--to", "a:1"],
        ["--listen", ":80", "--to", "a:1", "--forward"],
        ["-c", CANARY, "--forward"],
        ["-c", CANARY, "--mode", "validate", "-o", "yaml"],
        ["-c", "-"],
        ["--listen", ":80", "--to", "nohost"],
        ["--listen", "example.com:80", "--forward"],
        ["-c", CANARY, "--workers", "0"],
        ["-c", CANARY, "--drain-time", "soon"],
        ["-c", CANARY, "--unknown"],
    ],
)
def test_wrong_usage_ends_with_2(meshfast: Run, arguments: list[str]) -> None:
    done = meshfast("proxy", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


@pytest.mark.parametrize("output", ["yaml", "json"])
def test_prints_the_resources_that_flags_stand_for(
    meshfast: Run, output: str, tmp_path: Path
) -> None:
    done = meshfast("proxy", "--listen", ":8080", "--to", "localhost:9000", "-o", output)
    assert done.returncode == 0
    file = tmp_path / "printed"
    file.write_text(done.stdout)
    flags = load_source(Source(listen=":8080", to="localhost:9000"))
    printed = load_source(Source(config_path=str(file)))
    assert [item.resource for item in printed] == [item.resource for item in flags]


def test_a_refused_file_ends_with_1_and_its_problems_on_stderr(meshfast: Run) -> None:
    file = REFUSED / "misspelled_fields.yaml"
    done = meshfast("proxy", "-c", str(file), "-o", "yaml")
    expected = file.with_suffix(".txt").read_text().replace(file.name, str(file))
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_validate_prints_every_problem_and_ends_with_1(meshfast: Run) -> None:
    file = REFUSED / "misspelled_fields.yaml"
    done = meshfast("proxy", "-c", str(file), "--mode", "validate")
    expected = file.with_suffix(".txt").read_text().replace(file.name, str(file))
    assert (done.returncode, done.stdout, done.stderr) == (1, "6 problems\n", expected)


def test_validate_prints_json_for_programs(meshfast: Run) -> None:
    file = REFUSED / "misspelled_fields.yaml"
    done = meshfast("proxy", "-c", str(file), "--mode", "validate", "-o", "json")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["valid"], len(verdict["problems"])) == (1, False, 6)
    assert verdict["problems"][0] == {
        "message": "unknown field 'namepsace'",
        "file": str(file),
        "line": 5,
        "column": 3,
        "path": "metadata.namepsace",
        "hint": "did you mean 'namespace'?",
    }


def test_validate_accepts_every_example(meshfast: Run) -> None:
    for example in sorted((ROOT / "examples").glob("*.yaml")):
        done = meshfast("proxy", "-c", str(example), "--mode", "validate")
        assert (done.returncode, done.stdout, done.stderr) == (0, "0 problems\n", "")


def test_a_selector_is_valid_and_said_to_have_no_effect(meshfast: Run) -> None:
    file = Path(__file__).parent / "golden/matches.yaml"
    note = "the selector has no effect: a proxy serves every Gateway of its file"
    done = meshfast("proxy", "-c", str(file), "--mode", "validate")
    assert (done.returncode, done.stdout) == (0, "0 problems\n")
    assert done.stderr == f"warning: {file}:5:13: spec.selector: {note}\n"
    done = meshfast("proxy", "-c", str(file), "--mode", "validate", "-o", "json")
    verdict = json.loads(done.stdout)
    assert (verdict["valid"], [found["message"] for found in verdict["warnings"]]) == (True, [note])


def test_every_kind_of_problem_comes_in_one_round(meshfast: Run, tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    good = (ROOT / "examples/routes.yaml").read_text()
    file.write_text(
        good.replace("GET|POST", "(?=GET)").replace("host: ", "host: no-", 1)
        + "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        "metadata: {name: a}\nspec: {adress: 10.0.0.1}\n"
    )
    done = meshfast("proxy", "-c", str(file), "--mode", "validate")
    assert done.stdout == "3 problems\n"
    reference, expression, field = done.stderr.splitlines()
    assert "no ServiceEntry has the host" in reference
    assert "not a regular expression" in expression
    assert "unknown field 'adress' (did you mean 'address'?)" in field
    file.write_text(file.read_text().replace("adress", "address"))
    done = meshfast("proxy", "-c", str(file), "--mode", "validate")
    errors = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert errors == [reference, expression]


def test_what_may_surprise_is_a_warning_at_its_place(meshfast: Run, tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    good = (ROOT / "examples/canary.yaml").read_text()
    file.write_text(
        good.replace("labels: {version: v2}", "labels: {version: v3}")
        + "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        "metadata: {name: a}\nspec: {address: 10.0.0.1}\n"
    )
    done = meshfast("proxy", "-c", str(file), "--mode", "validate")
    assert (done.returncode, done.stdout) == (0, "0 problems\n")
    subset, entry = done.stderr.splitlines()
    assert subset.startswith(f"warning: {file}:")
    assert "spec.subsets[1].labels: no endpoint of payment has the labels version=v3" in subset
    assert "metadata.name: no ServiceEntry of its namespace selects it" in entry


def test_serving_says_so_too(
    meshfast: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "launch", lambda *_: sys.exit(0))
    monkeypatch.setattr(launch, "raise_descriptor_limit", lambda workers: None)
    file = Path(__file__).parent / "golden/matches.yaml"
    flags = ["--access-log", "off", "--runtime-dir", str(tmp_path)]
    done = meshfast("proxy", "-c", str(file), *flags)
    assert done.returncode == 0
    assert done.stderr.startswith(f"warning: {file}:5:13: spec.selector: ")


@pytest.mark.parametrize("arguments", [["--mode", "validate"], ["-o", "yaml"]])
def test_a_dash_reads_standard_input_to_validate_and_print(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "meshfast", "proxy", "-c", "-", *arguments]
    resources = (ROOT / "examples/canary.yaml").read_bytes()
    done = subprocess.run(command, input=resources, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    wrong = resources.replace(b"weight", b"wieght", 1)
    done = subprocess.run(command, input=wrong, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(b"/dev/stdin:")
    assert b"did you mean 'weight'?" in done.stderr


def test_serving_from_standard_input_is_refused_with_the_way_out(meshfast: Run) -> None:
    assert "to a file" in meshfast("proxy", "-c", "-").stderr


def test_localhost_is_an_address_to_listen_on(meshfast: Run) -> None:
    done = meshfast("proxy", "--listen", "localhost:8080", "--to", "a:1", "-o", "yaml")
    assert done.returncode == 0
    assert "bind: 127.0.0.1\n" in done.stdout


@pytest.mark.parametrize(
    ("path", "reason"),
    [("missing/access.log", "No such file or directory"), (".", "Is a directory")],
)
def test_an_access_log_that_cannot_be_opened_refuses_the_start(
    meshfast: Run, tmp_path: Path, path: str, reason: str
) -> None:
    log = tmp_path / path
    runtime = str(tmp_path / "run")
    flags = ["--listen", ":1", "--forward", "--runtime-dir", runtime]
    done = meshfast("proxy", *flags, "--access-log", str(log))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"--access-log {log}: cannot be opened: {reason} "
        "(its directory must exist and be writable; `off` writes no log)\n"
    )


def test_a_pipe_that_nobody_reads_yet_may_be_an_access_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    launch.check_access_log(str(tmp_path / "pipe"))
    launch.check_access_log("off")
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[launch.Options]:
    options: list[launch.Options] = []
    monkeypatch.setattr(launch, "serve", options.append)
    return options


def run_proxy(*arguments: str) -> None:
    proxy.proxy.main(list(arguments), standalone_mode=False)


def test_options_reach_the_launch(served: list[launch.Options]) -> None:
    run_proxy("-c", "mesh.yaml", "--workers", "3", "--drain-time", "1m30s", "--access-log", "a.log")
    run_proxy("--listen", ":8080", "--to", "a:1", "--metrics-address", "127.0.0.1:9", "-l", "debug")
    first, second = served
    assert first.source == Source(
        config_path=str(Path("mesh.yaml").absolute()), access_log=str(Path("a.log").absolute())
    )
    assert (first.workers, first.drain_ms) == (3, 90_000)
    assert second.source == Source(listen=":8080", to="a:1")
    assert (second.drain_ms, second.log_level) == (45_000, "debug")


def test_settings_that_the_supervisor_would_refuse_end_with_1(meshfast: Run) -> None:
    done = meshfast("proxy", "--listen", ":1", "--forward", "--instance", "a/b")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("settings: instance must be letters")


def test_a_regular_expression_that_re2_refuses_is_found_in_the_file(
    meshfast: Run, tmp_path: Path
) -> None:
    file = tmp_path / "mesh.yaml"
    good = (ROOT / "examples/routes.yaml").read_text()
    file.write_text(good.replace("GET|POST", "(?=GET)"))
    done = meshfast("proxy", "-c", str(file), "--mode", "validate")
    assert (done.returncode, done.stdout) == (1, "1 problem\n")
    assert done.stderr.startswith(f"{file}:33:27: spec.http[1].match[0].method.regex: ")


def test_only_the_default_metrics_address_gives_way(served: list[launch.Options]) -> None:
    run_proxy("--listen", ":1", "--forward")
    run_proxy("--listen", ":1", "--forward", "--metrics-address", "127.0.0.1:15020")
    assert [options.metrics_fallback for options in served] == [True, False]


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "meshfast", "proxy", "-c", "/nowhere", "-o", "yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "/nowhere: cannot read the file: No such file or directory\n"


def test_a_command_imports_only_its_own_rooms() -> None:
    program = "import sys; from meshfast.cli import app; app(['version'], standalone_mode=False)"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert not {"yaml", "meshfast.policy", "meshfast.resources", "meshfast._core"} & loaded
