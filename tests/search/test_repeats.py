"""Codes that come again and again are searched by the first items of each: the answers of all items, bit for bit."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agmh_fast as af
from agmh_fast.search import index as index_module
from agmh_fast.search import repeats


@pytest.fixture(autouse=True)
def _on_tensors(monkeypatch):
    """The CPU, served as a GPU is; any index is large enough."""
    monkeypatch.setattr(index_module, "_in_host_memory", lambda device: False)
    monkeypatch.setattr(repeats, "_LEAST_ITEMS", 1)


@pytest.fixture
def scanned(monkeypatch):
    """Items of each search for the k nearest, in order."""
    seen = []
    search = af.search.tensor_engine.topk_op

    def record(queries, rows, *rest):
        seen.append(len(rows))
        return search(queries, rows, *rest)

    monkeypatch.setattr("agmh_fast.search.tensor_engine.topk_op", record)
    return seen


def _codes(rng, rows, bits, distinct):
    codes = np.packbits(rng.integers(0, 2, (distinct, bits), dtype=np.uint8), axis=1)
    return codes[rng.integers(0, distinct, rows)]


def _rows(codes, bits):
    index = af.HammingIndex(bits)
    index.add(codes)
    return index._engine.snapshot()[0]


def _expected(codes, most):
    seen = {}
    kept = []
    for position, code in enumerate(map(bytes, codes)):
        seen[code] = seen.get(code, 0) + 1
        if seen[code] <= most:
            kept.append(position)
    return kept


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_first_of_each_code(data):
    """Chunks of any size, codes of any width, from all alike to hardly any."""
    bits, rows = data.draw(st.sampled_from([1, 5, 8, 9, 12, 16, 17, 32, 64, 100, 256])), data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes, most = _codes(rng, rows, bits, data.draw(st.integers(1, 12))), data.draw(st.sampled_from([1, 2, 5, 16]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "_CHUNK", data.draw(st.sampled_from([7, 64, 1 << 24])))
        found = repeats.first_of_each(_rows(codes, bits), bits, most)
    expected = _expected(codes, most)
    if len(expected) > rows // 4:
        assert found is None
    else:
        assert found.tolist() == expected


@pytest.mark.parametrize(("bits", "distinct"), [(1, 2), (8, 256), (12, 300), (16, 100), (48, 40), (200, 9)])
def test_answers_are_those_of_a_scan(scanned, bits, distinct):
    rng = np.random.default_rng(bits)
    codes = _codes(rng, 20_000, bits, distinct)
    ids = rng.permutation(50_000)[:20_000]
    index = af.HammingIndex(bits)
    index.add(codes, ids)
    order = np.argsort(ids)
    plain = torch.from_numpy(codes[order])
    queries = torch.from_numpy(_codes(rng, 70, bits, 70))
    for options in ({}, {"max_distance": bits // 3}):
        for k in (1, 10, 16, 17, 200):
            found = index.search(queries, k, **options)
            distances, positions = af.functional.hamming_topk(queries, plain, k, bits, **options)
            assert torch.equal(found.distances, distances)
            expected = torch.where(positions >= 0, torch.from_numpy(ids[order])[positions], -1)
            assert torch.equal(found.ids, expected)
    assert max(scanned[0:3]) <= 20_000 // 4  # which is the first of each code, for k up to 16


def test_a_mask_and_a_range_look_at_all_items(scanned):
    rng = np.random.default_rng(0)
    codes = _codes(rng, 5000, 12, 30)
    index = af.HammingIndex(12)
    index.add(codes)
    index.search(codes[:64], 5)
    assert scanned == [30 * 16]
    index.search(codes[:64], 5, mask=np.ones(5000, bool))
    assert scanned[-1] == 5000
    assert index.range_search(codes[:1], 0).lims[-1] == (codes == codes[0]).all(1).sum()


def test_when_it_is_tried(scanned, monkeypatch):
    """After 64 queries, anew after a change, and seldom where it did not pay."""
    tried = []
    find = repeats.first_of_each
    monkeypatch.setattr(repeats, "first_of_each", lambda *of: (tried.append(of[2]), find(*of))[1])
    rng = np.random.default_rng(0)
    codes = _codes(rng, 4000, 16, 20)
    index = af.HammingIndex(16)
    index.add(codes)
    for _ in range(3):
        index.search(codes[:31], 3)
    index.search(codes[:1], 16)
    index.search(codes[:1], 17)
    index.search(codes[:1], 5000)
    assert tried == [16, 256]
    assert scanned == [4000, 4000, 320, 320, 4000, 4000]
    index.add(codes[:1])
    index.search(codes[:63], 3)
    assert len(tried) == 2
    assert index.search(codes[:1], 3).ids.tolist() == [np.flatnonzero((codes == codes[0]).all(1))[:3].tolist()]
    assert tried == [16, 256, 16]
    assert scanned[-1] == 320
    index.search(codes[:600], 17)
    assert len(tried) == 3
    index.search(codes[:200], 17)
    assert tried == [16, 256, 16, 256]


def test_what_is_gone_is_let_go_of():
    codes = np.zeros((5000, 2), np.uint8)
    index = af.HammingIndex(16)
    index.add(codes)
    index.search(codes[:64], 1)
    held = weakref.ref(index._engine._repeats._known[16].positions)
    for change in (lambda: index.remove([0]), lambda: index.add(codes[:1])):
        change()
        assert held() is None
        index.search(codes[:64], 1)
        held = weakref.ref(index._engine._repeats._known[16].positions)


def test_different_codes_are_left_alone(scanned):
    rng = np.random.default_rng(0)
    codes = _codes(rng, 5000, 64, 5000)
    index = af.HammingIndex(64)
    index.add(codes)
    index.search(codes[:100], 3)
    assert scanned == [5000]


def test_too_little_memory_leaves_the_scan(scanned, monkeypatch):
    codes = np.zeros((5000, 2), np.uint8)
    index = af.HammingIndex(16)
    index.add(codes)

    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(repeats, "first_of_each", short)
    assert index.search(codes[:100], 2).ids[99].tolist() == [0, 1]
    assert scanned == [5000]


def test_threads_find_out_once(monkeypatch):
    tried = []
    find = repeats.first_of_each
    monkeypatch.setattr(repeats, "first_of_each", lambda *of: (tried.append(1), find(*of))[1])
    codes = _codes(np.random.default_rng(0), 20_000, 16, 50)
    index = af.HammingIndex(16)
    index.add(codes)
    expected = [np.flatnonzero((codes == code).all(1))[:3].tolist() for code in codes[:5]]
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(index.search(codes[:100], 3).ids[:5].tolist())) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 6
    assert tried == [1]
