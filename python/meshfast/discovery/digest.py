"""BLAKE2b without OpenSSL, which `hashlib` loads: 1 MB in every agent.

CPython keeps its own implementation in a private module. Where a build has it elsewhere or not at
all, `hashlib` says where; the digests are the same (RFC 7693).

Tests: tests/discovery/test_digest.py.
"""

try:
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b

__all__ = ["blake2b"]
