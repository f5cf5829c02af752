"""What each rank does in the tests of a sharded index that loses one of them."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
import pytest
import sharded_cases as cases
import torch
import torch.distributed as dist

import agmh_fast as af
from agmh_fast.search import LostRankError
from agmh_fast.search import sharded as search_module


def wait_at_most(sharded: af.ShardedHammingIndex, seconds: float) -> None:
    """From here on, with all ranks in step: on a busy machine starting them may take longer than a lost one is waited
    for.
    """
    dist.barrier()
    sharded._shards.peers._timeout = seconds


def lose_a_rank(rank: int, lost: int, how: str, timeout: float) -> tuple[str, tuple[int, ...], float] | None:
    """Rank `lost` dies or stops before a search; what the others are told, and after how long."""
    sharded = af.ShardedHammingIndex(8)
    sharded.add(np.full((2, 1), rank, np.uint8))
    wait_at_most(sharded, timeout)
    query = np.zeros((1, 1), np.uint8)
    if how.endswith("in a batch"):
        cases.transfer_as_on_a_gpu(sharded)
    if rank == lost:
        if how.startswith("dies before it sends its candidates"):
            sharded._merge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            sharded.search(query, 2)
        os.kill(os.getpid(), signal.SIGKILL if how == "dies" else signal.SIGSTOP)
    begun = time.monotonic()
    try:
        sharded.search(query, 2)
    except LostRankError as error:
        after = time.monotonic() - begun
        cases.raises(LostRankError, str(error), sharded.search, query, 2)  # and so it stays
        cases.raises(LostRankError, str(error), sharded.add, query)
        return str(error), error.ranks, after
    raise AssertionError("nobody was missed")


def use_own_gpu(rank: int) -> None:
    torch.cuda.set_device(rank % torch.cuda.device_count())


def lose_a_gpu(rank: int) -> tuple[str, tuple[int, ...], float] | None:
    """Rank 1 dies between the shards' searches and the exchange of candidates by NCCL."""
    use_own_gpu(rank)
    sharded = af.ShardedHammingIndex(8, "cuda", cases.group_of(2, "cpu:gloo,cuda:nccl"), timeout=10)
    sharded.add(np.full((2, 1), rank, np.uint8))
    query = np.zeros((1, 1), np.uint8)
    sharded.search(query, 2)
    if rank == 1:
        sharded._merge = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    begun = time.monotonic()
    try:
        sharded.search(query, 2)
    except LostRankError as error:
        return str(error), error.ranks, time.monotonic() - begun
    raise AssertionError("nobody was missed")


def interrupt_a_rank(rank: int) -> None:
    """Ctrl-C on one rank in its part of a search: it may not go on as if nothing had been, the others miss it."""
    sharded = af.ShardedHammingIndex(8)
    wait_at_most(sharded, 5)
    query = np.zeros((1, 1), np.uint8)
    if rank == 1:
        sharded._shards.own = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            sharded.range_search(query, 2)
        cases.raises(LostRankError, "this rank was interrupted", sharded.search, query, 2)
    else:
        cases.raises(LostRankError, "no answer from rank 1: waited 5 s", sharded.range_search, query, 2)


def fail_between_transfers(rank: int) -> None:
    """No memory on rank 1 where candidates are merged: it sends nothing more, instead of what the others misread."""
    sharded = af.ShardedHammingIndex(8)
    wait_at_most(sharded, 5)
    query = np.zeros((1, 1), np.uint8)
    if rank == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search_module, "merge_nearest", no_memory)
            cases.raises(MemoryError, "none is left", sharded.search, query, 2)
        for call in (sharded.search, sharded.range_search):
            cases.raises(LostRankError, "this rank was interrupted, or failed,", call, query, 2)
    else:
        cases.raises(LostRankError, "no answer from rank 1: waited 5 s", sharded.search, query, 2)


def no_memory(*_: Any) -> None:
    raise MemoryError("none is left")


class Interrupted:
    def range_search(self, *_: Any) -> None:
        raise KeyboardInterrupt

    bits, device = 8, torch.device("cpu")
