"""Tests of an index, on every engine."""

from __future__ import annotations

import pytest
from engines import served_by


@pytest.fixture(params=["host", "tensors", "streamed"])
def engine(request):
    """What serves the CPU in the test."""
    with served_by(request.param):
        yield request.param
