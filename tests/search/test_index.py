"""The index against a sort of all distances: order, widths, k, radius, masks, ids, removal, threads, bad input."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agmh_fast as af

pytestmark = pytest.mark.usefixtures("engine")

NO_DISTANCE = 2**31 - 1
WIDTHS = [1, 8, 12, 16, 24, 32, 33, 48, 64, 100, 256, 257, 768, 1024, 4096]


def _codes(rng, rows, bits, distinct=None):
    codes = np.packbits(rng.integers(0, 2, (distinct or rows, bits), dtype=np.uint8), axis=1)
    return codes if distinct is None else codes[rng.integers(0, distinct, rows)]


def _ranking(query, codes, ids, allowed=None, limit=None):
    """(distance, id) of all allowed items, sorted."""
    distances = np.unpackbits(codes ^ query, axis=1).sum(1)
    keep = np.ones(len(codes), bool) if allowed is None else allowed
    keep = keep if limit is None else keep & (distances <= limit)
    return sorted(zip(distances[keep].tolist(), ids[keep].tolist(), strict=True))


def _check_search(index, queries, codes, ids, k, mask=None, allowed=None, limit=None):
    """allowed: (N,) or (Q, N) bool, what `mask` means."""
    result = index.search(queries, k, mask=mask, max_distance=limit)
    assert result.distances.dtype == np.int32
    assert result.ids.dtype == np.int64
    assert result.distances.shape == result.ids.shape == (len(queries), k)
    for row, query in enumerate(queries):
        one = allowed[row] if allowed is not None and allowed.ndim == 2 else allowed
        expected = _ranking(query, codes, ids, one, limit)[:k]
        expected += [(NO_DISTANCE, -1)] * (k - len(expected))
        assert list(zip(result.distances[row].tolist(), result.ids[row].tolist(), strict=True)) == expected


def _check_range(index, queries, codes, ids, radius, mask=None, allowed=None):
    lims, distances, found = index.range_search(queries, radius, mask=mask)
    assert (lims.dtype, distances.dtype, found.dtype) == (np.int64, np.int32, np.int64)
    assert lims[0] == 0
    assert lims[-1] == len(distances) == len(found)
    for row, query in enumerate(queries):
        one = allowed[row] if allowed is not None and allowed.ndim == 2 else allowed
        part = slice(lims[row], lims[row + 1])
        expected = _ranking(query, codes, ids, one, radius)
        assert list(zip(distances[part].tolist(), found[part].tolist(), strict=True)) == expected


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width(bits):
    rng = np.random.default_rng(bits)
    codes, queries = _codes(rng, 200, bits), _codes(rng, 3, bits)
    index = af.HammingIndex(bits)
    index.add(codes)
    assert len(index) == 200
    assert np.array_equal(index.codes, codes)
    for k in [1, 10, 200, 203]:
        _check_search(index, queries, codes, index.ids, k)
    _check_range(index, queries, codes, index.ids, bits // 2)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_problem(data):
    """Any ids in any order, ties, any kind of mask, a largest distance, any k and radius."""
    bits, rows = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = _codes(rng, rows, bits, data.draw(st.integers(1, 8)))
    queries = _codes(rng, data.draw(st.integers(0, 4)), bits)
    ids = np.array(data.draw(st.lists(st.integers(0, 2**62), min_size=rows, max_size=rows, unique=True)), np.int64)
    index = af.HammingIndex(bits)
    index.add(codes, ids)
    order = np.argsort(ids)
    codes, ids = codes[order], ids[order]
    assert np.array_equal(index.ids, ids)
    assert np.array_equal(index.codes, codes)
    kind = data.draw(st.sampled_from(["none", "shared", "each", "ids"]))
    mask = allowed = None
    if kind in ("shared", "each"):
        mask = allowed = rng.random((len(queries), rows) if kind == "each" else rows) < data.draw(st.floats(0, 1))
    if kind == "ids":
        allowed = rng.random(rows) < 0.5
        mask = rng.permutation(np.concatenate([ids[allowed], ids[allowed][:3], [-7, 2**62 + 1]]))
    limit = data.draw(st.none() | st.integers(0, bits + 2))
    _check_search(index, queries, codes, ids, data.draw(st.integers(1, 70)), mask, allowed, limit)
    _check_range(index, queries, codes, ids, data.draw(st.integers(0, bits + 2)), mask, allowed)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_history(data):
    """Adding and removing in any order against a dictionary, automatic ids included."""
    bits = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    index, items, next_id = af.HammingIndex(bits), {}, 0
    held = index.codes, index.ids, {}
    for _ in range(data.draw(st.integers(1, 8))):
        action = data.draw(st.sampled_from(["add", "ids", "remove", "view"]))
        if action == "view":
            held = index.codes, index.ids, dict(items)
            continue
        if action == "remove":
            gone = data.draw(st.lists(st.sampled_from(sorted(items)), unique=True)) if items else []
            index.remove(np.array(gone, np.int64))
            for key in gone:
                del items[key]
            continue
        codes = _codes(rng, data.draw(st.integers(0, 6)), bits)
        if action == "add":
            index.add(codes)
            ids = list(range(next_id, next_id + len(codes)))
        else:
            free = st.integers(0, 50).filter(lambda i: i not in items)
            ids = data.draw(st.lists(free, min_size=len(codes), max_size=len(codes), unique=True))
            index.add(codes, ids)
        next_id = max([next_id, *(key + 1 for key in ids)])
        items.update(zip(ids, codes, strict=True))
    assert index.ids.tolist() == sorted(items)
    assert [code.tolist() for code in index.codes] == [items[key].tolist() for key in sorted(items)]
    codes, ids, then = held
    assert ids.tolist() == sorted(then)
    assert [code.tolist() for code in codes] == [then[key].tolist() for key in sorted(then)]


def test_smaller_k_is_a_prefix_and_threads_change_nothing():
    rng = np.random.default_rng(0)
    codes = _codes(rng, 30_000, 64, 3_000)
    index = af.HammingIndex(64)
    index.add(codes)
    for queries in (codes[:1], codes[:40]):
        most = index.search(queries, 5_000)
        for threads in (1, 2, 3):
            af.set_num_threads(threads)
            try:
                for k in (1, 10, 1_000, 5_000):
                    result = index.search(queries, k)
                    assert np.array_equal(result.ids, most.ids[:, :k])
                    assert np.array_equal(result.distances, most.distances[:, :k])
                within = index.range_search(queries, int(most.distances[0, 99]))
                assert np.array_equal(within.ids[: within.lims[1]][:100], most.ids[0, :100])
            finally:
                af.set_num_threads(None)


@pytest.mark.parametrize("items", [31, 32, 33, 1023, 1024, 1025, 2047, 2048, 2049])
def test_tile_boundaries(items):
    rng = np.random.default_rng(items)
    codes = _codes(rng, items, 24, 40)
    index = af.HammingIndex(24)
    index.add(codes)
    _check_search(index, codes[:2], codes, index.ids, items)
    mask = np.arange(items) >= items - 3
    _check_search(index, codes[:2], codes, index.ids, 5, mask, mask)


def test_empty_index_and_no_queries():
    index = af.HammingIndex(12)
    query = np.zeros((2, 2), np.uint8)
    assert index.search(query, 3).ids.tolist() == [[-1] * 3] * 2
    assert index.search(query, 3).distances.tolist() == [[NO_DISTANCE] * 3] * 2
    assert index.range_search(query, 12).lims.tolist() == [0, 0, 0]
    assert index.search(query, 3, mask=np.zeros(0, bool)).ids.tolist() == [[-1] * 3] * 2
    index.add(np.zeros((0, 2), np.uint8))
    index.remove([])
    assert len(index) == 0
    index.add(query)
    assert index.search(query[:0], 3).ids.shape == (0, 3)
    assert index.range_search(query[:0], 3).lims.tolist() == [0]
    assert index.search(query, 1, mask=[]).ids.tolist() == [[-1], [-1]]


def test_results_follow_the_queries():
    rng = np.random.default_rng(0)
    codes = _codes(rng, 50, 48)
    index = af.HammingIndex(48)
    index.add(torch.from_numpy(codes))
    expected = index.search(codes[:3], 5)
    result = index.search(torch.from_numpy(codes[:3]), 5, mask=torch.ones(50, dtype=torch.bool))
    assert isinstance(result.ids, torch.Tensor)
    assert np.array_equal(result.ids.numpy(), expected.ids)
    assert isinstance(index.range_search(torch.from_numpy(codes[:3]), 5).lims, torch.Tensor)
    assert np.array_equal(index.search(codes[:3], 5, mask=torch.arange(50)).ids, expected.ids)


def test_views_are_read_only_and_keep_their_moment(engine):
    index = af.HammingIndex(16)
    index.add(np.array([[1, 2], [3, 4]], np.uint8))
    codes, ids = index.codes, index.ids
    if engine == "host":
        with pytest.raises(ValueError, match="read-only"):
            codes[0, 0] = 9
    index.remove([0])
    index.add(np.array([[7, 7]], np.uint8))
    assert (codes.tolist(), ids.tolist()) == ([[1, 2], [3, 4]], [0, 1])
    assert (index.codes.tolist(), index.ids.tolist()) == ([[3, 4], [7, 7]], [1, 2])


def test_automatic_ids_count_on_from_the_largest_ever_used():
    index = af.HammingIndex(8)
    code = np.zeros((1, 1), np.uint8)
    index.add(code)
    index.add(code, [41])
    index.remove([41])
    index.add(code)
    assert index.ids.tolist() == [0, 42]
    index.add(code, [2**63 - 2])
    with pytest.raises(af.InputError, match="none are left"):
        index.add(code)
    assert index.ids.tolist() == [0, 42, 2**63 - 2]


def test_searches_run_while_items_come_and_go():
    """Every answer must hold for some state: distances fit the codes, in order, without repeats."""
    rng = np.random.default_rng(0)
    codes = _codes(rng, 4_000, 48)
    index = af.HammingIndex(48)
    index.add(codes[:10])
    queries, stop, failures = codes[:4], threading.Event(), []
    searched = threading.Semaphore(0)

    def search():
        try:
            while not stop.is_set():
                distances, ids = index.search(queries, 5)
                searched.release()
                for row, query in enumerate(queries):
                    known = np.unpackbits(codes[ids[row]] ^ query, axis=1).sum(1)
                    assert known.tolist() == distances[row].tolist()
                    pairs = list(zip(distances[row].tolist(), ids[row].tolist(), strict=True))
                    assert pairs == sorted(set(pairs))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(10, 4_000, 30):
        searched.acquire(timeout=10)  # else all is over before the first search
        index.add(codes[start : start + 30])
        if start % 4 == 0:
            index.remove([start])
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(index) == 4_000 - sum(start % 4 == 0 for start in range(10, 4_000, 30))


def test_python_runs_during_a_search():
    rng = np.random.default_rng(0)
    codes = _codes(rng, 20_000, 256)
    index = af.HammingIndex(256)
    index.add(codes)
    search = threading.Thread(target=index.search, args=(codes[:2000], 1))
    search.start()
    steps = 0
    while search.is_alive():
        steps += 1
    # With the interpreter's lock held through a search of millions of pairs this thread would get a step or two.
    assert steps > 100


def test_searches_run_side_by_side():
    codes = _codes(np.random.default_rng(0), 20_000, 256)
    index = af.HammingIndex(256)
    index.add(codes)
    long = threading.Thread(target=index.search, args=(codes[:4000], 1))
    long.start()
    beside = 0
    while long.is_alive():
        assert index.search(codes[7:8], 1).ids.item() == 7
        beside += long.is_alive()
    # Searches that waited for each other would all have ended after the long one.
    assert beside > 3


DAEMONS = """
import threading, time
import numpy as np
from agmh_fast._engine import Index

index, codes = Index(256), np.random.default_rng(0).integers(0, 256, (2000, 32), dtype=np.uint8)
index.add(codes)

def search():
    while True:
        index.search(codes[:20], 1, 256)

for _ in range(3):
    threading.Thread(target=search, daemon=True).start()
time.sleep(0.05)
"""


def test_python_may_end_during_a_search():
    """Before Python 3.14 the interpreter's end unwinds threads that wait for its lock: no destructor may object."""
    run = subprocess.run([sys.executable, "-c", DAEMONS], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
