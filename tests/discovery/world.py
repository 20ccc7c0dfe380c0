"""A control plane's view and a sidecar in memory, joined by bytes, for the tests of both ends."""

from collections.abc import Collection

from meshfast.discovery import (
    ORIGIN,
    ClientSession,
    Framer,
    Node,
    Problem,
    Push,
    Reference,
    Resource,
    Revision,
    ServerSession,
    content_version,
)

NODE = Node(instance="payment-v1-7f", workload="payment-v1", namespace="default")


def resource(name: str, body: bytes) -> Resource:
    return Resource(name, content_version(body), body)


class World:
    """A view that changes. Each change is one revision."""

    def __init__(self) -> None:
        self.revision = ORIGIN
        self.resources: dict[str, dict[str, Resource]] = {}

    def names(self, type: str) -> Collection[str]:
        return self.resources.get(type, {}).keys()

    def resource(self, type: str, name: str) -> Resource | None:
        return self.resources.get(type, {}).get(name)

    def set(self, type: str, name: str, body: bytes | None) -> dict[str, list[str]]:
        """Set or (`None`) remove a resource; return the changes for `notify`."""
        of_type = self.resources.setdefault(type, {})
        if body is None:
            of_type.pop(name, None)
        else:
            of_type[name] = resource(name, body)
        self.revision = Revision(1, self.revision.n + 1)
        return {type: [name]}


class Agent:
    """Applies pushes like the agent: a body `bad…` is refused, a body `needs TYPE NAME` is refused
    until that resource is applied. Checks what the protocol promises while it does so."""

    def __init__(self, client: ClientSession) -> None:
        self.client = client
        self.applied: dict[tuple[str, str], bytes] = {}
        self.offers: list[tuple[str, str, str]] = []

    def take(self) -> list[Push]:
        return self.client.take_pushes()

    def apply(self, push: Push) -> None:
        problems = []
        for offered in push.resources:
            self.offers.append((push.type, offered.name, offered.version))
            problem = self._judge(offered)
            if problem is None:
                self.applied[push.type, offered.name] = offered.body
            else:
                problems.append(problem)
        for name in push.removed:
            self.applied.pop((push.type, name), None)
        self.client.answer(push, problems)
        self.forget_unwanted()

    def forget_unwanted(self) -> None:
        """Drop what the session says is not held: the names that were unsubscribed from."""
        held = {(type, name) for type, names in self.client.held.items() for name in names}
        self.applied = {key: body for key, body in self.applied.items() if key in held}

    def _judge(self, offered: Resource) -> Problem | None:
        if offered.body.startswith(b"bad"):
            return Problem(offered.name, "it is bad")
        if offered.body.startswith(b"needs"):
            _, type, name = offered.body.decode().split()[:3]
            if (type, name) not in self.applied:
                return Problem(offered.name, f"there is no {name}", Reference(type, name))
        return None


class Stream:
    """A client and a server joined by two byte streams that can be cut."""

    def __init__(self, client: ClientSession, world: World) -> None:
        self.client = client
        self.server = ServerSession(world)
        self._to_server, self._to_client = bytearray(), bytearray()
        self._server_framer, self._client_framer = Framer(), Framer()
        client.connected()

    def move(self, up: int | None = None, down: int | None = None) -> bool:
        """Carry at most so many bytes each way (`None`: all); say whether anything happened."""
        for message in self.client.poll_messages():
            self._to_server += self._client_framer.encode(message)
        for pushed in self.server.poll_messages():
            self._to_client += self._server_framer.encode(pushed)
        taken_up, taken_down = bytes(self._to_server[:up]), bytes(self._to_client[:down])
        del self._to_server[: len(taken_up)], self._to_client[: len(taken_down)]
        self._server_framer.receive(taken_up)
        while (received := self._server_framer.take()) is not None:
            self.server.handle_message(received)
        self._client_framer.receive(taken_down)
        while (received := self._client_framer.take()) is not None:
            self.client.handle_message(received)
        return bool(taken_up or taken_down)

    def settle(self, agent: Agent) -> None:
        """Carry and apply until nothing moves."""
        moving = True
        while moving:
            moving = self.move()
            for push in agent.take():
                agent.apply(push)
                moving = True
