"""A writer that is killed at any moment loses nothing that it acknowledged.

Each round starts a process that writes, kills it with SIGKILL after a random number of
acknowledgements, and then reads the whole history in this process. What this shows: the order of
commit and acknowledgement, recovery from a torn log, and the life of epochs. What it cannot show:
that a power cut keeps what was synced; for that there is only `synchronous = FULL`, whose setting
test_schema.py checks.
"""

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from meshfast.control.store import SqliteStore
from meshfast.discovery import ORIGIN, Revision
from tests.control.store import killed_writer

History = dict[Revision, dict[str, bytes]]


def write_until_killed(directory: Path, round_number: int, acknowledgements: int) -> set[str]:
    """Run a writer, kill it after so many acknowledgements, return all that it made."""
    process = subprocess.Popen(
        [sys.executable, killed_writer.__file__, str(directory), str(round_number)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(acknowledgements)]
    process.kill()
    lines += process.stdout.readlines()  # those already in the pipe count as well
    process.stdout.close()
    process.wait()
    assert all(line.endswith("\n") for line in lines), "the writer ended by itself"
    return set(lines)


def read_history(directory: Path) -> History:
    """Open what the killed writer left and read all of it, in the order of a watch."""
    store = SqliteStore(directory)
    watch = store.watch("", after=ORIGIN)
    history: History = {}
    while sets := watch.poll():
        for change_set in sets:
            assert change_set.revision not in history
            history[change_set.revision] = {
                change.key: change.entry.value for change in change_set.changes if change.entry
            }
    assert list(history) == sorted(history)
    assert not history or store.revision() == next(reversed(history))
    store.close()
    return history


def check_rounds(directory: Path, rounds: int) -> None:
    chance = random.Random(18)
    before: History = {}
    for round_number in range(rounds):
        acknowledged = write_until_killed(directory, round_number, chance.randrange(1, 40))
        history = read_history(directory)
        for line in acknowledged:
            epoch, n, thread, count = map(int, line.split())
            value = f"{round_number} {thread} {count}".encode()
            wanted = {f"{thread}/one": value, f"{thread}/two": value}
            assert history.get(Revision(epoch, n)) == wanted, f"lost: {line}"
        assert list(history.items())[: len(before)] == list(before.items()), "the past changed"
        assert all(two.n == one.n + 1 for one, two in pairwise(history)), "a gap or a repetition"
        epochs = {revision.epoch for revision in history}
        assert len(epochs) == round_number + 1, "each opening that wrote is an epoch of its own"
        before = history


def test_fifty_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    check_rounds(tmp_path / "store", rounds=50)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_thousand_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    for part in range(20):  # a history of its own each, since all of it is read every time
        check_rounds(tmp_path / f"store {part}", rounds=50)
