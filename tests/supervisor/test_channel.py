"""Control channels: whole messages, descriptors that arrive or are closed, nobody blocks."""

import os
import socket
from collections.abc import Iterator

import pytest

from meshfast.supervisor import channel
from meshfast.supervisor.channel import Channel, ChannelError, Closed


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """Return both ends of a channel; a test may close the second."""
    ours, theirs = channel.pair()
    yield ours, theirs
    os.close(ours)
    try:
        os.close(theirs)
    except OSError:
        return


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def raw(fd: int, data: bytes, fds: list[int]) -> None:
    end = socket.socket(fileno=os.dup(fd))
    socket.send_fds(end, [data], fds)
    end.close()


def test_carries_a_message_and_a_descriptor(ends: tuple[int, int]) -> None:
    fd = os.memfd_create("content")
    os.write(fd, b"content")
    assert Channel(ends[0]).send({"type": "snapshot", "generation": 2}, (fd,))
    os.close(fd)
    taken = Channel(ends[1]).receive()
    assert taken is not None
    message, fds = taken
    assert message == {"type": "snapshot", "generation": 2}
    assert os.pread(fds[0], 64, 0) == b"content"
    assert not os.get_inheritable(fds[0])
    os.close(fds[0])


def test_receives_nothing_when_nothing_waits(ends: tuple[int, int]) -> None:
    assert Channel(ends[0]).receive() is None


def test_keeps_messages_apart_and_in_order(ends: tuple[int, int]) -> None:
    for number in range(3):
        Channel(ends[0]).send({"type": "n", "n": number})
    taken = [Channel(ends[1]).receive() for _ in range(3)]
    assert [one[0]["n"] for one in taken if one] == [0, 1, 2]


@pytest.mark.parametrize("data", [b"{", b"[]", b"7", b'{"no": "type"}', b'{"type": 7}', b"\xff"])
def test_refuses_what_is_no_message_and_closes_its_descriptors(
    ends: tuple[int, int], data: bytes
) -> None:
    before = open_fds()
    raw(ends[1], data, [0])
    with pytest.raises(ChannelError):
        Channel(ends[0]).receive()
    assert open_fds() == before


def test_refuses_a_message_over_64_kib(ends: tuple[int, int]) -> None:
    raw(ends[1], b'{"type": "' + b"x" * channel.MESSAGE_BYTES_MAX + b'"}', [])
    with pytest.raises(ChannelError):
        Channel(ends[0]).receive()


def test_refuses_more_descriptors_than_it_has_room_for(ends: tuple[int, int]) -> None:
    before = open_fds()
    raw(ends[1], b'{"type": "x"}', [0] * 20)
    with pytest.raises(ChannelError):
        Channel(ends[0]).receive()
    assert open_fds() == before


def test_tells_that_the_peer_is_gone_after_its_last_message(ends: tuple[int, int]) -> None:
    Channel(ends[1]).send({"type": "last"})
    os.close(ends[1])
    assert Channel(ends[0]).receive() == ({"type": "last"}, [])
    with pytest.raises(Closed):
        Channel(ends[0]).receive()
    assert not Channel(ends[0]).send({"type": "x"})


def test_does_not_block_on_a_peer_that_does_not_read(ends: tuple[int, int]) -> None:
    sent = 0
    while Channel(ends[0]).send({"type": "x"}):
        sent += 1
        assert sent < 100_000
    assert sent > 10


def test_forwards_a_connection_to_the_first_that_takes_it(ends: tuple[int, int]) -> None:
    gone, closed = channel.pair()
    os.close(closed)
    taker, taken = channel.pair()
    before = open_fds()
    raw(ends[0], b"connection", [0])
    assert channel.forward(ends[1], [gone, taker])
    assert not channel.forward(ends[1], [taker])
    assert open_fds() == before
    receiver = socket.socket(fileno=taken)
    data, fds, _, _ = socket.recv_fds(receiver, 64, 1)
    assert data == b"connection"
    for fd in (*fds, gone, taker):
        os.close(fd)
    receiver.close()


def test_closes_a_connection_that_nobody_takes(ends: tuple[int, int]) -> None:
    before = open_fds()
    raw(ends[0], b"connection", [0])
    assert channel.forward(ends[1], [])
    assert open_fds() == before
