"""A service written with requests that calls another: `call_requests.py HTTP_URL HTTPS_URL CA`.

It knows of no proxy: the library reads the environment. Prints the facts that the test judges.
"""

import json
import sys

import requests

LENGTH = 10_000_000
BODY = b"x" * LENGTH
CALLS = 200


def main(service: str, outside: str, authority: str) -> None:
    """Make all calls over one session."""
    with requests.Session() as session:
        facts = {
            "caller": session.get(f"{service}/hello").json()["caller"],
            "down": [
                len(session.get(f"{service}/bytes?n={LENGTH}{how}").content)
                for how in ("", "&chunked")
            ],
            "up": [
                session.post(service, data=body).json()
                for body in (BODY, (BODY[at : at + 50_000] for at in range(0, LENGTH, 50_000)))
            ],
        }
        for _ in range(CALLS):
            session.get(f"{service}/hello").raise_for_status()
        proxies = session.adapters["http://"].proxy_manager.values()  # type: ignore[attr-defined]
        pools = [proxy.pools[key] for proxy in proxies for key in proxy.pools.keys()]  # noqa: SIM118
        facts["connections"] = sum(pool.num_connections for pool in pools)
        facts["outside"] = session.get(outside, verify=authority).text
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
