"""From what is stored to what sidecars are sent: a pure function, shared parts encoded once.

    Translation(resources, workloads, resolve).bodies(namespace) -> type → name → bytes

| type | name | body, a piece of the snapshot document in JSON |
|---|---|---|
| `cluster` | `outbound|<port>|<subset>|<host>` | a cluster without endpoints; TLS, balancer |
| `endpoint` | the same | its endpoints, without slots, with their health |
| `listener` | `outbound` | the outbound listener without virtual hosts |
| `route` | `outbound` | the virtual hosts of all services; only this differs by namespace |

A service exists when a workload registers for it. Rules come from VirtualServices that are bound to
the mesh, by the same code that compiles them for a gateway. A subset of a DestinationRule has
clusters of its own as soon as a rule sends to it, with the workloads that have its labels.

Does not do: reading the store, pushing, judging: what was stored has been validated (`check`).

Tests: tests/control/translate/.
"""

from meshfast.control.translate.check import check, orphans
from meshfast.control.translate.services import MeshService, ServicePort, mesh_services
from meshfast.control.translate.translation import Translation

__all__ = ["MeshService", "ServicePort", "Translation", "check", "mesh_services", "orphans"]
