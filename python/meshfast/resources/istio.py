"""What Istio knows and meshfast does not serve yet: names only, so that a refusal can say which.

A field that is in the schema of neither is a typing mistake and is answered with "did you mean";
one that is listed here is right and has to wait. Sources: `networking/v1/gateway.proto`,
`virtual_service.proto`, `service_entry.proto`, `workload_entry.proto`, `destination_rule.proto` of
istio/api, and ObjectMeta of Kubernetes.

The keys are the names of the structs in `meshfast.resources.kinds`; a test holds that no field is
listed in both (tests/core/test_decode.py).
"""

from __future__ import annotations

__all__ = ["FIELDS", "KINDS", "REASONS", "VALUES"]

# ObjectMeta fields that only the API server writes.
_SERVER_SET = frozenset(
    {
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)

FIELDS: dict[str, frozenset[str]] = {
    "Metadata": _SERVER_SET,
    "Gateway": frozenset({"status"}),
    "Server": frozenset({"defaultEndpoint", "tls"}),
    "Port": frozenset({"targetPort"}),
    "VirtualService": frozenset({"status"}),
    "VirtualServiceSpec": frozenset({"exportTo", "tls"}),
    "HTTPRoute": frozenset(
        {
            "corsPolicy",
            "delegate",
            "directResponse",
            "fault",
            "headers",
            "mirror",
            "mirrorPercent",
            "mirrorPercentage",
            "mirrors",
            "redirect",
            "retries",
            "rewrite",
        }
    ),
    "HTTPMatchRequest": frozenset({"gateways", "sourceLabels", "sourceNamespace", "statPrefix"}),
    "HTTPRouteDestination": frozenset({"headers"}),
    "Destination": frozenset({"subset"}),
    "L4MatchAttributes": frozenset(
        {"destinationSubnets", "gateways", "sourceLabels", "sourceNamespace", "sourceSubnet"}
    ),
    "ServiceEntry": frozenset({"status"}),
    "ServiceEntrySpec": frozenset({"addresses", "exportTo", "subjectAltNames", "workloadSelector"}),
    "WorkloadEntry": frozenset({"locality", "network", "serviceAccount"}),
}

VALUES: dict[str, frozenset[str]] = {
    "Protocol": frozenset(
        {
            "GRPC",
            "GRPC-WEB",
            "HTTP2",
            "HTTPS",
            "HTTP_PROXY",
            "MONGO",
            "MYSQL",
            "REDIS",
            "TLS",
            "UDP",
        }
    ),
    "Resolution": frozenset({"DNS_ROUND_ROBIN", "DYNAMIC_DNS", "NONE"}),
}

KINDS: frozenset[str] = frozenset(
    {
        "AuthorizationPolicy",
        "DestinationRule",
        "EnvoyFilter",
        "GRPCRoute",
        "GatewayClass",
        "HTTPRoute",
        "PeerAuthentication",
        "ProxyConfig",
        "ReferenceGrant",
        "RequestAuthentication",
        "Sidecar",
        "TCPRoute",
        "TLSRoute",
        "Telemetry",
        "UDPRoute",
        "WasmPlugin",
        "WorkloadEntry",
        "WorkloadGroup",
    }
)

# Why a name has to wait, where the name alone leaves the reader without a next step.
REASONS: dict[str, str] = {
    **dict.fromkeys(_SERVER_SET, "Kubernetes writes it, not you: remove it from the file"),
    **dict.fromkeys(("HTTPS", "TLS", "tls"), "TLS is not served yet: use protocol HTTP or TCP"),
    "subset": "subsets come with DestinationRule; until then give each version a host of its own",
    "ServiceEntrySpec.resolution": "Istio's default, NONE, is not supported by meshfast yet",
    "NONE": "write STATIC with endpoints, or DNS",
}
