"""Search over ranks of a gloo group on one machine, which share its cores: what dividing an index costs.

The first rank is the bench itself, on whose word the others search. One index of all codes has as many threads as the
ranks together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contest import Side, cases
from hamming_contest import LOOP, database, limit_of, side_of
from hamming_peers import ours, random_codes
from limits import Work
from targets import scaled

import agmh_fast as af

BITS, QUERIES, K, ITEMS = 64, 256, 100, 1_000_000
# Longer than a row takes; a rank that dies ends the bench then.
TIMEOUT = timedelta(minutes=5)


def shard(rank: int, size: int, items: int) -> af.ShardedHammingIndex:
    """This rank's part of the codes that `database` makes."""
    codes = random_codes(items, BITS, seed=BITS)
    index = af.ShardedHammingIndex(BITS, timeout=TIMEOUT.total_seconds())
    bounds = np.linspace(0, items, size + 1, dtype=np.int64)
    index.add(codes[bounds[rank] : bounds[rank + 1]])
    return index


def serve(rank: int, size: int, rendezvous: str, items: int, threads: int) -> None:
    """Search as often as the first rank says."""
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size, timeout=TIMEOUT)
    af.set_num_threads(threads)
    index, queries, go = shard(rank, size, items), random_codes(QUERIES, BITS, seed=1), torch.ones(1)
    while True:
        dist.broadcast(go, 0)
        if not go:
            return
        index.search(queries, K)


@contextmanager
def ranks(size: int, folder: Path, items: int) -> Iterator[Callable[[], object]]:
    """A search by all ranks, as long as the block lasts."""
    together = af.get_num_threads()
    rendezvous, threads = f"file://{folder}/rendezvous", max(1, together // size)
    context = mp.get_context("spawn")
    others = [
        context.Process(target=serve, args=(rank, size, rendezvous, items, threads), daemon=True)
        for rank in range(1, size)
    ]
    for process in others:
        process.start()
    dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=size, timeout=TIMEOUT)
    queries = random_codes(QUERIES, BITS, seed=1)
    try:
        index = shard(0, size, items)

        def search() -> object:
            """By the threads of this rank, which alone are restrained."""
            dist.broadcast(torch.ones(1), 0)
            af.set_num_threads(threads)
            try:
                return index.search(queries, K)
            finally:
                af.set_num_threads(together)

        yield search
        dist.broadcast(torch.zeros(1), 0)
        for process in others:
            process.join(30)
    finally:
        for process in others:
            process.kill()
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch.distributed is not in this torch")
@pytest.mark.benchmark(group="k=100 of 1M items, 64 bits, Q=256, by ranks of one machine, against one index")
@cases("size", [1, 2], [4])
def test_sharded_search(contest, tmp_path, size):
    items = scaled(ITEMS)
    _, index = database(BITS, items)
    queries, k = random_codes(QUERIES, BITS, seed=1), min(K, items)
    whole = ours(index, k)
    with ranks(size, tmp_path, items) as search:
        for part, expected in zip(search(), whole.search(queries), strict=True):
            assert np.array_equal(part, expected)
        contest(
            {
                "agmh_fast": Side(search, QUERIES),
                "one index": side_of(whole, queries),
                "limit": limit_of(index, queries),
            },
            Work.search(QUERIES, items, BITS, QUERIES * k), "one index", LOOP,
            bits=BITS, queries=QUERIES, k=k, items=items, ranks=size, cores=len(os.sched_getaffinity(0)),
        )  # fmt: skip
