"""The supervisor: forks, reaps, keeps the listening sockets, forwards signals, drains, restarts.

One process, one thread, the standard library only. It is started as
`python -I -m meshfast.supervisor --settings-fd N` (see `launch`) and loads neither the extension
nor any other room: workers and the agent are imported by dotted name, in the child, after the fork.
What it holds outlives every child: listening sockets, the newest snapshot, the shared memory, the
socket pairs between workers and to the agent. It never touches a request.

What it refuses: a second start of the same instance, a setting it does not know, an explicit
address that is taken. What it does not do: parse configuration, resolve names, speak TLS or HTTP.

Invariants
1. One thread, no runtime, no lock: `os.fork` is safe at any time.
2. It blocks in `poll` only; a child that stops reading its channel is replaced, not waited for.
3. Every descriptor is close-on-exec and closed in a child that does not own it; the lock belongs to
   the supervisor alone.
4. No `typing`, `dataclasses`, `logging`, `argparse`, `ctypes`: each costs 0.3-2.6 MB in every
   process of the mesh. Measured with two workers on Python 3.11: 11.6 MB resident, of which 4.1 MB
   are its proportional share (PSS), 29 descriptors, no CPU while nothing happens.

Who dies, who notices and what happens is docs/deaths.md. Tests: tests/supervisor/.
"""
