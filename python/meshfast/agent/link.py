"""The line to the control plane: join with the token, keep one stream, come back when it breaks.

    no certificate → joining (token, or the certificate that has expired) → a certificate
                   → streaming (Hello …) → broken → again

A sidecar with a certificate that is still good streams at once and needs no token. Reconnecting
waits at random from 0.1 s up to a bound that doubles to 10 s and is never below 1 s, so that a
control plane that comes back, or has just gone, is not met by all sidecars at once.

Does not do: applying pushes, keeping files, deciding when to renew (mesh).

Invariants:
1. One stream at a time. Whatever ends it, the next attempt is due.
2. Nothing but the request for a certificate is said without one that is still good.
3. The token's secret is sent only to a server that has proven its identity.

Tests: tests/agent/test_mesh.py, tests/agent/test_link.py.
"""

from __future__ import annotations

import random
import time

from meshfast.agent.identity import IdentityError, tls_client
from meshfast.agent.stream import Stream
from meshfast.discovery.client import ClientSession, ClientState
from meshfast.discovery.error import DiscoveryError
from meshfast.discovery.messages import (
    CertificateRequest,
    CertificateResponse,
    Goodbye,
    Heartbeat,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshfast.agent.identity import Identity
    from meshfast.agent.log import Log
    from meshfast.agent.loop import Loop, Timer
    from meshfast.agent.resolver import Resolver
    from meshfast.discovery.messages import Message

__all__ = ["Link"]

DELAY_S_MIN = 0.1
DELAY_S_MAX = 10.0
SPREAD_S_MIN = 1.0  # all sidecars lose the same stream at the same moment
STEADY_S = 10.0  # a stream that lived for so long was not an attempt that failed
SILENCE = 3  # heartbeats that may be missing
JOIN_S_MAX = 15.0
NO_TOKEN = "no certificate that is still good, and no token to join with"
# What another attempt with the same token will not change: the token or its identity is refused, or
# the request, which would be the same again. Of the others (control/ca/error.py has all) a rate
# passes, a key is replaced, an issuer mended, and what is not renewed is asked for with the token.
FINAL_REFUSALS = (
    "authority",
    "extension",
    "malformed",
    "name",
    "revoked",
    "signature",
    "subject",
    "token_expired",
    "token_invalid",
    "token_revoked",
    "token_used",
    "too_large",
)


class Link:
    """`session` is the dialogue; it outlives streams. `is_open` while Hello has been answered."""

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        log: Log,
        control: str,
        roots: Sequence[bytes],
        server_identity: str,
        session: ClientSession,
        *,
        join_request: Callable[[], CertificateRequest | None],
        on_certificate: Callable[[CertificateResponse], None],
        on_open: Callable[[], None],
        on_activity: Callable[[], None],
        on_lost: Callable[[], None],
        on_hopeless: Callable[[str], None],
    ) -> None:
        """`control` is `host:port`. `on_activity` follows the messages of an open stream.

        `join_request` gives the request without a certificate that is still good, None when there
        is nothing to ask with. `on_hopeless` gets the reason why joining will not succeed before
        somebody does something about it; it is tried again all the same.
        """
        self.session = session
        self.identity: Identity | None = None
        self._loop = loop
        self._resolver = resolver
        self._log = log
        self._host, _, port = control.rpartition(":")
        self._port = int(port)
        self._roots = list(roots)
        self._server_identity = server_identity
        self._join_request = join_request
        self._on_certificate = on_certificate
        self._on_open = on_open
        self._on_activity = on_activity
        self._on_lost = on_lost
        self._on_hopeless = on_hopeless
        self._stream: Stream | None = None
        self._is_joining = False
        self._is_token_shown = False
        self._attempts = 0
        self._connected_at = 0.0
        self._heard_at = 0.0
        self._timer: Timer | None = None
        self._beat: Timer | None = None
        self._said = ""
        self._is_settling = False
        self._stopped = False

    @property
    def is_open(self) -> bool:
        """Tell whether messages can be sent."""
        return self._stream is not None and self.session.state is ClientState.OPEN

    @property
    def local_address(self) -> str:
        """This host's address as the control plane sees it; "" without a stream."""
        return "" if self._stream is None else self._stream.local_address

    def start(self) -> None:
        """Begin the first attempt."""
        self._connect()

    def flush(self) -> None:
        """Send what the session has to say."""
        if self._stream is not None and not self._is_joining:
            for message in self.session.poll_messages():
                self._stream.send(message)

    def stop(self, *, for_good: bool) -> None:
        """Never come back. `for_good`: say goodbye, which ends the registration at once.

        Otherwise another agent of this sidecar follows, and nobody should notice.
        """
        self._stopped = True
        if self._stream is not None and self.is_open:
            self.flush()
            if for_good:
                self._stream.send(Goodbye("drain"))
            self._stream.finish()
        self._hang_up()

    def _connect(self) -> None:
        self._timer = None
        self._attempts += 1
        self._resolver.resolve(self._host, self._on_addresses)

    def _on_addresses(self, addresses: list[str], error: str | None) -> None:
        if self._stopped or self._stream is not None:
            return
        if not addresses:
            return self._on_end(f"{self._host}: {error}")
        identity = self.identity
        if identity is not None and not identity.is_valid(time.time()):
            identity = None
        self._is_joining = identity is None
        roots = self._roots if self.identity is None else [*self.identity.bundle]
        try:
            tls = tls_client(roots, identity, self._server_identity)
        except IdentityError as wrong:
            return self._on_end(str(wrong))
        self._connected_at = time.monotonic()
        self._stream = Stream(
            self._loop,
            (addresses[self._attempts % len(addresses)], self._port),
            tls,
            self._on_stream_open,
            self._on_message,
            self._on_end,
        )

    def _on_stream_open(self) -> None:
        self._heard_at = time.monotonic()
        if self._is_joining:
            request = self._join_request()
            if request is None:
                self._on_end(NO_TOKEN)
                return self._on_hopeless(NO_TOKEN)
            assert self._stream is not None
            self._is_token_shown = bool(request.token_id)
            self._stream.send(request)
            self._beat = self._loop.call_later(
                JOIN_S_MAX, lambda: self._on_end("no certificate in time")
            )
            return
        self.session.connected()
        self.flush()

    def _on_message(self, message: Message) -> None:
        self._heard_at = time.monotonic()
        if self._is_joining:
            return self._on_join_message(message)
        was_open = self.session.state is ClientState.OPEN
        try:
            self.session.handle_message(message)
        except DiscoveryError as error:
            return self._on_end(str(error))
        if not was_open and self.session.state is ClientState.OPEN:
            self._said = ""
            self._log.info("control plane connected", control=f"{self._host}:{self._port}")
            self._beat_later()
            self._on_open()
        for received in self.session.take_received():
            if isinstance(received, Goodbye):
                return self._on_end(f"goodbye from the control plane: {_why(received)}")
            self._on_certificate(received)
        # After what else arrived with it: pushes that come together are applied together.
        if not self._is_settling:
            self._is_settling = True
            self._loop.call_later(0, self._settle)

    def _settle(self) -> None:
        self._is_settling = False
        self._on_activity()
        self.flush()

    def _on_join_message(self, message: Message) -> None:
        if isinstance(message, CertificateResponse):
            before = self.identity
            self._on_certificate(message)
            if self.identity is not before:
                self._attempts = 0
                self._hang_up()
                self._connect()
                return
            reason = f"joining was refused: {message.refusal or 'unusable certificate'}"
            self._on_end(reason)
            # Without the token it was a renewal, and the token is tried next.
            if self._is_token_shown and message.refusal.partition(":")[0] in FINAL_REFUSALS:
                self._on_hopeless(reason)
        elif isinstance(message, Goodbye):
            self._on_end(f"joining was refused: {_why(message)}")

    def _beat_later(self) -> None:
        self._beat = self._loop.call_later(self.session.heartbeat_ms / 1000, self._on_beat)

    def _on_beat(self) -> None:
        if time.monotonic() - self._heard_at > SILENCE * self.session.heartbeat_ms / 1000:
            return self._on_end("the control plane is silent")
        self.session.send(Heartbeat())
        self.flush()
        self._beat_later()

    def _on_end(self, reason: str) -> None:
        """The stream is over, or never was; try again later."""
        was_open = self.is_open
        if time.monotonic() - self._connected_at >= STEADY_S and was_open:
            self._attempts = 0
        self._hang_up()
        if reason != self._said:  # once, not at every attempt of an outage
            self._said = reason
            self._log.warning(
                "no control plane", control=f"{self._host}:{self._port}", reason=reason
            )
        if was_open:
            self._on_lost()
        if not self._stopped:
            self._timer = self._loop.call_later(_delay_s(self._attempts), self._connect)

    def _hang_up(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self.session.state is not ClientState.OFFLINE:
            self.session.disconnected()


def _delay_s(attempts: int) -> float:
    """Choose when to try again, after so many attempts in a row without a steady stream."""
    bound = min(DELAY_S_MAX, DELAY_S_MIN * 2 ** min(attempts, 16))
    return random.uniform(DELAY_S_MIN, max(bound, SPREAD_S_MIN))


def _why(goodbye: Goodbye) -> str:
    return f"{goodbye.code} {goodbye.detail}".rstrip()
