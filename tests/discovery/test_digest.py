"""The digest is BLAKE2b wherever a build of Python keeps it, and OpenSSL stays out of it."""

import hashlib
import subprocess
import sys

import pytest

BODY = b"a body"
HIDDEN = "import hashlib, sys; sys.modules['_blake2'] = None"
PROGRAM = """
import sys
from meshfast.discovery.revision import content_version
print(content_version({body!r}), "_hashlib" in sys.modules)
"""


@pytest.mark.parametrize(("before", "loads_openssl"), [("", False), (HIDDEN, True)])
def test_the_digest_is_the_same_with_and_without_the_private_module(
    before: str, loads_openssl: bool
) -> None:
    program = before + PROGRAM.format(body=BODY)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    expected = hashlib.blake2b(BODY, digest_size=16).hexdigest()
    assert done.stdout.split() == [expected, str(loads_openssl)]
