"""Telemetry: reads what workers wrote into shared memory, and says it in Prometheus' formats.

    exposition  families -> text 0.0.4 or OpenMetrics 1.0, streamed; content negotiation
    families    shared memory -> metric families: names, labels and buckets are Istio's
    collector   the same families for a registry of prometheus-client
    processes   memory and CPU of the sidecar's processes, by role
    source      the types of what is read (for the type checker only)

Never on the request path, and never in a worker. The agent, which has 8 MB for everything, does not
load prometheus-client: the library's import alone holds 9.5 MB of private memory, and a scrape of
100 HTTP series took it 150 ms and 15 MB where the writer in `exposition` takes 2 ms and 0.1 MB
(1,000 series: 1.56 s and 137 MB, against 18 ms). `collector` is for those who have a registry
already; the tests hold the two against each other, sample by sample.

Tests: tests/agent/test_exposition.py, test_families.py, test_processes.py.
"""
