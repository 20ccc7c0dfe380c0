"""What tests of several rooms share: a Zipkin server that is none, ended with its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agent.fakes.zipkin import FakeZipkin


@pytest.fixture
def zipkin() -> Iterator[FakeZipkin]:
    fake = FakeZipkin()
    yield fake
    fake.close()
