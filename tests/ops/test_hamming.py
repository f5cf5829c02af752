"""Every implementation of every Hamming op against the reference, on every width and tie pattern."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hamming_cases import IMPLS, WIDTHS, as_tuple, assert_same, calls_on, codes
from hypothesis import given, settings
from hypothesis import strategies as st

import agmh_fast as af
from agmh_fast.ops import hamming, hamming_torch


@pytest.mark.parametrize("bits", WIDTHS)
def test_equals_reference_at_every_width(bits):
    for q, x in [(codes(3, bits), codes(130, bits)), (codes(2, bits, 2), codes(70, bits, 3))]:
        for call in calls_on(q, x, bits, k=20, radius=bits // 2):
            expected = call("reference")
            for impl in IMPLS:
                assert_same(call(impl), expected)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(1, 80),
    rows=st.tuples(st.integers(0, 6), st.integers(0, 90)),
    distinct=st.integers(1, 20),
    data=st.data(),
)
def test_equals_reference_on_any_problem(bits, rows, distinct, data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    q, x = (codes(count, bits, distinct) for count in rows)
    k, radius = data.draw(st.integers(1, 100)), data.draw(st.integers(0, bits + 3))
    for call in calls_on(q, x, bits, k, radius):
        expected = call("reference")
        for impl in IMPLS:
            assert_same(call(impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_in_nothing_out(impl):
    for rows in [(0, 5), (4, 0), (0, 0)]:
        q, x = codes(rows[0], 12), codes(rows[1], 12)
        for call in calls_on(q, x, 12, k=3, radius=2):
            assert_same(call(impl), call("reference"))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("queries", [1, 50])
def test_thread_count_changes_nothing(queries, threads):
    """Enough work for threads to start, split over the items for one query and over the queries for fifty."""
    q, x = codes(queries, 64), codes(60_000 if queries == 1 else 20_000, 64, 5_000)
    calls = calls_on(q, x, 64, k=2_000, radius=26)
    af.set_num_threads(1)
    expected = [call("cpu") for call in calls[:-1]]
    af.set_num_threads(threads)
    try:
        for call, result in zip(calls, expected, strict=False):
            for a, b in zip(as_tuple(call("cpu")), as_tuple(result), strict=True):
                assert torch.equal(a, b)
    finally:
        af.set_num_threads(None)


@pytest.mark.parametrize("order", ["descending", "ascending", "equal"])
def test_adversarial_orders(order):
    """Items that come in order of distance: each enters, or none after the first."""
    rising = np.arange(5000) // 80
    ones = {"descending": rising[::-1], "ascending": rising, "equal": np.full(5000, 9)}[order]
    x = np.packbits(np.arange(64) < ones[:, None], axis=1)
    q = np.zeros((1, 8), np.uint8)
    expected = np.argsort(ones, kind="stable")
    for k in [1, 3, 100, 2000, 4999, 5000]:
        distances, ids = hamming.hamming_topk(q, x, k, impl="cpu")
        assert np.array_equal(ids[0], expected[:k])
        assert np.array_equal(distances[0], ones[expected[:k]])


def test_chunks_of_the_torch_implementation(monkeypatch):
    monkeypatch.setattr(hamming_torch, "_CHUNK_PAIRS", 600)
    monkeypatch.setattr(hamming_torch, "_CHUNK_BITS", 48 * 37)
    q, x = codes(11, 48), codes(300, 48, 20)
    for call in calls_on(q, x, 48, k=45, radius=20):
        assert_same(call("torch"), call("reference"))


@pytest.mark.parametrize("bits", [48, 128])
@pytest.mark.parametrize("classes", [3, 40, 5000])
def test_many_queries_with_labels(classes, bits):
    """Bit planes, with labels that many, few and hardly any pairs share; items on both sides of 4096."""
    q, x = codes(90, bits, 70), codes(4200, bits, 300)
    labels = torch.randint(classes, (90,)), torch.randint(classes, (4200,))
    hot = [torch.nn.functional.one_hot(part % 60, 60) | torch.nn.functional.one_hot(part % 7, 60) for part in labels]
    for pair in (labels, hot):
        expected = hamming.hamming_ranked_histogram(q, x, *pair, k=4000, cutoffs=[1, 900], bits=bits, impl="torch")
        assert_same(
            hamming.hamming_ranked_histogram(q, x, *pair, k=4000, cutoffs=[1, 900], bits=bits, impl="cpu"), expected
        )
        assert torch.equal(hamming.hamming_histogram(q, x, *pair, bits=bits, impl="cpu"), expected[2])


@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
def test_what_may_be_found(impl):
    """By an independent count: what is missing is said to be missing, and a mask of any layout means the same."""
    q, x = codes(3, 20), codes(50, 20)
    mask = torch.rand(6, 100)[::2, ::2] < 0.3
    distances, ids = hamming.hamming_topk(q, x, 40, 20, mask=mask, max_distance=9, impl=impl)
    for row in range(3):
        apart = torch.tensor([int(np.unpackbits((q[row] ^ code).numpy()).sum()) for code in x])
        expected = sorted((int(d), i) for i, d in enumerate(apart) if d <= 9 and mask[row, i])
        found = list(zip(distances[row].tolist(), ids[row].tolist(), strict=True))
        assert found == expected + [(2**31 - 1, -1)] * (40 - len(expected))
    lims, *near = hamming.hamming_range(q, x, 9, 20, mask=mask, impl=impl)
    keep = ids >= 0
    assert torch.equal(lims.diff(), keep.sum(1))
    assert torch.equal(near[0], distances[keep])
    assert torch.equal(near[1], ids[keep])
    one = hamming.hamming_topk(q[:1], x, 40, 20, mask=mask[0], max_distance=9, impl=impl)
    assert torch.equal(one[1], ids[:1])
    same = hamming.hamming_topk(q, x, 40, 20, mask=mask[:1].expand(3, -1), impl=impl)
    assert torch.equal(same[1], hamming.hamming_topk(q, x, 40, 20, mask=mask[0], impl=impl)[1])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bits", [1, 12, 20, 45, 100])
def test_stored_rows(bits, impl):
    """What an index hands to the ops: rows with zero bytes up to a whole word."""
    q, x = codes(3, bits), codes(70, bits)
    words = -(-bits // 64) * 8
    padded = torch.nn.functional.pad(x, (0, words - x.shape[1]))
    for width in {x.shape[1], 4 if bits <= 32 else words, words}:
        for other in (q, padded[:3, :width]):
            assert_same(
                hamming.topk_op(other, padded[:, :width].contiguous(), 9, bits, bits, None, impl=impl),
                hamming.topk_op(other[:, : x.shape[1]], x, 9, bits, bits, None, impl="reference"),
            )


def test_autocast_does_not_round_distances():
    q, x = codes(4, 4096), codes(9, 4096)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            hamming.hamming_distance(q, x, impl="torch"), hamming.hamming_distance(q, x, impl="reference")
        )


def test_distance_types():
    assert hamming.hamming_distance(codes(1, 248), codes(2, 248)).dtype == torch.uint8
    assert hamming.hamming_distance(codes(1, 255), codes(2, 255), 255).dtype == torch.uint8
    q = codes(1, 256)
    farthest = hamming.hamming_distance(q, 255 - q)
    assert farthest.dtype == torch.uint16
    assert farthest.tolist() == [[256]]
    assert hamming.hamming_distance(q, q, dtype=torch.int32).dtype == torch.int32
    assert hamming.hamming_distance(q.numpy(), q.numpy(), dtype=torch.int32).dtype == np.int32
    for bits, itemsize in ((256, 1), (48, 3), (48, 8)):
        with pytest.raises(RuntimeError, match="itemsize must be"):
            torch.ops.agmh_fast.hamming_distance(codes(1, bits), codes(1, bits), bits, itemsize, 1)


def test_memory_of_large_results_is_used_again():
    q, x = codes(50, 48), codes(100_000, 48)
    expected = hamming.hamming_topk(q[:5], x, 100, 48)
    for call in (
        lambda: hamming.hamming_distance(q, x, 48),
        lambda: hamming.hamming_distance(q, x, 48, dtype=torch.int32),
        lambda: hamming.hamming_topk(q, x, 20_000, 48)[1],
        lambda: hamming.hamming_range(q, x, 48, 48)[2],
    ):
        first = call()
        assert first.is_contiguous()
        assert first.untyped_storage().nbytes() >= 4 << 20
        view, address, kept = first[7:9], first.data_ptr(), first.clone()
        del first
        second = call()
        assert second.data_ptr() != address  # a view keeps it
        assert torch.equal(view, kept[7:9])
        del second, view
        assert torch.equal(call(), kept)
    assert all(torch.equal(a, b) for a, b in zip(hamming.hamming_topk(q[:5], x, 100, 48), expected, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", WIDTHS)
def test_cuda_distances(bits):
    q, x = codes(21, bits).cuda(), codes(300, bits).cuda()
    assert torch.equal(
        hamming.hamming_distance(q, x, bits, impl="cuda").cpu(), hamming.hamming_distance(q.cpu(), x.cpu(), bits)
    )
    whole = hamming.hamming_distance(q, x, bits, dtype=torch.int32, impl="cuda")
    assert torch.equal(whole.cpu(), hamming.hamming_distance(q.cpu(), x.cpu(), bits, dtype=torch.int32))
