"""The registry: which workloads run, said by themselves over authenticated streams.

    WorkloadRecord    one registered workload, as the store keeps it
    Registry          writes them, keeps their leases alive, and lets go of them gently

Tests: tests/control/registry/.
"""

from meshfast.control.registry.registry import Registry
from meshfast.control.registry.workload import (
    WORKLOADS_PREFIX,
    WorkloadRecord,
    claim_problem,
    workload_key,
)

__all__ = ["WORKLOADS_PREFIX", "Registry", "WorkloadRecord", "claim_problem", "workload_key"]
