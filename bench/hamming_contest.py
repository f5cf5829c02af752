"""How rows of the Hamming bench are run: their sides, their data, and what is recorded of them."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hamming_peers import Peer, affordable, assert_exact, distance_loop, random_codes
from hamming_targets import SCALE, Target, described, judged
from measuring import Timed, percentiles

import agmh_fast as af
from agmh_fast import _engine

# Seconds that a row's rounds may take, unless five take longer.
BUDGET = 1.5 * min(SCALE, 1)
# Seconds between two timed calls: the threads of OpenMP, which faiss and torch use, go on spinning some milliseconds
# after their work, and whoever is timed next must not share the processor with them.
SETTLE = 0.01

Medians = Mapping[str, float]


@dataclass(frozen=True)
class Side:
    """One side of a race: what is called, and the units of work of a call."""

    run: Callable[[], object]
    units: int = 1

    @classmethod
    def of(cls, peer: Peer, queries: np.ndarray) -> Side:
        return cls(lambda: peer.search(queries), len(queries))

    def timed(self) -> Timed:
        return Timed(lambda _: self.run(), prepare=lambda: time.sleep(SETTLE))


def compete(
    benchmark: Any,
    take_turns: Callable[..., dict[str, list[float]]],
    say: Callable[[str], None],
    row: str,
    sides: Mapping[str, Side],
    figures: Callable[[Medians], dict[str, float]],
    targets: Sequence[Target] = (),
    **facts: Any,
) -> None:
    """Time all sides in turns; record and say seconds a unit, the figures they give, and the verdicts on those.

    The first side is ours; figures(medians) gives the row's own numbers, by name.
    """
    taken = take_turns({name: side.timed() for name, side in sides.items()}, budget=BUDGET)
    times = {name: [second / sides[name].units for second in taken[name]] for name in sides}
    medians = {name: statistics.median(each) for name, each in times.items()}
    own = medians[next(iter(sides))]
    measured = {name: round(value, 4) for name, value in figures(medians).items()}
    verdicts = judged(targets, measured)
    benchmark.extra_info.update(facts, scale=SCALE, threads=af.get_num_threads(), isa=_engine.cpu_info()["isa"])
    benchmark.extra_info.update(measured, **verdicts)
    benchmark.extra_info["contestants"] = {
        name: percentiles(each) | {"units": sides[name].units, "times_ours": medians[name] / own}
        for name, each in times.items()
    }
    beside = ", ".join(f"{name} {median * 1e6:.3g}" for name, median in medians.items())
    clauses = described(verdicts["targets"]) if verdicts else ", ".join(f"{n} {v:.3g}" for n, v in measured.items())
    say(f"\n{row}: {clauses} (µs a unit: {beside})")


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


def limit_of(index: af.HammingIndex, queries: np.ndarray) -> Side:
    """The loop of distances alone, with fewer queries where the rows are so wide that it is slow."""
    loop = distance_loop(index)
    return Side.of(loop, affordable(loop.search, queries, least=32))


def of_limit(medians: Medians, items: int) -> dict[str, float]:
    """Pairs a second of ours and of the loop of distances alone, and their ratio, from seconds a query."""
    own, limit = medians["agmh_fast"], medians["limit"]
    return {"gpairs_per_s": items / own / 1e9, "limit_gpairs_per_s": items / limit / 1e9, "of_limit": limit / own}


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
        count = torch.arange(1, len(ranks) + 1)
        found.append((count / ranks).mean().double() if len(ranks) else torch.zeros((), dtype=torch.float64))
    return torch.stack(found)
