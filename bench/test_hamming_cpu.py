"""Hamming search on a CPU against faiss, USearch, NumPy and torch, the loop of distances alone and memory's bandwidth.

Every row first shows that its answers are the right ones, order of ties included; then all sides are timed in turns.
`extra_info` has each side's times a unit (a query, where nothing else is said), the row's figures, and whether they
reach its targets. A peer too slow for all queries gets fewer of them, of the same items: `units` says how many.
AGMH_BENCH_SCALE=0.002 shrinks the databases, to try the bench itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hamming_contest import (
    Side,
    adversary,
    argsort_precision,
    check,
    compete,
    database,
    limit_of,
    of_limit,
    readers,
)
from hamming_peers import (
    FAISS_BATCH,
    PEERS,
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
from hamming_targets import Target, ranking_targets, scaled, topk_targets

import agmh_fast as af
from agmh_fast import _engine
from agmh_fast.reference import metrics as reference

MILLION = 1_000_000
# Results of one call at most: memory for 384 MB of distances and ids.
RESULTS = 2**25


@pytest.fixture
def contest(benchmark, take_turns, say, request):
    """contest(sides, figures, targets, **facts), see `compete`."""
    return functools.partial(compete, benchmark, take_turns, say, request.node.name)


# ---- the k nearest

TOPK = [(64, q, k) for q in (16, 256, 1000) for k in (10, 100, 1000, 10_000)]
TOPK += [(bits, 256, k) for bits in (128, 256, 512, 1024) for k in (100, 1000)]
TOPK += [(bits, 1000, 100) for bits in (12, 16, 24, 32, 48)]


@pytest.mark.benchmark(group="k nearest of 1M items, against faiss IndexBinaryFlat")
@pytest.mark.parametrize(("bits", "queries", "k"), TOPK)
def test_topk(contest, bits, queries, k):
    codes, index = database(bits, scaled(MILLION))
    k = min(k, len(codes))
    block, peer = random_codes(queries, bits, seed=1), ours(index, k)
    check(peer, index, block, k)
    rival, few = fastest(faiss_flat(codes, k, queries), block, least=FAISS_BATCH)
    assert_nearest(rival.search(few), peer.search(block), codes, block)
    contest(
        {"agmh_fast": Side.of(peer, block), "faiss": Side.of(rival, few), "limit": limit_of(index, block)},
        lambda medians: of_limit(medians, len(codes)) | {"speedup": medians["faiss"] / medians["agmh_fast"]},
        topk_targets(bits, queries, k),
        bits=bits, queries=queries, k=k, items=len(codes), faiss=rival.name,
    )  # fmt: skip


# Queries and widths that the rows above leave out of the picture of all of them.
SWEEP = [(bits, q) for bits in (16, 32, 48, 64, 128, 256, 512, 1024) for q in (1, 16, 64, 256, 1000)]
SWEEP = [(bits, q) for bits, q in SWEEP if (bits, q, 100) not in TOPK]


@pytest.mark.benchmark(group="k nearest of 1M items, k=100, against the loop of distances alone")
@pytest.mark.parametrize(("bits", "queries"), SWEEP)
def test_share_of_the_limit(contest, bits, queries):
    _, index = database(bits, scaled(MILLION))
    k = min(100, len(index))
    block, peer = random_codes(queries, bits, seed=1), ours(index, k)
    check(peer, index, block, k)
    contest(
        {"agmh_fast": Side.of(peer, block), "limit": limit_of(index, block)},
        lambda medians: of_limit(medians, len(index)),
        bits=bits, queries=queries, k=k, items=len(index),
    )  # fmt: skip


@pytest.mark.benchmark(group="whole ranking, k=N, 64 bits, against torch.argsort of distances that it is given")
@pytest.mark.parametrize("queries", [16, 256, 1000])
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
        {"agmh_fast": Side.of(peer, block), rival.name: Side.of(rival, few), "limit": limit_of(index, block)},
        lambda medians: of_limit(medians, items) | {"speedup": medians[rival.name] / medians["agmh_fast"]},
        ranking_targets(),
        bits=64, queries=queries, k=items, items=items,
    )  # fmt: skip


@pytest.mark.benchmark(group="k=100 of 1M items, Q=256, against what people use")
@pytest.mark.parametrize("bits", [64, 256])
@pytest.mark.parametrize("rival", PEERS)
def test_what_people_use(contest, rival, bits):
    codes, index = database(bits, scaled(MILLION))
    k = min(100, len(codes))
    block, peer = random_codes(256, bits, seed=1), ours(index, k)
    check(peer, index, block, k)
    theirs = PEERS[rival](codes, bits, k)
    few = affordable(theirs.search, block)
    assert_nearest(theirs.search(few), peer.search(block), codes, block)
    contest(
        {"agmh_fast": Side.of(peer, block), theirs.name: Side.of(theirs, few)},
        lambda medians: {"speedup": medians[theirs.name] / medians["agmh_fast"]},
        bits=bits, queries=256, k=k, items=len(codes),
    )  # fmt: skip


@pytest.fixture
def isas() -> Iterator[list[str]]:
    """Instruction sets of this processor, best first; the one in use comes back."""
    info = _engine.cpu_info()
    yield list(reversed(info["available"]))
    _engine.use_isa(info["isa"])


@pytest.mark.benchmark(group="k=100 of 250k items, each instruction set")
@pytest.mark.parametrize(("bits", "queries"), [(64, 16), (64, 256), (256, 16), (256, 256)])
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
        sides[isa] = Side.of(rival, affordable(rival.search, block))
    best = isas[0]
    contest(
        sides,
        lambda medians: {f"{isa}_of_best": medians[best] / medians[isa] for isa in isas[1:]},
        bits=bits, queries=queries, k=k, items=len(index),
    )  # fmt: skip


# ---- special cases


@pytest.mark.benchmark(group="16 bits, k=10, Q=1000, microseconds a query")
@pytest.mark.parametrize(("items", "most_us"), [(MILLION, 0.3), (10 * MILLION, 1.0)])
def test_short_codes(contest, items, most_us):
    codes, index = database(16, scaled(items))
    block, peer = random_codes(1000, 16, seed=1), ours(index, 10)
    check(peer, index, block, 10)
    contest(
        {"agmh_fast": Side.of(peer, block), "limit": limit_of(index, block)},
        lambda medians: of_limit(medians, len(codes)) | {"us_per_query": medians["agmh_fast"] * 1e6},
        [Target("us_per_query", most=most_us)],
        bits=16, queries=1000, k=10, items=len(codes),
    )  # fmt: skip


@pytest.mark.benchmark(group="masked search, 64 bits, Q=256, k=100, against the whole")
@pytest.mark.parametrize(("share", "least"), [(0.5, 1.3), (0.01, 10.0)])
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
        {"masked": Side.of(peer, block), "whole": Side.of(whole, block)},
        lambda medians: {"speedup": medians["whole"] / medians["masked"]},
        [Target("speedup", least=least)],
        bits=64, queries=256, k=k, items=len(codes), kept=int(mask.sum()),
    )  # fmt: skip


@pytest.mark.benchmark(group="one query of 10 000 items, 64 bits, k=10, through Python, microseconds a call")
@pytest.mark.parametrize(("kind", "most_us"), [("numpy", 8.0), ("torch", 12.0)])
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
        lambda medians: {
            "us_per_query": medians["agmh_fast"] * 1e6,
            "speedup": medians["faiss"] / medians["agmh_fast"],
        },
        [Target("us_per_query", most=most_us)],
        bits=64, queries=1, k=10, items=10_000, faiss=rival.name,
    )  # fmt: skip


@pytest.mark.benchmark(group="one query of 10M items, k=10, against reading them")
@pytest.mark.parametrize("bits", [64, 256])
def test_read_bandwidth(contest, bits):
    _, index = database(bits, scaled(10 * MILLION))
    query, peer, threads = random_codes(1, bits, seed=1), ours(index, 10), af.get_num_threads()
    check(peer, index, query, 10)
    size = index.codes.nbytes
    with ThreadPoolExecutor(threads) as pool:
        reader, _ = fastest(readers(index.codes, pool, threads), query)
        contest(
            {"agmh_fast": Side.of(peer, query), "read": Side.of(reader, query)},
            lambda medians: {
                "of_bandwidth": medians["read"] / medians["agmh_fast"],
                "gb_per_s": size / medians["agmh_fast"] / 1e9,
                "read_gb_per_s": size / medians["read"] / 1e9,
            },
            [Target("of_bandwidth", least=0.9)],
            bits=bits, queries=1, k=10, items=len(index), bytes=size, reader=reader.name,
        )  # fmt: skip


ORDERS = ("descending", "equal", "duplicates")


@pytest.mark.benchmark(group="adversarial orders of 1M items, 64 bits, k=100, against random order")
@pytest.mark.parametrize("queries", [16, 256])
@pytest.mark.parametrize("order", ORDERS)
def test_adversarial_orders(contest, order, queries):
    hard, easy, block = adversary(order, scaled(MILLION), queries)
    k, peers = min(100, len(hard)), {}
    for name, codes in (("adversarial", hard), ("random", easy)):
        index = af.HammingIndex(64)
        index.add(codes)
        peers[name] = ours(index, k)
        check(peers[name], index, block, k)
    contest(
        {name: Side.of(peer, block) for name, peer in peers.items()},
        lambda medians: {"slowdown": medians["adversarial"] / medians["random"]},
        [Target("slowdown", most=2.0)],
        bits=64, queries=queries, k=k, items=len(hard),
    )  # fmt: skip


# ---- matrices and metrics


@pytest.mark.benchmark(group="distance matrix, 1000 x 100k, 64 bits, against faiss.hammings (int32)")
@pytest.mark.parametrize(("dtype", "least"), [(torch.uint8, 2.5), (torch.int32, 1.0)], ids=str)
def test_distance_matrix(contest, dtype, least):
    faiss = required("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    queries, items = (random_codes(count, 64, seed) for seed, count in enumerate((1000, scaled(100_000))))
    q, x = torch.from_numpy(queries), torch.from_numpy(items)

    def matrix() -> torch.Tensor:
        """Ours has bytes; for whole words they are converted."""
        return af.functional.hamming_distance(q, x).to(dtype)

    def hammings() -> np.ndarray:
        out = np.empty((len(queries), len(items)), np.int32)
        faiss.hammings(
            *(faiss.swig_ptr(codes) for codes in (queries, items)), len(q), len(x), q.shape[1], faiss.swig_ptr(out)
        )
        return out

    assert matrix().dtype == dtype
    assert torch.equal(matrix().int(), torch.from_numpy(hammings()))
    contest(
        {"agmh_fast": Side(matrix), "faiss.hammings": Side(hammings)},
        lambda medians: {"speedup": medians["faiss.hammings"] / medians["agmh_fast"]},
        [Target("speedup", least=least)],
        bits=64, queries=len(queries), items=len(items), unit="a matrix",
    )  # fmt: skip


# 5794 x 5994 are CUB-200-2011's images; 116 931 x 29 200 are VegFru's.
METRICS = {"cub": (5_794, 5_994, 200), "vegfru": (116_931, 29_200, 292)}


@pytest.mark.benchmark(group="mAP, 48 bits, against a loop of argsorts")
@pytest.mark.parametrize("ties", ["stable", "expected"])
@pytest.mark.parametrize("sizes", METRICS)
def test_mean_average_precision(contest, sizes, ties):
    queries, items, classes = METRICS[sizes]
    queries, items = scaled(queries), scaled(items)
    rng = np.random.default_rng(4)
    codes_q, codes_x = (random_codes(count, 48, seed) for seed, count in enumerate((queries, items)))
    labels_q, labels_x = (torch.from_numpy(rng.integers(0, classes, count)) for count in (queries, items))
    signs_q, signs_x = (torch.from_numpy(af.unpack_codes(codes, 48)).float() for codes in (codes_q, codes_x))
    q, x = torch.from_numpy(codes_q), torch.from_numpy(codes_x)

    def ours(rows: np.ndarray) -> Any:
        return af.metrics.retrieval(q[: len(rows)], x, labels_q[: len(rows)], labels_x, bits=48, ties=ties)

    def loop(rows: np.ndarray) -> torch.Tensor:
        return argsort_precision(signs_q[rows], signs_x, labels_q[rows], labels_x)

    # All of them, unless that is far from the target: then as many as leave time for the other rows.
    block = affordable(ours, np.arange(queries), least=1000, budget=2.0)
    found = ours(block).per_query_ap
    for row in (0, len(block) // 2, len(block) - 1):
        of_query = distances(words(codes_x), words(codes_q)[row]).tolist()
        relevant = (labels_x == labels_q[row]).tolist()
        exact = reference.average_precision_of_query(of_query, relevant, ties)
        assert float(found[row]) == pytest.approx(exact, rel=1e-12)
        # The loop's ranks and counts are whole numbers; only the mean over them is rounded, in float32.
        stable = reference.average_precision_of_query(of_query, relevant, "stable")
        assert float(loop(np.array([row]))[0]) == pytest.approx(stable, rel=1e-5)
    few = affordable(loop, np.arange(queries))
    contest(
        {"agmh_fast": Side(lambda: ours(block), len(block)), "argsort loop": Side(lambda: loop(few), len(few))},
        lambda medians: {
            "seconds": medians["agmh_fast"] * queries,
            "speedup": medians["argsort loop"] / medians["agmh_fast"],
        },
        [Target("speedup", least=200.0)] if sizes == "cub" else [Target("seconds", most=0.5)],
        bits=48, queries=queries, items=items, classes=classes, ties=ties,
    )  # fmt: skip
