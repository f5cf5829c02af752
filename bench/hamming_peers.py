"""Who answers a Hamming search on a CPU: our index, and what people use today, each called as its users call it.

Everyone has as many threads as torch, but NumPy, which has one. `search(queries)` gives distances and ids, (Q, k) each,
ascending by distance; the order of ties is ours alone.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch

import agmh_fast as af
from agmh_fast import _engine

Found = tuple[np.ndarray, np.ndarray]
INSTALL = "pip install 'agmh-fast[bench]'"
# Seconds that one call of a peer may take; those that are slower get fewer queries.
AFFORDABLE = 0.25
# faiss searches so many queries together, unless told otherwise: fewer would be unfair to it.
FAISS_BATCH = 32


@dataclass(frozen=True)
class Peer:
    """A contestant: its name, and its answer to a block of queries."""

    name: str
    search: Callable[[np.ndarray], object]


def required(module: str) -> ModuleType:
    """The module, or a skip that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{module} cannot be imported ({error}): {INSTALL}")


def random_codes(count: int, bits: int, seed: int) -> np.ndarray:
    """(count, ceil(bits / 8)) uint8, uniform, unused bits zero."""
    width = (bits + 7) // 8
    codes = np.frombuffer(np.random.default_rng(seed).bytes(count * width), dtype=np.uint8).reshape(count, width).copy()
    codes[:, -1] &= 0xFF << (-bits % 8) & 0xFF
    return codes


def words(codes: np.ndarray) -> np.ndarray:
    """The same memory as the widest words that a row is made of: (N, words)."""
    width = codes.shape[1]
    size = next(size for size in (8, 4, 2, 1) if width % size == 0)
    return codes.view(f"u{size}")


def padded(codes: np.ndarray) -> np.ndarray:
    """Zeros added up to 4 bytes or a multiple of 8, widths that faiss has loops for."""
    width = codes.shape[1]
    return np.pad(codes, ((0, 0), (0, 4 - width if width <= 4 else -width % 8)))


