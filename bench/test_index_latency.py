"""One query from Python: what checks, conversions and results around the engine cost, in microseconds a call."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from measuring import Timed

import agmh_fast as af

CALLS = 2000


def _many(call: Callable[[], object]) -> Timed:
    """So many calls that reading the clock does not count."""

    def run() -> None:
        for _ in range(CALLS):
            call()

    return Timed(run)


@pytest.mark.benchmark(group="search, Q=1, N=10 000, 64 bits, k=10, 2000 calls")
@pytest.mark.parametrize(("kind", "target_us"), [("numpy", 8), ("torch", 12)])
def test_one_query(benchmark, take_turns, say, kind, target_us):
    codes = np.random.default_rng(0).integers(0, 256, (10_000, 8), dtype=np.uint8)
    index = af.HammingIndex(64)
    index.add(codes)
    query = codes[:1].copy()
    given = query if kind == "numpy" else torch.from_numpy(query)
    engine, empty = index._engine, af.HammingIndex(64)._engine
    for found, expected in zip(index.search(given, 10), engine.search(query, 10, 64), strict=True):
        assert np.array_equal(np.asarray(found), expected)
    taken = take_turns(
        {
            "index": _many(lambda: index.search(given, 10)),
            "engine": _many(lambda: engine.search(query, 10, 64)),
            "binding": _many(lambda: empty.search(query, 10, 64)),  # with nothing to search
        }
    )
    us = {name: statistics.median(seconds) / CALLS * 1e6 for name, seconds in taken.items()}
    benchmark.extra_info.update({f"{name}_us": round(value, 2) for name, value in us.items()}, target_us=target_us)
    parts = f"engine {us['engine']:.1f}, of which without items {us['binding']:.1f}"
    say(f"\n{kind}: {us['index']:.1f} µs a call (target {target_us}), {parts}")
