"""What rows of the Hamming bench are made of: their data, their limits, and sides that are no library."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from contest import Limit, Side
from hamming_peers import Peer, affordable, assert_exact, distance_loop, random_codes

import agmh_fast as af


@functools.lru_cache(maxsize=2)
def database(bits: int, items: int) -> tuple[np.ndarray, af.HammingIndex]:
    """Uniform codes and an index of them."""
    codes = random_codes(items, bits, seed=bits)
    index = af.HammingIndex(bits)
    index.add(codes)
    return codes, index


def check(peer: Peer, index: af.HammingIndex, queries: np.ndarray, k: int) -> None:
    """Assert that the peer finds, to the order of ties, what an index has that keeps every row's number as its id."""
    assert_exact(peer.search(queries), index.codes, queries, k)


LOOP = Limit("distance loop", "limit")


def side_of(peer: Peer, queries: np.ndarray) -> Side:
    """The peer in a race; a query is its unit."""
    return Side(lambda: peer.search(queries), len(queries))


def limit_of(index: af.HammingIndex, queries: np.ndarray) -> Side:
    """The loop of distances alone, with fewer queries where the rows are so wide that it is slow."""
    loop = distance_loop(index)
    return side_of(loop, affordable(loop.search, queries, least=32))


def readers(rows: np.ndarray, pool: ThreadPoolExecutor, threads: int) -> list[Peer]:
    """Sums over as many bytes as a search reads, by as many threads."""
    numbers = rows.copy().reshape(-1).view(np.int64)
    tensor, parts = torch.from_numpy(numbers), np.array_split(numbers, threads)
    return [
        Peer("torch.sum", lambda _: tensor.sum()),
        Peer("numpy.sum", lambda _: list(pool.map(np.sum, parts))),
    ]


def adversary(order: str, items: int, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """64-bit codes in an order that hurts, others in random order, and queries of both: all near one another where the
    order is that of descending distances, so that it is the order for each of them.
    """
    rng, codes, block = np.random.default_rng(3), random_codes(items, 64, seed=3), random_codes(queries, 64, seed=1)
    if order == "equal":
        return np.repeat(codes[:1], items, axis=0), codes, block
    if order == "duplicates":
        return codes[rng.integers(0, min(50, items), items)], codes, block
    away = np.bitwise_count(codes ^ block[0]).sum(1, dtype=np.int64)
    block = np.repeat(block[:1], queries, axis=0)
    block[np.arange(queries), rng.integers(0, 8, queries)] ^= (1 << rng.integers(0, 8, queries)).astype(np.uint8)
    return codes[np.argsort(-away, kind="stable")], codes, block


def argsort_precision(q: torch.Tensor, x: torch.Tensor, labels_q: torch.Tensor, labels_x: torch.Tensor) -> torch.Tensor:
    """AP of each query as retrieval code computes it: products of ±1 codes, argsort, one query at a time."""
    found = []
    for query, label in zip(q, labels_q, strict=True):
        order = (0.5 * (x.shape[1] - x @ query)).argsort(stable=True)
        ranks = 1 + (labels_x[order] == label).nonzero()[:, 0]
        count = torch.arange(1, len(ranks) + 1, device=x.device)
        found.append((count / ranks).sum().double() / max(1, len(ranks)))
    return torch.stack(found)
