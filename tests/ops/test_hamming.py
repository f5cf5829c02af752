"""Every implementation of every Hamming op against the reference, on every width, tie pattern and bad argument."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agmh_fast as af
from agmh_fast.ops import hamming, hamming_torch

WIDTHS = [1, 8, 12, 16, 24, 32, 33, 48, 64, 100, 256, 257, 768, 1024, 4096]
IMPLS = ["cpu", "torch"]


def _codes(rows, bits, distinct=None):
    """Random codes; with few distinct ones nearly everything is tied."""
    values = af.pack_codes(torch.randn(distinct or rows, bits))
    return values if distinct is None else values[torch.randint(distinct, (rows,))]


def _assert_same(first, second):
    """Integers equal; sums of at most 1000 terms of at most 1, added in another order, within 1000 · 1000 · 2⁻⁵³."""
    for a, b in zip(_tuple(first), _tuple(second), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if a.dtype.is_floating_point:
            torch.testing.assert_close(a, b, rtol=0, atol=1e6 * 2**-53)
        else:
            assert torch.equal(a, b)


def _tuple(result):
    return result if isinstance(result, tuple) else (result,)


def _calls(q, x, bits, k, radius):
    """All ops on one problem, as functions of the implementation."""
    labels = torch.randint(3, (len(q),)), torch.randint(3, (len(x),))
    sets = torch.rand(len(q), 70) < 0.03, torch.rand(len(x), 70) < 0.03
    shared, each = torch.rand(len(x)) < 0.6, torch.rand(len(q), len(x)) < 0.2
    return [
        lambda impl: hamming.hamming_topk(q, x, k, bits, mask=shared, impl=impl),
        lambda impl: hamming.hamming_topk(q, x, k, bits, mask=each, max_distance=radius, impl=impl),
        lambda impl: hamming.hamming_topk(q, x, k, bits, max_distance=radius // 2, impl=impl),
        lambda impl: hamming.hamming_range(q, x, radius, bits, mask=shared, impl=impl),
        lambda impl: hamming.hamming_range(q, x, radius, bits, mask=each, impl=impl),
        lambda impl: hamming.hamming_distance(q, x, bits, impl=impl),
        lambda impl: hamming.hamming_distance(q, x, bits, dtype=torch.uint16, impl=impl),
        lambda impl: hamming.hamming_distance(q, x, bits, dtype=torch.int32, impl=impl),
        lambda impl: hamming.hamming_topk(q, x, k, bits, impl=impl),
        lambda impl: hamming.hamming_range(q, x, radius, bits, impl=impl),
        lambda impl: hamming.hamming_histogram(q, x, bits=bits, impl=impl),
        lambda impl: hamming.hamming_histogram(q, x, *labels, bits=bits, impl=impl),
        lambda impl: hamming.hamming_histogram(q, x, *sets, bits=bits, impl=impl),
        lambda impl: hamming.hamming_stable_ranking(q, x, *labels, k=k, cutoffs=[1, 7, 10**6], bits=bits, impl=impl),
        lambda impl: hamming.hamming_ranked_histogram(q, x, *labels, k=k, cutoffs=[5], bits=bits, impl=impl),
        lambda impl: hamming.hamming_stable_ranking(q, x, *sets, bits=bits, impl=impl),
    ]


@pytest.mark.parametrize("bits", WIDTHS)
def test_equals_reference_at_every_width(bits):
    for q, x in [(_codes(3, bits), _codes(130, bits)), (_codes(2, bits, 2), _codes(70, bits, 3))]:
        for call in _calls(q, x, bits, k=20, radius=bits // 2):
            expected = call("reference")
            for impl in IMPLS:
                _assert_same(call(impl), expected)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(1, 80),
    rows=st.tuples(st.integers(0, 6), st.integers(0, 90)),
    distinct=st.integers(1, 20),
    data=st.data(),
)
def test_equals_reference_on_any_problem(bits, rows, distinct, data):
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    q, x = (_codes(count, bits, distinct) for count in rows)
    k, radius = data.draw(st.integers(1, 100)), data.draw(st.integers(0, bits + 3))
    for call in _calls(q, x, bits, k, radius):
        expected = call("reference")
        for impl in IMPLS:
            _assert_same(call(impl), expected)


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_in_nothing_out(impl):
    for rows in [(0, 5), (4, 0), (0, 0)]:
        q, x = _codes(rows[0], 12), _codes(rows[1], 12)
        for call in _calls(q, x, 12, k=3, radius=2):
            _assert_same(call(impl), call("reference"))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("queries", [1, 50])
def test_thread_count_changes_nothing(queries, threads):
    """Enough work for threads to start, split over the items for one query and over the queries for fifty."""
    q, x = _codes(queries, 64), _codes(60_000 if queries == 1 else 20_000, 64, 5_000)
    calls = _calls(q, x, 64, k=2_000, radius=26)
    af.set_num_threads(1)
    expected = [call("cpu") for call in calls[:-1]]
    af.set_num_threads(threads)
    try:
        for call, result in zip(calls, expected, strict=False):
            for a, b in zip(_tuple(call("cpu")), _tuple(result), strict=True):
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
    q, x = _codes(11, 48), _codes(300, 48, 20)
    for call in _calls(q, x, 48, k=45, radius=20):
        _assert_same(call("torch"), call("reference"))


@pytest.mark.parametrize("bits", [48, 128])
@pytest.mark.parametrize("classes", [3, 40, 5000])
def test_many_queries_with_labels(classes, bits):
    """Bit planes, with labels that many, few and hardly any pairs share; items on both sides of 4096."""
    q, x = _codes(90, bits, 70), _codes(4200, bits, 300)
    labels = torch.randint(classes, (90,)), torch.randint(classes, (4200,))
    hot = [torch.nn.functional.one_hot(part % 60, 60) + torch.nn.functional.one_hot(part % 7, 60) for part in labels]
    for pair in (labels, hot):
        expected = hamming.hamming_ranked_histogram(q, x, *pair, k=4000, cutoffs=[1, 900], bits=bits, impl="torch")
        _assert_same(
            hamming.hamming_ranked_histogram(q, x, *pair, k=4000, cutoffs=[1, 900], bits=bits, impl="cpu"), expected
        )
        assert torch.equal(hamming.hamming_histogram(q, x, *pair, bits=bits, impl="cpu"), expected[2])


@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
def test_what_may_be_found(impl):
    """By an independent count: what is missing is said to be missing, and a mask of any layout means the same."""
    q, x = _codes(3, 20), _codes(50, 20)
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


def test_masks_for_no_queries():
    x = _codes(5, 48)
    for mask in (torch.ones(0, 5), torch.ones(5, 0).t(), torch.ones(0, 5).as_strided((0, 5), (1, 0)), torch.ones(5)):
        assert hamming.hamming_topk(x[:0], x, 3, mask=mask > 0)[1].shape == (0, 3)
        assert torch.ops.agmh_fast.hamming_range(x[:0], x, 48, 3, mask > 0, 1)[0].tolist() == [0]


def test_masks_as_arrays():
    q, x = (_codes(rows, 48).numpy() for rows in (2, 30))
    mask = np.arange(30) % 3 == 0
    found = hamming.hamming_topk(q, x, 10, mask=mask[::-1])[1]
    assert isinstance(found, np.ndarray)
    assert np.array_equal(np.sort(found), [np.flatnonzero(mask[::-1])] * 2)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bits", [1, 12, 20, 45, 100])
def test_stored_rows(bits, impl):
    """What an index hands to the ops: rows with zero bytes up to a whole word."""
    q, x = _codes(3, bits), _codes(70, bits)
    words = -(-bits // 64) * 8
    padded = torch.nn.functional.pad(x, (0, words - x.shape[1]))
    for width in {x.shape[1], 4 if bits <= 32 else words, words}:
        for other in (q, padded[:3, :width]):
            _assert_same(
                hamming.topk_op(other, padded[:, :width].contiguous(), 9, bits, bits, None, impl=impl),
                hamming.topk_op(other[:, : x.shape[1]], x, 9, bits, bits, None, impl="reference"),
            )


@pytest.mark.parametrize("op", ["topk", "range"])
def test_what_the_compiled_ops_refuse(op):
    """Called past the functions, with what would read beyond memory."""
    q, x, mask = _codes(2, 48), _codes(5, 48), torch.ones(2, 5, dtype=torch.bool)
    call = getattr(torch.ops.agmh_fast, f"hamming_{op}")
    limits = (48, 3, 48) if op == "topk" else (48, 3)
    apart = torch.ones(2, 10).bool()[:, ::2]
    for bad in [mask[:, :4], mask[:1], mask.t(), mask.byte(), mask[0, :4], mask[None], apart, apart[0]]:
        with pytest.raises(RuntimeError, match="mask must be bool"):
            call(q, x, *limits, bad, 1)
    for width in (5, 9):
        with pytest.raises(RuntimeError, match="x must have ceil"):
            call(q, torch.zeros(5, width, dtype=torch.uint8), *limits, None, 1)
    for least in range(1, len(limits)):
        with pytest.raises(RuntimeError, match="must be at least"):
            call(q, x, *limits[:least], -1, *limits[least + 1 :], None, 1)


def test_too_large_a_result_is_named():
    with pytest.raises(
        RuntimeError, match=r"hamming_topk: out of memory, 42949672940000 bytes were asked for"
    ) as error:
        hamming.hamming_topk(_codes(5000, 8), _codes(4, 8), 2**31 - 1, impl="cpu")
    assert "\n" not in str(error.value).strip()


def test_autocast_does_not_round_distances():
    q, x = _codes(4, 4096), _codes(9, 4096)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            hamming.hamming_distance(q, x, impl="torch"), hamming.hamming_distance(q, x, impl="reference")
        )


def test_layouts_and_kinds():
    """Rows apart, bytes apart, reversed, read-only, mapped: the same distances, NumPy for NumPy."""
    base = np.random.default_rng(0).integers(0, 256, (40, 12), dtype=np.uint8)
    frozen = base.copy()
    frozen.flags.writeable = False
    for array in [
        base[:, :6],
        base[::2, 3:9],
        base[:, ::2],
        base[::-1, :6],
        np.asfortranarray(base[:, :6]),
        frozen[:, :6],
    ]:
        result = hamming.hamming_distance(array, array)
        assert isinstance(result, np.ndarray)
        assert np.array_equal(result, np.unpackbits(array[:, None] ^ array[None], axis=2).sum(2))


def test_memory_mapped_items(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (50, 6), dtype=np.uint8)
    np.save(tmp_path / "codes.npy", codes)
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    assert np.array_equal(hamming.hamming_topk(codes[:3], mapped, 5)[1], hamming.hamming_topk(codes[:3], codes, 5)[1])


def test_distance_types():
    assert hamming.hamming_distance(_codes(1, 248), _codes(2, 248)).dtype == torch.uint8
    assert hamming.hamming_distance(_codes(1, 255), _codes(2, 255), 255).dtype == torch.uint8
    q = _codes(1, 256)
    farthest = hamming.hamming_distance(q, 255 - q)
    assert farthest.dtype == torch.uint16
    assert farthest.tolist() == [[256]]
    assert hamming.hamming_distance(q, q, dtype=torch.int32).dtype == torch.int32
    assert hamming.hamming_distance(q.numpy(), q.numpy(), dtype=torch.int32).dtype == np.int32
    for bits, itemsize in ((256, 1), (48, 3), (48, 8)):
        with pytest.raises(RuntimeError, match="itemsize must be"):
            torch.ops.agmh_fast.hamming_distance(_codes(1, bits), _codes(1, bits), bits, itemsize, 1)


def test_memory_of_large_results_is_used_again():
    q, x = _codes(50, 48), _codes(100_000, 48)
    expected = hamming.hamming_topk(q[:5], x, 100, 48)
    for call in (
        lambda: hamming.hamming_distance(q, x, 48),
        lambda: hamming.hamming_distance(q, x, 48, dtype=torch.int32),
        lambda: hamming.hamming_topk(q, x, 20_000, 48)[1],
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


@pytest.mark.parametrize("op", [op.name for op in hamming.OPS])
def test_opcheck(op):
    q, x = _codes(3, 48), _codes(20, 48)
    labels, mask = (torch.randint(3, (3,)), torch.randint(3, (20,))), torch.rand(3, 20) < 0.5
    arguments = {
        "hamming_distance": [(q, x, 48, 1, 1), (_codes(2, 300), _codes(4, 300), 300, 2, 1), (q, x, 48, 4, 1)],
        "hamming_topk": [(q, x, 48, 25, 48, None, 1), (q, x, 48, 4, 30, mask, 1), (q, x, 48, 4, 30, mask[0], 1)],
        "hamming_range": [(q, x, 48, 20, None, 1), (q, x, 48, 20, mask, 1)],
        "hamming_histogram": [(q, x, 48, None, None, 1), (q, x, 48, *labels, 1)],
        "hamming_stable_ranking": [(q, x, 48, *labels, 10, [1, 5], 1)],
    }
    assert hamming.compiled.missing() is None
    for args in arguments[op]:
        torch.library.opcheck(getattr(torch.ops.agmh_fast, op).default, args)


@pytest.mark.parametrize("bits", [45, 48])
def test_compiles_in_one_graph(bits):
    torch._dynamo.reset()
    q, x, mask = _codes(3, bits), _codes(20, bits), torch.rand(3, 20) < 0.5

    def search(q, x):
        return (
            *hamming.hamming_topk(q, x, 7, bits, mask=mask, max_distance=20),
            *hamming.hamming_range(q, x, 20, bits, mask=mask[0]),
            *hamming.hamming_topk(q, x, 5, bits),
            hamming.hamming_distance(q, x, bits),
            *hamming.hamming_range(q, x, 20, bits),
        )

    for a, b in zip(torch.compile(search, fullgraph=True, backend="aot_eager")(q, x), search(q, x), strict=True):
        assert torch.equal(a, b)


def test_instruction_set_can_be_forced():
    code = (
        "import torch, agmh_fast as af; from agmh_fast import _engine; torch.manual_seed(0);"
        "x = af.pack_codes(torch.randn(500, 100)); from agmh_fast.ops.hamming import hamming_topk;"
        "first, second = (hamming_topk(x[:9], x, 50, 100, impl=impl) for impl in ('cpu', 'torch'));"
        "assert all(torch.equal(a, b) for a, b in zip(first, second)); print(_engine.cpu_info()['isa'])"
    )
    environment = {**os.environ, "AGMH_FAST_ISA": "generic"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "generic", run.stderr


def test_named_implementations_are_used_or_raise():
    x = _codes(4, 48)
    assert hamming.topk_op.explain(x, x, 2, 48).chosen == "cpu"
    with pytest.raises(af.InputError, match="cannot serve hamming_distance"):
        hamming.hamming_distance(x, x, impl="cuda")
    with pytest.raises(af.InputError, match="cannot serve hamming_topk"):
        hamming.hamming_topk(x, x, 2, impl="cuda")
    with pytest.raises(af.InputError, match="not known"):
        hamming.hamming_topk(x, x, 2, impl="numpy")


@pytest.mark.gpu
@pytest.mark.parametrize("bits", WIDTHS)
def test_cuda_distances(bits):
    q, x = _codes(21, bits).cuda(), _codes(300, bits).cuda()
    assert torch.equal(
        hamming.hamming_distance(q, x, bits, impl="cuda").cpu(), hamming.hamming_distance(q.cpu(), x.cpu(), bits)
    )
    whole = hamming.hamming_distance(q, x, bits, dtype=torch.int32, impl="cuda")
    assert torch.equal(whole.cpu(), hamming.hamming_distance(q.cpu(), x.cpu(), bits, dtype=torch.int32))


def _bad(**changes):
    good = {"q": torch.zeros(2, 6, dtype=torch.uint8), "x": torch.zeros(5, 6, dtype=torch.uint8)}
    return {**good, **changes}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hamming.hamming_distance(**_bad(q=torch.zeros(2, 6, dtype=torch.int64))), "view its words as bytes"),
        (lambda: hamming.hamming_distance(**_bad(q=torch.zeros(2, 6))), "pack_codes"),
        (lambda: hamming.hamming_distance(**_bad(x=torch.zeros(6, dtype=torch.uint8))), "x must be"),
        (lambda: hamming.hamming_distance(**_bad(x=torch.zeros(3, 0, dtype=torch.uint8))), "x must have 1 to 512"),
        (lambda: hamming.hamming_distance(**_bad(x=torch.zeros(3, 513, dtype=torch.uint8))), "x must have 1 to 512"),
        (lambda: hamming.hamming_distance(**_bad(x=torch.zeros(5, 5, dtype=torch.uint8))), "q must have 5 bytes"),
        (lambda: hamming.hamming_distance(**_bad(x=[[0] * 6])), "x must be"),
        (lambda: hamming.hamming_distance(**_bad(q=np.zeros((2, 6), np.uint8))), "give both as one kind"),
        (lambda: hamming.hamming_distance(**_bad(q=torch.ones(2, 6, device="meta").byte())), "q is on meta, x on cpu"),
        (lambda: hamming.hamming_distance(**_bad(bits=40)), "must have 5 bytes"),
        (lambda: hamming.hamming_distance(**_bad(bits=0)), "bits must be"),
        (lambda: hamming.hamming_distance(**_bad(dtype=torch.int64)), "dtype must be one of torch.uint8"),
        (lambda: hamming.hamming_distance(**_bad(dtype=np.uint8)), "dtype must be one of torch.uint8"),
        (lambda: hamming.hamming_distance(**_bad(bits=48.0)), "bits must be"),
        (
            lambda: hamming.hamming_distance(**_bad(x=torch.full((5, 6), 255, dtype=torch.uint8), bits=47)),
            "x: row 0 has bits set",
        ),
        (lambda: hamming.hamming_topk(**_bad(k=0)), "k must be"),
        (lambda: hamming.hamming_topk(**_bad(k=2**31)), "k must be"),
        (lambda: hamming.hamming_topk(**_bad(k=True)), "k must be"),
        (lambda: hamming.hamming_topk(**_bad(k=1, max_distance=-1)), "max_distance must be"),
        (lambda: hamming.hamming_topk(**_bad(k=1, mask=[True] * 5)), "mask must be a NumPy array or a torch tensor"),
        (lambda: hamming.hamming_topk(**_bad(k=1, mask=torch.ones(5))), "mask must be bool"),
        (lambda: hamming.hamming_topk(**_bad(k=1, mask=torch.ones(4) > 0)), r"mask must be \(5,\) or \(2, 5\)"),
        (lambda: hamming.hamming_range(**_bad(radius=1, mask=torch.ones(1, 5) > 0)), r"\(1, 5\)"),
        (lambda: hamming.hamming_range(**_bad(radius=1, mask=torch.ones(5, device="meta") > 0)), "mask is on meta"),
        (lambda: hamming.hamming_range(**_bad(radius=-1)), "radius must be"),
        (lambda: hamming.hamming_histogram(**_bad(labels_q=torch.zeros(2, dtype=torch.int64))), "both or neither"),
        (
            lambda: hamming.hamming_histogram(**_bad(labels_q=torch.zeros(2), labels_x=torch.zeros(5))),
            "labels_q must be integers",
        ),
        (
            lambda: hamming.hamming_histogram(**_bad(labels_q=torch.zeros(3).long(), labels_x=torch.zeros(5).long())),
            "labels_q must have one row for each of the 2 codes",
        ),
        (
            lambda: hamming.hamming_histogram(**_bad(labels_q=torch.zeros(2, 3), labels_x=torch.zeros(5, 4))),
            "of equal width",
        ),
        (
            lambda: hamming.hamming_histogram(**_bad(labels_q=-torch.ones(2, 3), labels_x=torch.zeros(5, 3))),
            "labels_q must hold only 0 and 1",
        ),
        (
            lambda: hamming.hamming_stable_ranking(
                **_bad(labels_q=torch.zeros(2).long(), labels_x=torch.zeros(5).long(), cutoffs=[3, 1])
            ),
            "cutoffs must ascend",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(af.InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
