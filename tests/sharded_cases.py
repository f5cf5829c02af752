"""What each rank does in the tests of the sharded index: it holds the answers against one index of all codes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from engines import served_by

import agmh_fast as af
from agmh_fast.search import peers
from agmh_fast.search.merging import CANDIDATE_BYTES
from agmh_fast.search.streamed_engine import StreamedEngine


def group_of(size: int, backend: str = "gloo") -> dist.ProcessGroup | None:
    """The first `size` ranks, made once; every rank of the world must ask."""
    return _made_once(size, backend)


@cache
def _made_once(size: int, backend: str) -> dist.ProcessGroup | None:
    return dist.new_group(list(range(size)), backend=backend)


def codes_of(rng: np.random.Generator, rows: int, bits: int, distinct: int | None = None) -> np.ndarray:
    codes = np.packbits(rng.integers(0, 2, (distinct or rows, bits), dtype=np.uint8), axis=1)
    return codes if distinct is None else codes[rng.integers(0, distinct, rows)]


def split(rng: np.random.Generator, rows: int, ranks: int) -> np.ndarray:
    """Ends of uneven shares, empty ones too."""
    return np.concatenate([[0], np.sort(rng.integers(0, rows + 1, ranks - 1)), [rows]]).astype(int)


def both(rank: int, size: int, bits: int, rows: int, seed: int, **options: Any) -> tuple[Any, Any, np.random.Generator]:
    """The same codes as one index and as shards, in two calls of add: ids count on through the ranks of each."""
    # Of their own, so that the codes are the same for any number of ranks.
    rng, ends_rng = np.random.default_rng(seed), np.random.default_rng([seed, size])
    whole = af.HammingIndex(bits)
    with served_by(options.get("device", "host")) as device:
        sharded = af.ShardedHammingIndex(bits, device, group_of(size, options.get("backend", "gloo")))
    distinct, custom = options.get("distinct"), options.get("ids", False)
    free = rng.permutation(3 * rows + 3)[: 2 * rows] if custom else None
    for part in range(2):
        codes, ends = codes_of(rng, rows, bits, distinct), split(ends_rng, rows, size)
        ids = None if free is None else free[part * rows : (part + 1) * rows]
        whole.add(codes, ids)
        own = slice(ends[rank], ends[rank + 1])
        sharded.add(codes[own], None if ids is None else ids[own])
    assert len(sharded) == len(whole) == 2 * rows
    return whole, sharded, rng


def same(result: tuple, expected: tuple) -> None:
    for ours, theirs in zip(result, expected, strict=True):
        assert type(ours) is type(theirs)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert bool((ours == theirs).all())


def masks_of(rng: np.random.Generator, whole: Any, queries: int) -> list[Any]:
    items = len(whole)
    some = rng.permutation(np.concatenate([whole.ids[rng.random(items) < 0.3], [-3, 2**62]]))
    none = np.zeros(items, bool)
    return [None, some, [], rng.random(items) < 0.5, rng.random((queries, items)) < 0.2, none]


def same_answers(rank: int, size: int, bits: int, rows: int, seed: int, options: dict[str, Any]) -> None:
    """Every search of the shards against that of the whole: k, masks, largest distance, radius, no queries."""
    group_of(size, options.get("backend", "gloo"))
    if rank >= size:
        return
    whole, sharded, rng = both(rank, size, bits, rows, seed, **options)
    for count in (0, 1, 5):
        queries = codes_of(rng, count, bits)
        for mask in masks_of(rng, whole, count) if count else [None]:
            for k in (1, rows // 2 + 2, 2 * rows + 7) if count > 1 else (3,):
                same(sharded.search(queries, k, mask), whole.search(queries, k, mask))
            same(sharded.search(queries, 9, mask, bits // 3), whole.search(queries, 9, mask, bits // 3))
            for radius in (0, bits // 3, bits + 1):
                same(sharded.range_search(queries, radius, mask), whole.range_search(queries, radius, mask))
    tensor, everything = torch.from_numpy(codes_of(rng, 3, bits)), torch.ones(len(whole), dtype=torch.bool)
    there = tensor.to(sharded.device), everything.to(sharded.device)
    for found, expected in (
        (sharded.search(there[0], 4, there[1]), whole.search(tensor, 4)),
        (sharded.range_search(there[0], bits // 2), whole.range_search(tensor, bits // 2)),
    ):
        assert {part.device for part in found} == {sharded.device}
        same([part.cpu() for part in found], expected)
    gone = rng.permutation(whole.ids.copy())[: len(whole) // 3]
    mask = rng.random(len(whole) - len(gone)) < 0.5
    whole.remove(gone)
    sharded.remove(torch.from_numpy(gone).to(sharded.device))
    assert len(sharded) == len(whole)
    same(sharded.search(queries, 8, mask), whole.search(queries, 8, mask))
    one = codes_of(rng, size, bits)
    whole.add(one)
    sharded.add(torch.from_numpy(one[rank : rank + 1]).to(sharded.device))
    same(sharded.search(one, len(whole)), whole.search(one, len(whole)))
    joined, expected = sharded.to_index()._contents(), whole._contents()
    assert np.array_equal(joined.ids, expected.ids)
    assert np.array_equal(joined.rows, expected.rows)
    assert joined.next_id == expected.next_id


def save_everywhere(rank: int, sizes: tuple[int, ...], folder: str) -> None:
    """Save from every number of ranks, load on every number, and compare with the whole; then go on adding."""
    for size in sizes:
        group_of(size)
        if rank < size:
            whole, sharded, _ = both(rank, size, 20, 11, 5, ids=True)
            sharded.save(Path(folder, str(size)))
            sharded.save(Path(folder, str(size)))  # over the first
    dist.barrier()
    assert [len(list(Path(folder, str(size)).iterdir())) for size in sizes] == [size + 1 for size in sizes]
    query = codes_of(np.random.default_rng(6), 4, 20)
    for saved in sizes:
        for size in sizes:
            if rank < size:
                whole, _, _ = both(rank, size, 20, 11, 5, ids=True)
                loaded = af.ShardedHammingIndex.load(Path(folder, str(saved)), group=group_of(size))
                assert np.array_equal(loaded.to_index().ids, whole.ids)
                same(loaded.search(query, 30), whole.search(query, 30))
                loaded.add(query[rank : rank + 1])
                whole.add(query[:size])
                same(loaded.search(query, 30), whole.search(query, 30))


def load_streamed(rank: int, folder: str) -> None:
    """What two ranks saved, searched in pieces on one, two and three."""
    for size in (1, 2, 3):
        group_of(size)
    if rank < 2:
        whole, sharded, _ = both(rank, 2, 20, 3000, 7, ids=True)
        sharded.save(Path(folder, "saved"))
    dist.barrier()
    query = codes_of(np.random.default_rng(6), 4, 20)
    for size in (1, 2, 3):
        if rank < size:
            whole, _, _ = both(rank, size, 20, 3000, 7, ids=True)
            with served_by("streamed"):
                loaded = af.ShardedHammingIndex.load(Path(folder, "saved"), group=group_of(size), device_memory=999)
            assert isinstance(loaded.shard._engine, StreamedEngine)
            assert loaded.shard._engine.mapped == (size == 2)
            same(loaded.search(query, 30), whole.search(query, 30))
            same(loaded.range_search(query, 5, whole.ids[::2]), whole.range_search(query, 5, whole.ids[::2]))


def shard_a_plain_index(rank: int, size: int, file: str) -> None:
    group_of(size)
    if rank >= size:
        return
    whole = af.HammingIndex(33)
    whole.add(codes_of(np.random.default_rng(0), 10, 33), np.arange(10)[::-1] * 7)
    whole.remove([63])
    sharded = af.ShardedHammingIndex.from_index(whole, group_of(size))
    assert abs(len(sharded.shard) - 9 / size) < 1
    query = whole.codes[:2].copy()
    same(sharded.search(query, 9), whole.search(query, 9))
    whole.add(query[:1])
    sharded.add(query[:1] if rank == size - 1 else query[:0])
    assert sharded.to_index().ids.tolist() == whole.ids.tolist()
    assert whole.ids[-1] == 64  # the largest id was removed: the next one still comes after it
    if size > 1:
        other = af.HammingIndex(33)
        other.add(whole.codes[::-1] if rank else whole.codes)
        raises(af.InputError, "codes of index must be the same on every rank: rank 1", other_index, other, size)
    mapped = af.HammingIndex.load(file)
    same(af.ShardedHammingIndex.from_index(mapped, group_of(size)).search(query, 3), mapped.search(query, 3))


def other_index(index: af.HammingIndex, size: int) -> None:
    af.ShardedHammingIndex.from_index(index, group_of(size))


def raises(kind: type[Exception], text: str, function: Any, *args: Any, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        function(*args, **options)
    assert text in str(caught.value), f"{str(caught.value)!r} lacks {text!r}"
    assert "\n" not in str(caught.value)


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
    shard = sharded._shard
    sharded._shard = Short(shard) if fails else shard
    try:
        sharded.search(queries, 2)
    finally:
        sharded._shard = shard


def fail_to_store(sharded: af.ShardedHammingIndex, queries: np.ndarray, fails: bool) -> None:
    """Adding and removing where one rank has no room: the others undo theirs."""
    shard, held = sharded._shard, sharded.to_index()
    sharded._shard = Short(shard) if fails else shard
    try:
        raises(MemoryError, "", sharded.remove, held.ids.tolist())
        assert len(sharded) == len(held)
        sharded.add(queries[:1], [100 + dist.get_rank()])
    finally:
        sharded._shard = shard
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


def count_traffic(rank: int, size: int) -> None:
    """Messages and bytes that each call hands to torch.distributed, against the formulas of docs/sharded.md."""
    group_of(size)
    if rank >= size:
        return
    sent = []
    send = dist.isend

    def counting_send(tensor: torch.Tensor, **options: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return send(tensor, **options)

    def traffic() -> tuple[int, int]:
        """Messages and bytes since the last call."""
        result = len(sent), sum(sent)
        sent.clear()
        return result

    peers.dist.isend = counting_send
    try:
        bits, others, header = 48, size - 1, peers.HEADER_BYTES
        rng = np.random.default_rng(0)
        items = [5 + 3 * r for r in range(size)]
        total, own = sum(items), items[rank]
        sharded = af.ShardedHammingIndex(bits, group=group_of(size))
        traffic()
        codes = codes_of(rng, total, bits)
        start = sum(items[:rank])
        sharded.add(codes[start : start + own])
        assert traffic() == (2 * others, 2 * others * header)
        for count in (8, 100):
            queries = codes_of(rng, count, bits)
            part = [count * (r + 1) // size - count * r // size for r in range(size)]
            for k in (2, 7, 1000):
                sharded.search(queries, k)
                candidates = (count - part[rank]) * min(k, own)
                found = min(k, sum(min(k, n) for n in items))
                expected = 2 * others * header + CANDIDATE_BYTES * (candidates + others * part[rank] * found)
                assert traffic() == (4 * others, expected)
            lims = sharded.range_search(queries, bits // 2).lims
            ends = [count * r // size for r in range(size + 1)]
            mine = af.HammingIndex(bits)
            mine.add(codes[start : start + own])
            own_lims = mine.range_search(queries, bits // 2).lims
            elsewhere = own_lims[-1] - (own_lims[ends[rank + 1]] - own_lims[ends[rank]])
            merged = lims[ends[rank + 1]] - lims[ends[rank]]
            expected = others * (2 * header + 8 * count + CANDIDATE_BYTES * merged) + CANDIDATE_BYTES * elsewhere
            assert traffic() == (5 * others, expected)
        everything = np.ones(total, bool)
        sharded.search(queries, 2)
        plain = traffic()
        sharded.search(queries, 2, everything)
        assert traffic() == (plain[0] + others, plain[1] + 8 * own * others)
        sharded.search(queries, 2, everything)
        assert traffic() == plain
        sharded.remove([0, 1, 2])
        assert traffic() == (3 * others, others * (2 * header + 1))
        sharded.add(queries[:3], 1000 + 10 * rank + np.arange(3))
        assert traffic() == (3 * others, others * (2 * header + 8 * 3))
        sharded.to_index()
        assert traffic() == (3 * others, others * (header + (8 + 8) * len(sharded.shard)))
    finally:
        peers.dist.isend = send


def transfer_as_on_a_gpu(sharded: af.ShardedHammingIndex) -> None:
    """Candidates go by the way of tensors on a GPU, though they are on the CPU: one batch over the caller's group."""
    ours = sharded._peers
    ours.exchange = lambda parts, sizes: ours._exchange(parts, sizes, on_device=True)


def batched_transfers(rank: int) -> None:
    whole, sharded, rng = both(rank, 3, 24, 20, 9, device="tensors")
    transfer_as_on_a_gpu(sharded)
    queries = codes_of(rng, 4, 24)
    same(sharded.search(queries, 7), whole.search(queries, 7))
    same(sharded.range_search(queries, 9), whole.range_search(queries, 9))
