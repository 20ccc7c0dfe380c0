"""A service written with httpx that calls another: `call_httpx.py HTTP_URL HTTPS_URL CA`.

It knows of no proxy: the library reads the environment. Prints the facts that the test judges.
"""

import json
import ssl
import sys
from collections import Counter

import httpx

LENGTH = 10_000_000
BODY = b"x" * LENGTH
CALLS = 200


def main(service: str, outside: str, authority: str) -> None:
    """Make all calls over one client."""
    steps: Counter[str] = Counter()

    def trace(step: str, _: object) -> None:
        steps[step] += 1

    trusted = ssl.create_default_context(cafile=authority)
    with httpx.Client(timeout=30, verify=trusted) as client:
        extensions = {"trace": trace}
        facts: dict[str, object] = {
            "caller": client.get(f"{service}/hello", extensions=extensions).json()["caller"],
            "down": [
                len(client.get(f"{service}/bytes?n={LENGTH}{how}", extensions=extensions).content)
                for how in ("", "&chunked")
            ],
            "up": [
                client.post(service, content=body, extensions=extensions).json()
                for body in (BODY, (BODY[at : at + 50_000] for at in range(0, LENGTH, 50_000)))
            ],
        }
        for _ in range(CALLS):
            client.get(f"{service}/hello", extensions=extensions).raise_for_status()
        facts["connections"] = steps["connection.connect_tcp.started"]
        facts["outside"] = client.get(outside).text
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
