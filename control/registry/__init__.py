"""The registry: which workloads run, said by themselves over authenticated streams.

    WorkloadRecord    one registered workload, as the store keeps it
    ServiceRecord     a service that workloads have registered for
    Registry          writes them, keeps their leases alive, and lets go of them gently

Tests: tests/control/registry/.
"""

from meshfast.control.registry.registry import Registry
from meshfast.control.registry.workload import (
    SERVICES_PREFIX,
    WORKLOADS_PREFIX,
    ServiceRecord,
    WorkloadRecord,
    claim_problem,
    service_key,
    workload_key,
)

__all__ = [
    "SERVICES_PREFIX",
    "WORKLOADS_PREFIX",
    "Registry",
    "ServiceRecord",
    "WorkloadRecord",
    "claim_problem",
    "service_key",
    "workload_key",
]
