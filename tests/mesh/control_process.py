"""The control plane as a process that a test can kill: `control_process STATE_DIR PORT`.

Commands come as JSON lines on standard input and are answered with one line each:
{"token": "payment"} with `uses`; {"apply": "yaml"}; {"delete": [kind, namespace, name]};
{"sidecars": true}; {"services": true}; {"workloads": true}.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from meshfast import _core
from meshfast.control.operations import Operations
from meshfast.control.server import ControlPlane, Options
from meshfast.errors import MeshfastError


async def obey(operations: Operations, command: dict[str, Any]) -> object:
    """Do what one line asks for."""
    match command:
        case {"token": service, **more}:
            created = await operations.create_token(service, **more)
            return created.text
        case {"apply": text}:
            return await operations.apply(text)
        case {"delete": [kind, namespace, name]}:
            return await operations.delete(kind, namespace, name)
        case {"sidecars": _}:
            return await operations.sidecars()
        case {"workloads": _}:
            return await operations.workloads()
        case {"services": _}:
            return await operations.services()
    raise AssertionError(command)


async def main(state_dir: str, port: int, cert_ttl_s: int) -> None:
    """Serve until standard input ends."""
    plane = ControlPlane(
        Options(
            state_dir=Path(state_dir),
            host="127.0.0.1",
            port=port,
            trust_domain="cluster.local",
            build=_core.Snapshot.build,
            cert_ttl_s=cert_ttl_s,
        )
    )
    await plane.start()
    print(json.dumps(plane.address), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            answer = await obey(plane.operations, json.loads(line))
        except MeshfastError as error:
            answer = {"error": str(error)}
        print(msgspec.json.encode(answer).decode(), flush=True)
    await plane.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
