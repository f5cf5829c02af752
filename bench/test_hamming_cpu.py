"""The k nearest codes on a CPU against faiss, USearch, NumPy and torch, and the loop of distances alone.

A query is the unit of work. A peer too slow for all queries gets fewer of them, of the same items: `units` says how
many. AGMH_BENCH_SCALE=0.002 shrinks the databases, to try the bench itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from contest import cases
from hamming_contest import LOOP, check, database, limit_of, side_of
from hamming_peers import (
    FAISS_BATCH,
    PEERS,
    Peer,
    affordable,
    assert_exact,
    assert_nearest,
    faiss_flat,
    fastest,
    ours,
    padded,
    random_codes,
)
from limits import Work
from targets import ranking_targets, scaled, topk_targets

import agmh_fast as af
from agmh_fast import _engine

MILLION = 1_000_000
# Results of one call at most: memory for 384 MB of distances and ids.
RESULTS = 2**25

QUICK = [(64, q, 100) for q in (16, 256, 1000)] + [(64, 1000, k) for k in (1000, 10_000)]
QUICK += [(bits, 1000, 100) for bits in (24, 32, 48)] + [(bits, 256, 100) for bits in (128, 256, 512, 1024)]
TOPK = [(64, q, k) for q in (16, 256, 1000) for k in (10, 100, 1000, 10_000)]
TOPK += [(bits, 256, k) for bits in (128, 256, 512, 1024) for k in (100, 1000)]
TOPK += [(bits, 1000, 100) for bits in (12, 16, 24, 32, 48)]


def others(rows: list[Any], quick: list[Any]) -> list[Any]:
    return [row for row in rows if row not in quick]


@pytest.mark.benchmark(group="k nearest of 1M items, against faiss IndexBinaryFlat")
@cases("bits, queries, k", QUICK, others(TOPK, QUICK))
def test_topk(contest, bits, queries, k):
    codes, index = database(bits, scaled(MILLION))
    k = min(k, len(codes))
    block, peer = random_codes(queries, bits, seed=1), ours(index, k)
    check(peer, index, block, k)
    rival, few = fastest(faiss_flat(codes, k, queries), block, least=FAISS_BATCH)
    assert_nearest(rival.search(few), peer.search(block), codes, block)
    sides = {"agmh_fast": side_of(peer, block), "faiss": side_of(rival, few), "limit": limit_of(index, block)}
    if padded(block).shape != block.shape:
        wider, few = fastest(faiss_flat(padded(codes), k, queries), padded(block), least=FAISS_BATCH)
        assert_nearest(wider.search(few), peer.search(block), padded(codes), padded(block))
        sides["faiss, padded with zeros"] = side_of(wider, few)
    contest(
        sides, Work.search(queries, len(codes), bits, queries * k), "faiss", LOOP, topk_targets(bits, queries, k),
        bits=bits, queries=queries, k=k, items=len(codes), faiss=rival.name,
    )  # fmt: skip


# Queries and widths that the rows above leave out of the picture of all of them.
SWEEP = [(bits, q) for bits in (16, 32, 48, 64, 128, 256, 512, 1024) for q in (1, 16, 64, 256, 1000)]
SWEEP = [(bits, q) for bits, q in SWEEP if (bits, q, 100) not in TOPK]
FEW = [(64, 1), (64, 64), (256, 1), (256, 16), (256, 64)]


@pytest.mark.benchmark(group="k nearest of 1M items, k=100, against the loop of distances alone")
@cases("bits, queries", FEW, others(SWEEP, FEW))
def test_share_of_the_limit(contest, bits, queries):
    beside_the_loop(contest, bits, queries, MILLION)


@pytest.mark.benchmark(group="k=100 by the number of items, 64 bits, against the loop of distances alone")
@cases("items, queries", [(n, 256) for n in (10_000, 100_000, 10 * MILLION)], [(10_000, 1), (100_000, 1)])
def test_items(contest, items, queries):
    beside_the_loop(contest, 64, queries, items)


def beside_the_loop(contest: Any, bits: int, queries: int, items: int) -> None:
    """A search for 100 and the loop that computes every distance and keeps none."""
    _, index = database(bits, scaled(items))
    k = min(100, len(index))
    block, peer = random_codes(queries, bits, seed=1), ours(index, k)
    check(peer, index, block, k)
    contest(
        {"agmh_fast": side_of(peer, block), "limit": limit_of(index, block)},
        Work.search(queries, len(index), bits, queries * k), limit=LOOP,
        bits=bits, queries=queries, k=k, items=len(index),
    )  # fmt: skip


@pytest.mark.benchmark(group="whole ranking, k=N, 64 bits, against torch.argsort of distances that it is given")
@cases("queries", [256], [16, 1000])
def test_ranking(contest, queries):
    items = scaled(min(MILLION, RESULTS // queries))
    codes, index = database(64, items)
    block, peer = random_codes(queries, 64, seed=1), ours(index, items)
    found = peer.search(block)
    assert_exact(found, codes, block, items)
    given = af.functional.hamming_distance(block[:32], codes)
    order = torch.from_numpy(given).argsort(dim=1, stable=True)
    assert np.array_equal(order.numpy(), found[1][:32])
    del found, order

    def whole(rows: torch.Tensor) -> object:
        return rows.argsort(dim=1, stable=True)

    def one_by_one(rows: torch.Tensor) -> object:
        return [row.argsort(stable=True) for row in rows]

    rivals = []
    for dtype in (torch.uint8, torch.int32):
        matrix = torch.from_numpy(given).to(dtype)
        for name, sort in (("whole", whole), ("by row", one_by_one)):
            rivals.append(Peer(f"argsort, {dtype}, {name}", lambda rows, m=matrix, sort=sort: sort(m[: len(rows)])))
    rival, few = fastest(rivals, np.arange(len(given)), least=2)
    contest(
        {"agmh_fast": side_of(peer, block), rival.name: side_of(rival, few), "limit": limit_of(index, block)},
        Work.search(queries, items, 64, queries * items), rival.name, LOOP, ranking_targets(),
        bits=64, queries=queries, k=items, items=items,
    )  # fmt: skip


@pytest.mark.benchmark(group="k=100 of 1M items, Q=256, against what people use")
@cases("rival, bits", [(rival, 64) for rival in PEERS], [(rival, 256) for rival in PEERS])
def test_what_people_use(contest, rival, bits):
    codes, index = database(bits, scaled(MILLION))
    k = min(100, len(codes))
    block, peer = random_codes(256, bits, seed=1), ours(index, k)
    check(peer, index, block, k)
    theirs = PEERS[rival](codes, bits, k)
    few = affordable(theirs.search, block)
    assert_nearest(theirs.search(few), peer.search(block), codes, block)
    contest(
        {"agmh_fast": side_of(peer, block), theirs.name: side_of(theirs, few), "limit": limit_of(index, block)},
        Work.search(256, len(codes), bits, 256 * k), theirs.name, LOOP,
        bits=bits, queries=256, k=k, items=len(codes),
    )  # fmt: skip


@pytest.fixture
def isas() -> Iterator[list[str]]:
    """Instruction sets of this processor, best first; the one in use comes back."""
    info = _engine.cpu_info()
    yield list(reversed(info["available"]))
    _engine.use_isa(info["isa"])


@pytest.mark.benchmark(group="k=100 of 250k items, each instruction set")
@cases("bits, queries", [(64, 256)], [(64, 16), (256, 16), (256, 256)])
def test_instruction_sets(contest, isas, bits, queries):
    _, index = database(bits, scaled(MILLION // 4))
    k = min(100, len(index))
    block, peer = random_codes(queries, bits, seed=1), ours(index, k)
    check(peer, index, block, k)
    expected = peer.search(block)

    def by(isa: str, rows: np.ndarray) -> Any:
        _engine.use_isa(isa)
        return peer.search(rows)

    sides = {}
    for isa in isas:
        for part, same in zip(by(isa, block), expected, strict=True):
            assert np.array_equal(part, same), isa
        rival = Peer(isa, functools.partial(by, isa))
        sides[isa] = side_of(rival, affordable(rival.search, block))
    contest(
        sides, Work.search(queries, len(index), bits, queries * k), against=isas[-1],
        bits=bits, queries=queries, k=k, items=len(index),
    )  # fmt: skip
