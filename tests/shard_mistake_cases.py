"""What each rank does in the tests of what goes wrong on one rank of a sharded index: no rank is changed by it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from engines import served_by
from sharded_cases import both, codes_of, raises, same

import agmh_fast as af


def bad_arguments(rank: int, bad: int, device: str = "host") -> None:
    """A mistake on rank `bad` is an error on all of them, and the index is as it was and works on."""
    whole, sharded, rng = both(rank, 3, 12, 6, 3, device=device)
    queries, before = codes_of(rng, 2, 12), (whole.codes.tolist(), whole.ids.tolist())
    mine = rank == bad
    told = "" if mine else f"rank {bad}: "
    padded = np.array([[0, 1]], np.uint8)
    for text, call in {
        "k must be": lambda: sharded.search(queries, 0 if mine else 3),
        "queries must have 2 bytes": lambda: sharded.search(queries[:, :1] if mine else queries, 3),
        "queries": lambda: sharded.search(padded if mine else queries[:1], 3),
        "max_distance must be": lambda: sharded.search(queries, 3, None, -1 if mine else 2),
        "mask must have one entry for each of the 12 items": lambda: sharded.search(
            queries, 3, np.ones(11 if mine else 12, bool)
        ),
        "queries is on meta, the index on cpu": lambda: sharded.search(
            torch.from_numpy(queries).to("meta" if mine else "cpu"), 3
        ),
        "mask is on meta, the index on cpu": lambda: sharded.search(
            queries, 3, torch.ones(12, dtype=torch.bool, device="meta" if mine else "cpu")
        ),
        "radius must be": lambda: sharded.range_search(queries, "x" if mine else 3),
        "codes must be uint8": lambda: sharded.add(queries.astype(int) if mine else queries),
        "codes": lambda: sharded.add(padded if mine else queries),
        "ids must have one entry": lambda: sharded.add(queries, [20 + 2 * rank, 21 + 2 * rank][: 1 if mine else 2]),
        "ids: 50 is given twice": lambda: sharded.add(queries, [50, 50] if mine else [30 + 2 * rank, 31 + 2 * rank]),
        "ids must be from 0": lambda: sharded.add(queries[:1], [-1 if mine else 20 + rank]),
        "ids must be whole numbers": lambda: sharded.remove([0.5] if mine else [1]),
        "output folder": lambda: sharded.save("/dev/null/x"),
        "there is no sharded index": lambda: af.ShardedHammingIndex.load("/nowhere"),
        "bits must be": lambda: af.ShardedHammingIndex(0 if mine else 12),
        "device must be": lambda: af.ShardedHammingIndex(12, "no" if mine else "cpu"),
        "timeout must be": lambda: af.ShardedHammingIndex(12, timeout=-1 if mine else 30),
        "index must be a HammingIndex": lambda: af.ShardedHammingIndex.from_index(3 if mine else whole),
    }.items():
        both_fail = "output" in text or "there is no" in text
        raises(af.InputError, ("" if both_fail else told) + text, call)
    # Fine by itself, and different.
    for name, call in {
        "queries": lambda: sharded.search(queries + np.uint8(16 * mine), 3),
        "k": lambda: sharded.search(queries, 4 if mine else 3),
        "mask": lambda: sharded.search(queries, 3, [rank + 1] if mine else [0]),
        "max_distance": lambda: sharded.search(queries, 3, None, 4 if mine else 3),
        "radius": lambda: sharded.range_search(queries, 4 if mine else 3),
        "ids": lambda: sharded.remove([1] if mine else [2]),
        "bits": lambda: af.ShardedHammingIndex(12 + mine),
    }.items():
        raises(af.InputError, f"{name} must be the same on every rank: rank {bad or 1} gave another than rank 0", call)
    calls = "every rank must make the same calls in the same order: rank "
    raises(af.InputError, calls, lambda: sharded.remove([1]) if mine else sharded.search(queries, 2))
    # What only all ranks together can see.
    raises(af.InputError, "ids: 3", sharded.add, queries[:1], [3 if mine else 20 + rank])
    raises(af.InputError, "too; ids must be unique", sharded.add, queries[:1], [77])
    raises(
        af.InputError, "ids must come from every rank or from none", sharded.add, queries[:1], [30] if mine else None
    )
    raises(af.InputError, "ids: 99 is not in the index; nothing was removed", sharded.remove, [1, 99])
    raises(af.InputError, "ids: 1 is given twice", sharded.remove, [1, 2, 1])
    now = sharded.to_index()
    assert (now.codes.tolist(), now.ids.tolist()) == before
    assert len(sharded) == 12
    sharded.add(queries[:1] if mine else queries[:0], [12] if mine else None)  # who adds nothing need not say of what
    whole.add(queries[:1])
    same(sharded.search(queries, 13), whole.search(queries, 13))
    # Ids that nobody has left, and none to come after them.
    sharded.add(queries[:1] if mine else queries[:0], [2**63 - 2] if mine else [])
    raises(af.InputError, "ids: none are left after 9223372036854775806", sharded.add, queries[:1])
    # No room on one rank: all hear of it.
    kind = MemoryError
    raises(kind, "" if mine else f"rank {bad}: ", fail_to_search, sharded, queries, mine)
    raises(kind, "" if mine else f"rank {bad}: ", fail_to_store, sharded, queries, mine)
    same(sharded.search(queries, 13), sharded.to_index().search(queries, 13))
    assert len(sharded) == 14


def write_to_a_shard_file(rank: int, folder: str) -> None:
    """Whatever is asked for then fails on all ranks, again and again, and what needs no shard goes on."""
    _, sharded, rng = both(rank, 3, 12, 6, 3)
    sharded.save(folder)
    queries = codes_of(rng, 2, 12)
    loaded = af.ShardedHammingIndex.load(folder)
    file = loaded.shard._file
    if rank == 0 and file is not None:
        os.utime(file.path, ns=(1, 1))
    told = f"{file.path!r} was written to while it was mapped" if rank == 0 and file is not None else "rank 0: "
    for call in (
        lambda: loaded.remove([3, 7]),
        lambda: loaded.search(queries, 3, np.ones(len(loaded), bool)),
        lambda: loaded.range_search(queries, 3, np.ones(len(loaded), bool)),
        lambda: loaded.search(queries, 3),
        loaded.to_index,
    ):
        raises(af.InputError, told, call)
        raises(af.InputError, told, call)
    raises(af.InputError, "k must be", loaded.search, queries, 0)


def fail_to_search(sharded: af.ShardedHammingIndex, queries: np.ndarray, fails: bool) -> None:
    shard = sharded._shards.own
    sharded._shards.own = Short(shard) if fails else shard
    try:
        sharded.search(queries, 2)
    finally:
        sharded._shards.own = shard


def fail_to_store(sharded: af.ShardedHammingIndex, queries: np.ndarray, fails: bool) -> None:
    """Adding and removing where one rank has no room: the others undo theirs."""
    shard, held = sharded._shards.own, sharded.to_index()
    sharded._shards.own = Short(shard) if fails else shard
    try:
        raises(MemoryError, "", sharded.remove, held.ids.tolist())
        assert len(sharded) == len(held)
        sharded.add(queries[:1], [100 + dist.get_rank()])
    finally:
        sharded._shards.own = shard
        now = sharded.to_index()
        assert np.array_equal(now.ids, held.ids)
        assert np.array_equal(now.codes, held.codes)


class Short:
    """A shard on a machine that is short of memory."""

    def __init__(self, shard: af.HammingIndex) -> None:
        self.shard = shard

    def __len__(self) -> int:
        return len(self.shard)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shard, name)

    def search(self, *_: Any) -> None:
        raise MemoryError("short of memory")

    add = remove = search


def check_before_storing(rank: int, bad: int, device: str) -> None:
    """What is wrong with the codes or ids of rank `bad` is found before any rank stores its own."""
    with served_by(device) as place:
        sharded = af.ShardedHammingIndex(12, place)
    codes = codes_of(np.random.default_rng(rank), 2, 12)
    sharded.add(codes, [10 * rank + 3, 10 * rank + 5])
    held, mine, other = sharded.to_index(), rank == bad, (bad + 1) % 3
    told = "" if mine else f"rank {bad}: "
    shard = sharded._shards.own
    sharded._shards.own = Untouchable(shard)
    padded = torch.from_numpy(np.array([[0, 0], [0, 1]], np.uint8)).to(place)
    raises(af.InputError, f"{told}codes: row 1 has bits set", sharded.add, padded if mine else codes)
    for wrong, says in {
        -1: f"{told}ids must be from 0 to 2**63 - 2, got -1",
        70 + other: f"ids: {70 + other} is given on rank",
        10 * bad + 5: f"ids: {10 * bad + 5}",
        10 * other + 3: f"ids: {10 * other + 3}, given on rank {bad}," if rank == other else f"ids: {10 * other + 3}",
    }.items():
        raises(af.InputError, says, sharded.add, codes, [90 + rank, wrong if mine else 70 + rank])
    raises(af.InputError, f"{told}ids: 8 is given twice", sharded.add, codes, [8, 8] if mine else [90, 91])
    sharded._shards.own = shard
    unchanged(sharded, held)


def go_back_without_memory(rank: int) -> None:
    """Where one rank has no room to store, the others go back by what they hold already: nothing can fail there."""
    with served_by("tensors") as place:
        sharded = af.ShardedHammingIndex(12, place)
    codes = codes_of(np.random.default_rng(rank), 4, 12)
    sharded.add(codes, 10 * np.arange(4) + rank)
    held, shard = sharded.to_index(), sharded._shards.own
    rows = shard.codes
    for ids in ([41 + rank, 44 + rank], [3 + rank, 6 + rank]):  # behind the others, and between them
        sharded._shards.own = Short(shard) if rank == 1 else OneWay(shard, "add")
        raises(MemoryError, "" if rank == 1 else "rank 1: ", sharded.add, codes[:2], ids)
    sharded._shards.own = Short(shard) if rank == 1 else OneWay(shard, "remove")
    raises(MemoryError, "" if rank == 1 else "rank 1: ", sharded.remove, [0, 11, 22])
    sharded._shards.own = shard
    unchanged(sharded, held)
    assert shard.codes.data_ptr() == rows.data_ptr()
    held.add(np.concatenate([codes_of(np.random.default_rng(other), 4, 12)[:2] for other in range(3)]))
    sharded.add(codes[:2])
    unchanged(sharded, held)


def unchanged(sharded: af.ShardedHammingIndex, held: af.HammingIndex) -> None:
    now, then = sharded.to_index()._contents(), held._contents()
    assert np.array_equal(now.ids, then.ids)
    assert np.array_equal(now.rows, then.rows)
    assert now.next_id == then.next_id
    assert len(sharded) == len(held)


class Untouchable(Short):
    """A shard that nothing may change."""

    def add(self, *_: Any) -> None:
        raise AssertionError("stored before all ranks had checked")


class OneWay(Short):
    """A shard that has room for one change, and none for the way back."""

    def __init__(self, shard: af.HammingIndex, change: str) -> None:
        super().__init__(shard)
        setattr(self, change, getattr(shard, change))
