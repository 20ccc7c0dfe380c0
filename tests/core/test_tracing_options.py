"""`--zipkin-address` and `--trace-sampling`: what they take, refuse, and lead to."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from meshfast.cli import app
from meshfast.cli.tracing import Percent, ZipkinAddress, sampling_ppm
from meshfast.errors import ConfigError
from meshfast.policy import SlotAllocator, Source, compile_source
from meshfast.policy.document import Tracing, decode_document


def unwrapped(output: str) -> str:
    """Without the box that errors are printed in."""
    return " ".join(output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("percent", "ppm"),
    [("0", 0), ("0.01", 100), ("1", 10_000), ("12.5", 125_000), ("100", 1_000_000),
     ("100.00", 1_000_000)],
)  # fmt: skip
def test_a_percentage_has_two_decimals_at_most(percent: str, ppm: int) -> None:
    assert Percent().convert(percent, None, None) == ppm


@pytest.mark.parametrize(
    ("percent", "hint"),
    [("100.01", "0 to 100 in steps of 0.01"), ("0.001", "steps of 0.01"), ("-1", "0 to 100"),
     ("1%", "a number without %"), ("", "0 to 100"), ("1e1", "0 to 100"), (".5", "0 to 100")],
)  # fmt: skip
def test_another_share_is_refused_with_a_hint(percent: str, hint: str) -> None:
    result = CliRunner().invoke(
        app, ["proxy", "--listen", ":1", "--to", "a:1", f"--trace-sampling={percent}"]
    )
    assert result.exit_code == 2
    assert hint in unwrapped(result.output)


@pytest.mark.parametrize("address", ["127.0.0.1:9411", "zipkin:9411", "[::1]:1", "a.b-c.d:65535"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    assert ZipkinAddress().convert(address, None, None) == address


@pytest.mark.parametrize(
    ("address", "hint"),
    [("http://zipkin:9411/api/v2/spans", "without http:// and path"), ("zipkin", "127.0.0.1:9411"),
     ("zipkin:0", "127.0.0.1:9411"), ("zipkin:65536", "127.0.0.1:9411"), ("::1:9411", "HOST:PORT"),
     ("a b:1", "HOST:PORT"), ("[127.0.0.1]:1", "HOST:PORT"), (":9411", "HOST:PORT")],
)  # fmt: skip
def test_another_address_is_refused_with_a_hint(address: str, hint: str) -> None:
    result = CliRunner().invoke(
        app, ["proxy", "--listen", ":1", "--to", "a:1", "--zipkin-address", address]
    )
    assert result.exit_code == 2
    assert hint in unwrapped(result.output)


def test_one_percent_is_sampled_unless_told() -> None:
    assert sampling_ppm("zipkin:9411", None) == 10_000
    assert sampling_ppm("zipkin:9411", 0) == 0
    assert sampling_ppm(None, None) == 0


def test_a_share_without_a_server_is_refused() -> None:
    with pytest.raises(ConfigError, match="give --zipkin-address too"):
        sampling_ppm(None, 10_000)


def test_validation_refuses_a_share_without_a_server_too() -> None:
    arguments = ["proxy", "--listen", ":1", "--to", "a:1", "--trace-sampling", "5"]
    result = CliRunner().invoke(app, [*arguments, "--mode", "validate"])
    assert isinstance(result.exception, ConfigError)
    assert "give --zipkin-address too" in str(result.exception)


def test_a_proxy_records_spans_only_for_a_server(tmp_path: Path) -> None:
    def tracing(source: Source) -> Tracing | None:
        data = compile_source(
            source, generation=1, allocator=SlotAllocator(), resolve=lambda host: []
        )
        found = decode_document(data).tracing
        return found or None

    plain = Source(listen=":80", to="127.0.0.1:1")
    assert tracing(plain) is None
    traced = Source(
        listen=":80",
        to="127.0.0.1:1",
        zipkin_address="zipkin:9411",
        sampling_parts_per_million=125_000,
    )
    assert tracing(traced) == Tracing(sampling_parts_per_million=125_000)
