"""Tests of an index, on both engines: in C++ over host memory, and of torch ops over tensors, as on a GPU."""

from __future__ import annotations

import pytest

from agmh_fast.search import index


@pytest.fixture(params=["host", "tensors"])
def engine(request, monkeypatch):
    """What serves the CPU in the test."""
    if request.param == "tensors":
        monkeypatch.setattr(index, "_in_host_memory", lambda device: False)
    return request.param
