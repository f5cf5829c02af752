"""Hamming search on a GPU beside torch, a product of ±1, CuPy, faiss and cuVS where they are installed, and beside what
memory and population counts of this device allow, measured in the same run.

Every row first shows that its answers are the right ones, order of ties included; then all sides are timed in turns.
A peer too slow for all queries gets fewer of them. Rows that do not fit the device's memory, or begin after
AGMH_BENCH_SECONDS, are skipped. Rows are as in test_hamming_cpu.py.
"""

from __future__ import annotations

import functools

import pytest
import torch
from back_ends import sieves
from contest import Side, cases
from hamming_contest import argsort_precision, side_of
from hamming_gpu import (
    MILLION,
    ROWS,
    Row,
    assert_exact,
    assert_nearest,
    by_back_end,
    database,
    ours,
    overlap,
    pass_by,
    popcount_rate,
    random_rows,
    rivals,
    waiting,
)
from hamming_peers import affordable
from limits import Limit, Work, copy_rate
from measuring import DEVICE, synchronize
from targets import Target, scaled

import agmh_fast as af
from agmh_fast.reference import metrics as reference

pytestmark = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device: make gpu")


@functools.lru_cache(maxsize=1)
def rates() -> tuple[float, float]:
    """Bytes a second of a plain copy, population counts a second."""
    return copy_rate(DEVICE), popcount_rate(DEVICE)


def _bound(row: Row) -> Limit:
    return Limit("memory or population counts", seconds=row.bound(*rates()))


def _free_memory() -> int:
    """Bytes, with the database of the row before given up."""
    database.cache_clear()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


@pytest.mark.benchmark(group="tensor cores against population counts")
@cases("bits", [32, 64, 128, 256, 1024])
def test_back_ends(contest, bits):
    """From how many queries on sifting pays, which csrc/hamming/cuda/backend.h is to say."""
    rivals = sieves(DEVICE)
    if not rivals:
        pytest.skip("this GPU's tensor cores multiply neither bits nor bytes")
    items, sides = scaled(10 * MILLION), {}
    _free_memory()
    x = database(bits, items, DEVICE)
    numbers = (1000, 256, 64, 16, 4)
    for queries in numbers:
        q = random_rows(queries, bits, 1, DEVICE)
        for name in (*rivals, "popc"):
            peer = by_back_end(x, bits, 100, name)
            assert_exact(peer.search(q), q, x, bits, 100)
            sides[f"{name}, Q={queries}"] = side_of(peer, q)
    contest(
        sides, Work.search(numbers[0], items, bits, numbers[0] * 100),
        figures=lambda medians: {
            f"speedup by {name}, Q={q}": medians[f"popc, Q={q}"] / medians[f"{name}, Q={q}"]
            for name in rivals for q in numbers
        },
        bits=bits, items=items, k=100,
    )  # fmt: skip


@pytest.mark.benchmark(group="streamed from host memory, against the copy and the search alone")
def test_streamed(contest):
    """The codes pass by in pieces; of the search and the copy, the shorter is to hide behind the longer."""
    items, queries, room = scaled(100 * MILLION), 256, 2**27
    _free_memory()
    x, q = database(64, items, DEVICE), random_rows(queries, 64, 1, DEVICE)
    host = af.HammingIndex(64)
    host.add(x.cpu())
    streamed, resident = host.to(DEVICE, device_memory=room), ours(x, 64, 100, "cuda")
    rows = streamed.codes
    for found, right in zip(streamed.search(q, 100), resident.search(q), strict=True):
        assert torch.equal(found, right)
    contest(
        {
            "agmh_fast": Side(lambda: streamed.search(q, 100), queries),
            "the copy alone": Side(lambda: pass_by(rows, room, DEVICE), queries),
            "the search alone": side_of(resident, q),
        },
        Work.search(queries, items, 64, 100 * queries),
        limit=Limit("the copy alone", side="the copy alone"),
        targets=[Target("overlap", least=0.8)],
        figures=lambda medians: {"overlap": overlap(*medians.values())},
        bits=64, items=items, queries=queries, k=100, room=room,
    )  # fmt: skip


