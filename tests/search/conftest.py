"""Tests of an index, on every engine: C++ over host memory, torch ops over tensors, as on a GPU, and over pieces."""

from __future__ import annotations

import pytest

from agmh_fast import _engine
from agmh_fast.search import index
from agmh_fast.search.streamed_engine import StreamedEngine

# Bytes for codes on the device: pieces of half as many, some thousand rows at most.
ROOM = 1 << 15


@pytest.fixture(params=["host", "tensors", "streamed"])
def engine(request, monkeypatch):
    """What serves the CPU in the test."""
    if request.param != "host":
        monkeypatch.setattr(index, "_in_host_memory", lambda device: False)
    if request.param == "streamed":
        monkeypatch.setattr(index, "_new_engine", lambda *of: StreamedEngine(*of, _engine.Index(of[0]), ROOM))
        monkeypatch.setattr(index, "_fits", lambda *_: False)
        monkeypatch.setattr(index, "free_bytes", lambda device: 2 * ROOM)
    return request.param
