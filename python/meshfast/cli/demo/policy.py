"""The policy of the demo, as a user of Istio writes it.

Tests: tests/demo/test_demo.py.
"""

from __future__ import annotations

import re

__all__ = ["CANARY", "SUBSETS", "weights"]

#: The versions of payment-service, by the label that its workloads are started with.
SUBSETS = """\
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata:
  name: payment-service
spec:
  host: payment-service
  subsets:
    - name: v1
      labels:
        version: v1
    - name: v2
      labels:
        version: v2
"""

#: Without `hosts`, as it is found in the wild: the name of the resource is taken, with a warning.
CANARY = """\
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: payment-service
spec:
  http:
    - route:
        - destination:
            host: payment-service
            subset: v1
          weight: 90
        - destination:
            host: payment-service
            subset: v2
          weight: 10
"""


def weights(v1: int, v2: int) -> str:
    """Give the canary with other weights, and with the hosts that it lacks."""
    shares = iter((v1, v2))
    changed = re.sub(r"weight: \d+", lambda _: f"weight: {next(shares)}", CANARY)
    return changed.replace("spec:\n", "spec:\n  hosts:\n    - payment-service\n")