@pytest.mark.benchmark(group="k nearest")
@cases("row", ROWS, ids=lambda row: f"{row.bits}-{row.items // MILLION}M-{row.queries}-{row.k}")
def test_topk(contest, row):
    row = Row(row.bits, scaled(row.items), row.queries, min(row.k, scaled(row.items)))
    rates()
    free = _free_memory()
    if (obstacle := row.obstacle(free)) is not None:
        pytest.skip(obstacle)
    x, q = database(row.bits, row.items, DEVICE), random_rows(row.queries, row.bits, 1, DEVICE)
    peer = ours(x, row.bits, row.k, "cuda")
    found = peer.search(q)
    assert_exact(found, q, x, row.bits, row.k)
    present, absent = rivals(row, x, free)
    sides = {peer.name: side_of(peer, q)}
    for name, rival in present.items():
        rival = waiting(rival, DEVICE)
        try:
            few = affordable(rival.search, q, least=1)
            assert_nearest(rival.search(few), found, q, x, row.bits)
            sides[name] = side_of(rival, few)
        except torch.cuda.OutOfMemoryError as error:
            absent[name] = str(error).splitlines()[0]
    del found

    contest(
        sides, Work.search(row.queries, row.items, row.bits, row.queries * row.k), list(sides)[1:],
        _bound(row), row.targets(),
        bits=row.bits, items=row.items, queries=row.queries, k=row.k, not_measured=absent, popcounts_per_s=rates()[1],
    )  # fmt: skip


@pytest.mark.benchmark(group="large k, against k=100")
@cases("k", [2048, 65_536])
def test_large_k(contest, k):
    items = scaled(10 * MILLION)
    k = min(k, items)
    _free_memory()
    x, q = database(64, items, DEVICE), random_rows(16, 64, 1, DEVICE)
    large, small = ours(x, 64, k, "cuda"), ours(x, 64, min(100, k), "cuda")
    assert_exact(large.search(q), q, x, 64, k)
    contest(
        {"agmh_fast": side_of(large, q), "k=100": side_of(small, q)},
        Work.search(16, items, 64, 16 * k),
        limit=_bound(Row(64, items, 16, k)),
        targets=[Target("slowdown", most=3.0)],
        figures=lambda medians: {"slowdown": medians["agmh_fast"] / medians["k=100"]},
        bits=64, items=items, queries=16, k=k,
    )  # fmt: skip


@pytest.mark.benchmark(group="codes that come again, against a scan of all")
@cases("bits,queries,k", [(16, 1, 10), (16, 1000, 10), (12, 1000, 100)])
def test_short_codes(contest, bits, queries, k):
    items = scaled(100 * MILLION)
    _free_memory()
    x, q = database(bits, items, DEVICE), random_rows(queries, bits, 1, DEVICE)
    index, scan = af.HammingIndex(bits, DEVICE), ours(x, bits, k, "cuda")
    index.add(x)
    index.search(q.repeat(-(-64 // queries), 1), k)
    for found, right in zip(index.search(q, k), scan.search(q), strict=True):
        assert torch.equal(found, right)
    contest(
        {
            "agmh_fast": Side(lambda: index.search(q, k), queries),
            "scan": side_of(scan, q),
        },
        Work.search(queries, items, bits, k * queries),
        "scan",
        bits=bits, items=items, queries=queries, k=k,
    )  # fmt: skip


@pytest.mark.benchmark(group="mAP, 116 931 x 29 200, 48 bits, against a loop of argsorts on the same GPU")
@cases("ties", ["stable", "expected"])
def test_mean_average_precision(contest, ties):
    queries, items = scaled(116_931), scaled(29_200)
    q, x = (random_rows(count, 48, seed, DEVICE) for seed, count in enumerate((queries, items)))
    labels_q, labels_x = (torch.randint(292, (count,), device=DEVICE) for count in (queries, items))
    signs_q, signs_x = (af.unpack_codes(codes, 48).float() for codes in (q, x))

    def all_of_them() -> torch.Tensor:
        return af.metrics.retrieval(q, x, labels_q, labels_x, bits=48, ties=ties, k=None).per_query_ap

    def loop(rows: torch.Tensor) -> torch.Tensor:
        found = argsort_precision(signs_q[rows], signs_x, labels_q[rows], labels_x)
        synchronize(DEVICE)
        return found

    found = all_of_them()
    for row in (0, queries // 2, queries - 1):
        away = af.functional.hamming_distance(q[row : row + 1], x, 48, impl="torch")[0].tolist()
        exact = reference.average_precision_of_query(away, (labels_x == labels_q[row]).tolist(), ties)
        assert float(found[row]) == pytest.approx(exact, rel=1e-12)
    few = affordable(loop, torch.arange(queries, device=DEVICE))
    contest(
        {"agmh_fast": Side(all_of_them, queries), "argsort loop": Side(lambda: loop(few), len(few))},
        Work.search(queries, items, 48, 0),
        "argsort loop",
        _bound(Row(48, items, queries, 0)),
        [Target("speedup", least=200.0)],
        bits=48, queries=queries, items=items, ties=ties,
    )  # fmt: skip
