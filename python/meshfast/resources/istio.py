"""What Istio knows and meshfast does not serve yet: names only, so that a refusal can say which.

A field that is in the schema of neither is a typing mistake and is answered with "did you mean";
one that is listed here is right and has to wait. Sources: `networking/v1/gateway.proto`,
`virtual_service.proto`, `service_entry.proto`, `workload_entry.proto`, `destination_rule.proto` of
istio/api, and ObjectMeta of Kubernetes.

The keys are the names of the structs in `meshfast.resources.kinds`; a test holds that no field is
listed in both (tests/core/test_decode.py).
"""

from __future__ import annotations

__all__ = ["FIELDS", "INSTEAD", "KINDS", "KUBERNETES", "REASONS", "RETRY_CONDITIONS", "VALUES"]

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
            "mirror",
            "mirrorPercent",
            "mirrorPercentage",
            "mirrors",
            "redirect",
            "rewrite",
        }
    ),
    "HTTPMatchRequest": frozenset({"gateways", "sourceLabels", "sourceNamespace", "statPrefix"}),
    "HTTPRetry": frozenset({"retryRemoteLocalities"}),
    "Delay": frozenset({"exponentialDelay", "percent"}),
    "Abort": frozenset({"http2Error"}),
    "DestinationRule": frozenset({"status"}),
    "DestinationRuleSpec": frozenset({"exportTo", "workloadSelector"}),
    "TrafficPolicy": frozenset(
        {
            "connectionPool",
            "outlierDetection",
            "portLevelSettings",
            "proxyProtocol",
            "retryBudget",
            "tls",
            "tunnel",
        }
    ),
    "LoadBalancerSettings": frozenset(
        {"consistentHash", "localityLbSetting", "warmup", "warmupDurationSecs"}
    ),
    "L4MatchAttributes": frozenset(
        {"destinationSubnets", "gateways", "sourceLabels", "sourceNamespace", "sourceSubnet"}
    ),
    "ServiceEntry": frozenset({"status"}),
    "ServiceEntrySpec": frozenset({"addresses", "exportTo", "subjectAltNames"}),
    "WorkloadEntry": frozenset({"status"}),
    "WorkloadEntrySpec": frozenset({"locality", "network", "serviceAccount"}),
}

# Required fields that Istio does not ask for when one of these is there.
INSTEAD: dict[str, frozenset[str]] = {
    "Delay.fixedDelay": frozenset({"exponentialDelay"}),
    "HTTPRoute.route": frozenset({"delegate", "directResponse", "redirect"}),
    "LoadBalancerSettings.simple": frozenset({"consistentHash", "localityLbSetting"}),
}

VALUES: dict[str, frozenset[str]] = {
    "Balancer": frozenset({"PASSTHROUGH", "UNSPECIFIED"}),
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

RETRY_CONDITIONS: frozenset[str] = frozenset(
    {"envoy-ratelimited", "http3-post-connect-failure", "retriable-headers"}
)

KINDS: frozenset[str] = frozenset(
    {
        "AuthorizationPolicy",
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
        "WorkloadGroup",
    }
)

#: Kinds that are in many a file beside those of the mesh, and what stands for them here.
KUBERNETES: dict[str, str] = {
    "Deployment": "a workload is started by `meshfast run --service NAME --port PORT -- COMMAND`",
    "Ingress": "write a Gateway, and a VirtualService that names it",
    "Pod": "a workload is started by `meshfast run --service NAME --port PORT -- COMMAND`",
    "Service": "a service exists when a workload registers for it, as in `meshfast run --service "
    "NAME --port PORT -- COMMAND`; for one outside the mesh write a ServiceEntry",
}

# Why a name has to wait, where the name alone leaves the reader without a next step.
REASONS: dict[str, str] = {
    **dict.fromkeys(_SERVER_SET, "Kubernetes writes it, not you: remove it from the file"),
    **dict.fromkeys(("HTTPS", "TLS", "tls"), "TLS is not served yet: use protocol HTTP or TCP"),
    "UNSPECIFIED": "leave the field out for the default, LEAST_REQUEST",
    "percent": "Istio replaced it: write percentage: {value: N}",
    "serviceAccount": "endpoints of a WorkloadEntry are called without mutual TLS; a workload that "
    "runs `meshfast run` has an identity",
    "ServiceEntrySpec.resolution": "Istio's default, NONE, is not supported by meshfast yet",
    "NONE": "write STATIC with endpoints, or DNS",
}
