"""What the packaging suite looks at: the wheel and the sdist that `make test` left in dist/.

Nothing is built here. A missing or a second wheel is a failure, never a skip.
"""

from pathlib import Path

import pytest

from tests.repository import ROOT


def only(pattern: str) -> Path:
    """Return the one file of dist/ that matches."""
    found = sorted((ROOT / "dist").glob(pattern))
    assert len(found) == 1, f"dist/{pattern} must be one file (make test builds it): {found}"
    return found[0]


@pytest.fixture(scope="session")
def wheel() -> Path:
    """Return the wheel."""
    return only("meshfast-*.whl")


@pytest.fixture(scope="session")
def sdist() -> Path:
    """Return the source distribution."""
    return only("meshfast-*.tar.gz")
