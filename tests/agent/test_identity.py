"""When a certificate is renewed, and which ones are taken."""

import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from meshfast.agent.identity import Identity, IdentityError, Renewal, tls_client
from tests.agent.fakes.authority import Authority, certificate_request, generate_key

PRINCIPAL = "spiffe://cluster.local/ns/default/sa/payment"


class Clock:
    """A loop whose time is moved by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> "Timer":
        timer = Timer(self.now + delay_s, call)
        self.timers.append(timer)
        return timer

    def run_until(self, end: float) -> None:
        while due := [one for one in self.timers if one.call is not None and one.at <= end]:
            first = min(due, key=lambda one: one.at)
            self.now = first.at
            call, first.call = first.call, None
            assert call is not None
            call()
        self.now = end


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Asked:
    """What a renewal did: the times of attempts and alarms."""

    def __init__(self, pick: float) -> None:
        self.clock = Clock()
        self.asleep_s = 0.0  # what the timers have not seen of the clock
        self.attempts: list[float] = []
        self.alarms: list[float] = []
        self.renewal = Renewal(
            self.clock,  # type: ignore[arg-type]
            lambda: self.attempts.append(self.clock.now),
            lambda: self.alarms.append(self.clock.now),
            lambda low, high: low + pick * (high - low),
            lambda: self.clock.now + self.asleep_s,
        )


@pytest.mark.parametrize(("pick", "first"), [(0.0, 350.0), (1.0, 500.0)])
def test_the_first_attempt_is_between_35_and_50_percent_of_a_life(
    pick: float, first: float
) -> None:
    asked = Asked(pick)
    asked.renewal.obtained(1000)
    asked.clock.run_until(first)
    assert asked.attempts == [first]


@pytest.mark.parametrize(
    ("life_s", "pick", "wait_s"),
    [(1000, 0.0, 5.0), (1000, 1.0, 10.0), (20, 0.0, 1.0), (20, 1.0, 2.0)],
)
def test_further_attempts_wait_five_seconds_or_a_twentieth_of_a_short_life(
    life_s: float, pick: float, wait_s: float
) -> None:
    asked = Asked(pick)
    asked.renewal.obtained(life_s)
    asked.clock.run_until(life_s * 0.9)
    waits = {round(b - a, 6) for a, b in zip(asked.attempts, asked.attempts[1:], strict=False)}
    assert waits == {wait_s}


@pytest.mark.parametrize("asleep_s", [40_000.0, 3_000_000.0])
def test_a_host_that_slept_renews_and_rings_within_a_minute(asleep_s: float) -> None:
    asked = Asked(0.5)
    asked.renewal.obtained(86_400)
    asked.clock.run_until(100)
    asked.asleep_s = asleep_s
    asked.clock.run_until(160)
    assert asked.attempts
    assert len(asked.alarms) == (asleep_s > 86_400)


def test_a_clock_that_was_set_back_puts_the_renewal_off() -> None:
    asked = Asked(0.0)
    asked.renewal.obtained(1000)
    asked.asleep_s = -200.0
    asked.clock.run_until(549)
    assert not asked.attempts
    asked.clock.run_until(551)
    assert asked.attempts == [550.0]


def test_it_rings_once_at_60_percent() -> None:
    asked = Asked(0.5)
    asked.renewal.obtained(100)
    asked.clock.run_until(1000)
    assert asked.alarms == [60.0]


def test_a_new_certificate_ends_the_attempts_of_the_old_one() -> None:
    asked = Asked(0.0)
    asked.renewal.obtained(100)
    asked.clock.run_until(36)
    due = [asked.renewal.is_due]
    asked.renewal.obtained(100)
    due.append(asked.renewal.is_due)
    assert due == [True, False]
    asked.clock.run_until(36 + 34)
    assert len(asked.attempts) == 1
    assert not asked.alarms


def test_a_certificate_that_is_old_already_is_renewed_at_its_time() -> None:
    asked = Asked(0.0)
    asked.renewal.obtained(100, 30)
    asked.clock.run_until(4)
    assert not asked.attempts
    asked.clock.run_until(5)
    assert asked.attempts == [5.0]


def test_one_past_its_time_is_renewed_at_once() -> None:
    asked = Asked(0.0)
    asked.renewal.obtained(100, 99)
    asked.clock.run_until(0)
    assert asked.attempts == [0.0]
    assert asked.alarms == [0.0]


def test_no_life_makes_it_spin() -> None:
    asked = Asked(0.0)
    asked.renewal.obtained(-5)
    asked.clock.run_until(1)
    assert len(asked.attempts) <= 20


# identities


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def identity(authority: Authority, key: bytes, *, names: list[str] | None = None) -> Identity:
    leaf = authority.sign(certificate_request(key, PRINCIPAL), 100, names)
    return Identity("cluster.local", key, [leaf], [authority.root], time.time(), PRINCIPAL)


def test_an_identity_survives_disk_and_hand_over(authority: Authority) -> None:
    one = identity(authority, generate_key())
    for data in (one.encode(), one.encode_for_disk()):
        again = Identity.decode(data, PRINCIPAL)
        assert (again.key, again.chain, again.bundle) == (one.key, one.chain, one.bundle)
        assert again.not_after == one.not_after
    assert Identity.decode(one.encode_for_disk(), PRINCIPAL).obtained == one.obtained


@pytest.mark.parametrize(
    "names", [[], ["spiffe://cluster.local/ns/a/sa/b"], [PRINCIPAL, PRINCIPAL]]
)
def test_a_certificate_with_other_names_is_refused(authority: Authority, names: list[str]) -> None:
    with pytest.raises(IdentityError, match="not for"):
        identity(authority, generate_key(), names=names)


def test_a_certificate_for_another_key_is_refused(authority: Authority) -> None:
    leaf = authority.sign(certificate_request(generate_key(), PRINCIPAL), 100)
    with pytest.raises(IdentityError, match="cannot be used"):
        Identity("cluster.local", generate_key(), [leaf], [authority.root], 0, PRINCIPAL)


def test_a_bundle_is_taken_while_a_root_of_it_is_valid(authority: Authority) -> None:
    key, expired = generate_key(), Authority(life_s=-1)
    leaf = authority.sign(certificate_request(key, PRINCIPAL), 100)
    both = [expired.root, authority.root]
    assert Identity("cluster.local", key, [leaf], both, 0, PRINCIPAL).bundle == tuple(both)
    with pytest.raises(IdentityError, match="no root of the trust bundle is valid now"):
        Identity("cluster.local", key, [leaf], [expired.root], 0, PRINCIPAL)


def test_a_server_that_is_another_hears_why_and_sees_no_handshake_end(
    authority: Authority, tmp_path: Path
) -> None:
    pem = tmp_path / "server.pem"
    pem.write_text(authority.pem(PRINCIPAL))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = tls_client([authority.root], None, PRINCIPAL + "-of-another")
    to_server.write(client.records())
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    with pytest.raises(ConnectionError, match=r"not spiffe://.*-of-another"):
        client.receive(to_client.read())
    assert not client.is_open
    to_server.write(client.records())
    with pytest.raises(ssl.SSLError, match=r"(?i)alert certificate unknown"):
        server.do_handshake()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"version":2}', b'{"version":1,"key":1}'])
def test_what_is_no_identity_is_refused(data: bytes) -> None:
    with pytest.raises(IdentityError):
        Identity.decode(data, PRINCIPAL)


def test_the_memory_file_is_sealed_and_the_key_is_in_no_open_file(authority: Authority) -> None:
    before = set(os.listdir("/proc/self/fd"))
    one = identity(authority, generate_key())
    tls_client(one.bundle, one, PRINCIPAL)
    assert set(os.listdir("/proc/self/fd")) == before
    fd = one.memory_file()
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    assert os.pread(fd, 100_000, 0) == one.encode()
    os.close(fd)
