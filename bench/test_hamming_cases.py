"""Searches on a CPU with something special to them: short codes, masks, one query, hostile orders, a radius."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from contest import Side, cases
from hamming_contest import LOOP, adversary, check, database, limit_of, readers, side_of
from hamming_peers import (
    Peer,
    affordable,
    assert_exact,
    assert_nearest,
    distances,
    faiss_flat,
    fastest,
    ours,
    random_codes,
    required,
    words,
)
from limits import Limit, Work
from targets import Target, scaled

import agmh_fast as af

MILLION = 1_000_000


@pytest.mark.benchmark(group="16 bits, k=10, Q=1000, microseconds a query")
@cases("items, most_us", [(MILLION, 0.3), (10 * MILLION, 1.0)])
def test_short_codes(contest, items, most_us):
    codes, index = database(16, scaled(items))
    block, peer = random_codes(1000, 16, seed=1), ours(index, 10)
    check(peer, index, block, 10)
    contest(
        {"agmh_fast": side_of(peer, block), "limit": limit_of(index, block)},
        Work.search(1000, len(codes), 16, 10_000), limit=LOOP, targets=[Target("us_per_query", most=most_us)],
        figures=lambda medians: {"us_per_query": medians["agmh_fast"] * 1e6},
        bits=16, queries=1000, k=10, items=len(codes),
    )  # fmt: skip


@pytest.mark.benchmark(group="masked search, 64 bits, Q=256, k=100, against the whole")
@cases("share, least", [(0.5, 1.3), (0.01, 10.0)])
def test_masked(contest, share, least):
    codes, index = database(64, scaled(MILLION))
    mask = np.random.default_rng(2).random(len(codes)) < share
    k = min(100, int(mask.sum()))
    block, peer, whole = random_codes(256, 64, seed=1), ours(index, k, mask), ours(index, k)
    check(whole, index, block, k)
    kept = np.flatnonzero(mask)
    nearest, ids = peer.search(block)
    assert mask[ids].all()
    assert_exact((nearest, np.searchsorted(kept, ids)), codes[mask], block, k)
    contest(
        {"masked": side_of(peer, block), "whole": side_of(whole, block), "limit": limit_of(index, block)},
        Work.search(256, len(kept), 64, 256 * k), "whole", LOOP, [Target("speedup", least=least)],
        bits=64, queries=256, k=k, items=len(codes), kept=len(kept),
    )  # fmt: skip


@pytest.mark.benchmark(group="one query of 10 000 items, 64 bits, k=10, through Python, microseconds a call")
@cases("kind, most_us", [("numpy", 8.0), ("torch", 12.0)])
def test_latency(contest, kind, most_us):
    calls = 200
    codes, index = database(64, 10_000)
    query = random_codes(1, 64, seed=1)
    given = query if kind == "numpy" else torch.from_numpy(query)
    check(ours(index, 10), index, query, 10)
    assert np.array_equal(np.asarray(index.search(given, 10).ids), index.search(query, 10).ids)
    rivals = faiss_flat(codes, 10, 1)
    required("faiss").omp_set_num_threads(1)  # it has no use for more here, and they cost it time
    rival, _ = fastest(rivals, query)
    assert_nearest(rival.search(query), index.search(query, 10), codes, query)

    def many(call: Callable[[], object]) -> Side:
        def run() -> None:
            for _ in range(calls):
                call()

        return Side(run, calls)

    engine, empty = index._engine, af.HammingIndex(64)._engine
    contest(
        {
            "agmh_fast": many(lambda: index.search(given, 10)),
            # What of it is the engine's, and of that what remains with nothing to search.
            "engine": many(lambda: engine.search(query, 10, 64)),
            "binding": many(lambda: empty.search(query, 10, 64)),
            "faiss": many(lambda: rival.search(query)),
        },
        Work(calls * 8 * 10_000, calls * 10_000, "pair", 64),
        "faiss",
        Limit("the engine alone", "engine"),
        [Target("us_per_query", most=most_us)],
        lambda medians: {"us_per_query": medians["agmh_fast"] * 1e6},
        bits=64, queries=1, k=10, items=10_000, faiss=rival.name,
    )  # fmt: skip


@pytest.mark.benchmark(group="one query of 10M items, k=10, against reading them")
@cases("bits", [64], [256])
def test_read_bandwidth(contest, bits):
    _, index = database(bits, scaled(10 * MILLION))
    query, peer, threads = random_codes(1, bits, seed=1), ours(index, 10), af.get_num_threads()
    check(peer, index, query, 10)
    with ThreadPoolExecutor(threads) as pool:
        reader, _ = fastest(readers(index.codes, pool, threads), query)
        contest(
            {"agmh_fast": side_of(peer, query), "read": side_of(reader, query)},
            Work.search(1, len(index), bits, 10),
            limit=Limit("read bandwidth", "read"),
            targets=[Target("of_limit", least=0.9)],
            figures=lambda medians: {"read_gb_per_s": index.codes.nbytes / medians["read"] / 1e9},
            bits=bits, queries=1, k=10, items=len(index), reader=reader.name,
        )  # fmt: skip


ORDERS = ("descending", "equal", "duplicates")


@pytest.mark.benchmark(group="adversarial orders of 1M items, 64 bits, k=100, against random order")
@cases("order, queries", [(order, 256) for order in ORDERS], [(order, 16) for order in ORDERS])
def test_adversarial_orders(contest, order, queries):
    hard, easy, block = adversary(order, scaled(MILLION), queries)
    k, peers = min(100, len(hard)), {}
    for name, codes in (("adversarial", hard), ("random", easy)):
        index = af.HammingIndex(64)
        index.add(codes)
        peers[name] = ours(index, k)
        check(peers[name], index, block, k)
    contest(
        {name: side_of(peer, block) for name, peer in peers.items()} | {"limit": limit_of(index, block)},
        Work.search(queries, len(hard), 64, queries * k), limit=LOOP, targets=[Target("slowdown", most=2.0)],
        figures=lambda medians: {"slowdown": medians["adversarial"] / medians["random"]},
        bits=64, queries=queries, k=k, items=len(hard),
    )  # fmt: skip


@pytest.mark.benchmark(group="all within a radius, 1M items, 64 bits, Q=256, against faiss")
@cases("radius", [16], [8, 24])
def test_range(contest, radius):
    codes, index = database(64, scaled(MILLION))
    block = random_codes(256, 64, seed=1)
    found = index.range_search(block, radius)
    for query, row in zip(words(block)[:3], range(3), strict=True):
        away = distances(words(codes), query)
        within = np.flatnonzero(away <= radius)
        part = slice(found.lims[row], found.lims[row + 1])
        order = np.argsort(away[within], kind="stable")
        assert np.array_equal(found.ids[part], within[order])
        assert np.array_equal(found.distances[part], away[within][order])
    faiss = required("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexBinaryFlat(64)
    flat.add(codes)

    def by_faiss(queries: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of distances below the radius that it is given."""
        return flat.range_search(queries, radius + 1)

    few = affordable(by_faiss, block)
    assert np.array_equal(by_faiss(few)[0], found.lims[: len(few) + 1])
    mine, theirs = Peer("agmh_fast", lambda q: index.range_search(q, radius)), Peer("faiss", by_faiss)
    contest(
        {"agmh_fast": side_of(mine, block), "faiss": side_of(theirs, few), "limit": limit_of(index, block)},
        Work.search(256, len(codes), 64, int(found.lims[-1])), "faiss", LOOP,
        bits=64, queries=256, radius=radius, items=len(codes), found=int(found.lims[-1]),
    )  # fmt: skip
