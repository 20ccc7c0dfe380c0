"""The agent's own log lines: JSON, filtered by level, never waiting."""

import json
import os

from meshfast.agent.log import Log


def read(fd: int) -> list[dict[str, object]]:
    os.set_blocking(fd, False)
    return [json.loads(line) for line in os.read(fd, 65536).splitlines()]


def test_a_line_is_one_json_object_with_time_level_and_fields() -> None:
    reading, writing = os.pipe()
    Log("info", writing).warning("addresses changed", hosts=["a"], why='"quoted"\n')
    (entry,) = read(reading)
    assert str(entry.pop("time")).endswith("Z")
    assert entry == {
        "level": "warning",
        "process": "agent",
        "event": "addresses changed",
        "hosts": ["a"],
        "why": '"quoted"\n',
    }


def test_levels_below_the_chosen_one_are_left_out() -> None:
    reading, writing = os.pipe()
    log = Log("warn", writing)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [entry["event"] for entry in read(reading)] == ["c", "d"]


def test_a_line_is_dropped_when_nobody_reads() -> None:
    reading, writing = os.pipe()
    log = Log("info", writing)
    for _ in range(100):
        log.info("flood", text="x" * 4000)
    assert 0 < len(os.read(reading, 1 << 20)) <= 65536


def test_a_reader_that_went_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    Log("info", writing).info("nobody hears this")
