"""End-to-end measurements: CPU per request and memory of meshfast beside its peers.

`python -m bench`, run from the repository root, starts the candidates on core 0, the load
generator and the origin on core 1, and measures them in turns. What it deliberately does not do:
judge. A slow result is a result; only wrong responses and a harness that could not measure end
non-zero.

Rooms, top down:

    __main__      arguments -> plan -> measure -> report
    cases         what is measured, as data
    candidates    who is measured, how each is started, and what each does not do, as data
    measurement   repetitions in turns, foreign load, checks of responses
    memory        PSS by process: idle, after load, with 1000 idle clients
    ratios        medians, bootstrap intervals, pair ratios
    report        terminal table, JSON, RESULTS.md
    load          wrk and its report; the sampled body check
    processes     start pinned, wait until ready, stop, leave nothing behind
    accounting    CPU time, run time by task, PSS: the readers of /proc
    machine       kernel, processor, versions, commit
    instructions  user instructions per request under callgrind: python -m bench.instructions

Tests: bench/tests/.
"""
