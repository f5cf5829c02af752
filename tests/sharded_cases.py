"""What each rank does in the tests of the sharded index: it holds the answers against one index of all codes."""

from __future__ import annotations

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
        assert traffic() == (4 * others, others * (3 * header + 8 * 3))
        sharded.to_index()
        assert traffic() == (3 * others, others * (header + (8 + 8) * len(sharded.shard)))
    finally:
        peers.dist.isend = send


def transfer_as_on_a_gpu(sharded: af.ShardedHammingIndex) -> None:
    """Candidates go by the way of tensors on a GPU, though they are on the CPU: one batch over the caller's group."""
    ours = sharded._shards.peers
    ours.exchange = lambda parts, sizes: ours._exchange(parts, sizes, on_device=True)


def batched_transfers(rank: int) -> None:
    whole, sharded, rng = both(rank, 3, 24, 20, 9, device="tensors")
    transfer_as_on_a_gpu(sharded)
    queries = codes_of(rng, 4, 24)
    same(sharded.search(queries, 7), whole.search(queries, 7))
    same(sharded.range_search(queries, 9), whole.range_search(queries, 9))