def distances(items: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(N,) of one query, both as words."""
    differing = np.bitwise_count(items ^ query)
    return differing[:, 0] if items.shape[1] == 1 else differing.sum(1, dtype=np.uint16)


def exact(codes: np.ndarray, queries: np.ndarray, k: int) -> Found:
    """The k nearest by (distance, position), by NumPy: a stable sort of every distance."""
    items, found = words(codes), []
    for query in words(queries):
        of_query = distances(items, query)
        order = np.argsort(of_query, kind="stable")[:k]
        found.append((of_query[order], order))
    return np.stack([d for d, _ in found]).astype(np.int32), np.stack([ids for _, ids in found])


def ours(index: af.HammingIndex, k: int, mask: np.ndarray | None = None) -> Peer:
    return Peer("agmh_fast", lambda queries: index.search(queries, k, mask=mask))


def distance_loop(index: af.HammingIndex) -> Peer:
    """Every distance, computed one by one and forgotten: what a search costs that selects for nothing."""
    rows, _, _ = index._engine.snapshot()
    threads = af.get_num_threads()
    return Peer("distance loop", lambda queries: _engine.distance_loop(index.bits, queries, rows, threads))


def faiss_flat(codes: np.ndarray, k: int, queries: int) -> list[Peer]:
    """IndexBinaryFlat by heap and by counting, in the batches that it makes by itself and in ones eight times that."""
    faiss = required("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    batches = (FAISS_BATCH, 8 * FAISS_BATCH) if queries > FAISS_BATCH else (FAISS_BATCH,)

    def search(use_heap: bool, batch: int, block: np.ndarray) -> Found:
        index.use_heap, index.query_batch_size = use_heap, batch
        return index.search(block, k)

    return [
        Peer(f"faiss {way}, {batch} queries a batch", functools.partial(search, way == "heap", batch))
        for way in ("heap", "counting")
        for batch in batches
    ]


def numpy_scan(codes: np.ndarray, bits: int, k: int) -> Peer:
    """bitwise_count, argpartition, and a sort of the k."""
    items = words(codes)

    def nearest(query: np.ndarray) -> Found:
        of_query = distances(items, query)
        near = np.argpartition(of_query, k - 1)[:k]
        order = near[np.argsort(of_query[near], kind="stable")]
        return of_query[order], order

    def search(queries: np.ndarray) -> Found:
        found = [nearest(query) for query in words(queries)]
        return np.stack([d for d, _ in found]), np.stack([ids for _, ids in found])

    return Peer("NumPy bitwise_count", search)


def sign_product(codes: np.ndarray, bits: int, k: int) -> Peer:
    """topk of products of ±1 in float32; the items are unpacked once, in advance."""
    items = torch.from_numpy(af.unpack_codes(codes, bits)).float()

    def search(queries: np.ndarray) -> Found:
        signs = torch.from_numpy(af.unpack_codes(queries, bits)).float()
        products, ids = (signs @ items.T).topk(k, dim=1)
        return ((bits - products) / 2).numpy(), ids.numpy()

    return Peer("±1 float32 product, topk", search)


def usearch_exact(codes: np.ndarray, bits: int, k: int) -> Peer:
    """USearch's exact search, which takes whole bytes."""
    index = required("usearch.index")
    metric, threads = index.MetricKind.Hamming, torch.get_num_threads()

    def search(queries: np.ndarray) -> Found:
        found = index.search(codes, queries, k, metric, exact=True, threads=threads)
        return np.atleast_2d(found.distances), np.atleast_2d(found.keys).astype(np.int64)

    return Peer("USearch exact", search)


PEERS: dict[str, Callable[[np.ndarray, int, int], Peer]] = {
    "numpy": numpy_scan,
    "torch": sign_product,
    "usearch": usearch_exact,
}


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def affordable(
    search: Callable[[np.ndarray], object], queries: np.ndarray, least: int = 8, budget: float = AFFORDABLE
) -> np.ndarray:
    """The first of the queries, as many as are answered in about `budget` seconds, but `least` of them."""
    few = queries[:least]
    took = min(seconds(lambda: search(few)) for _ in range(2))
    return queries[: max(len(few), min(len(queries), int(budget / max(took, 1e-9) * len(few))))]


def fastest(rivals: Sequence[Peer], queries: np.ndarray, least: int = 8) -> tuple[Peer, np.ndarray]:
    """The rival that answers the most queries a second, by the better of two trials, and the queries it can afford.

    After a first look at `least` queries, those that take twice as long as the best are out.
    """
    first = [seconds(functools.partial(rival.search, queries[:least])) for rival in rivals]
    left = [rival for rival, took in zip(rivals, first, strict=True) if took <= 2 * min(first)]
    best, best_pace, best_block = left[0], float("inf"), queries
    for rival in left:
        block = affordable(rival.search, queries, least)
        pace = min(seconds(functools.partial(rival.search, block)) for _ in range(2)) / len(block)
        if pace < best_pace:
            best, best_pace, best_block = rival, pace, block
    return best, best_block


def assert_exact(found: Found, codes: np.ndarray, queries: np.ndarray, k: int, sample: int = 3) -> None:
    """Ours is the one right answer, order and ties included: some queries, spread over the block."""
    rows = np.unique(np.linspace(0, len(queries) - 1, sample, dtype=np.int64))
    for part, expected in zip(found, exact(codes, queries[rows], k), strict=True):
        np.testing.assert_array_equal(np.asarray(part)[rows], expected)


def assert_nearest(found: Found, ours: Found, codes: np.ndarray, queries: np.ndarray) -> None:
    """A peer that orders ties its own way: the same distances as ours, each the distance of the item it goes with."""
    (d, ids), rows = found, len(found[0])
    np.testing.assert_array_equal(d, np.asarray(ours[0])[:rows])
    items, some = words(codes), words(queries)[:3]
    for query, claimed, named in zip(some, d, ids, strict=False):
        assert len(set(named.tolist())) == len(named)
        np.testing.assert_array_equal(distances(items[named], query), claimed)
