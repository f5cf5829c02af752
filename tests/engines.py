"""What serves an index in a test: C++ over host memory, torch ops over tensors, as on a GPU, or over pieces of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from agmh_fast import _engine
from agmh_fast.search import index
from agmh_fast.search.streamed_engine import StreamedEngine

# Bytes for codes on the device: pieces of half as many, some thousand rows at most.
ROOM = 1 << 15


@contextlib.contextmanager
def served_by(engine: str) -> Iterator[str]:
    """Gives the device to make indexes on in the block: the CPU for "host", "tensors" and "streamed", else `engine`."""
    here = engine in ("host", "tensors", "streamed")
    with pytest.MonkeyPatch.context() as patch:
        if engine in ("tensors", "streamed"):
            patch.setattr(index, "_in_host_memory", lambda device: False)
        if engine == "streamed":
            patch.setattr(index, "_new_engine", lambda *of: StreamedEngine(*of, _engine.Index(of[0]), ROOM))
            patch.setattr(index, "_fits", lambda *_: False)
            patch.setattr(index, "free_bytes", lambda device: 2 * ROOM)
        yield "cpu" if here else engine
