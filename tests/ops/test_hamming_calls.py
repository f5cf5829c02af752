"""How the Hamming ops may be called: kinds and layouts of arguments, compiled and by name; bad ones are named."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hamming_cases import codes

import agmh_fast as af
from agmh_fast.ops import hamming


def test_masks_for_no_queries():
    x = codes(5, 48)
    for mask in (torch.ones(0, 5), torch.ones(5, 0).t(), torch.ones(0, 5).as_strided((0, 5), (1, 0)), torch.ones(5)):
        assert hamming.hamming_topk(x[:0], x, 3, mask=mask > 0)[1].shape == (0, 3)
        assert torch.ops.agmh_fast.hamming_range(x[:0], x, 48, 3, mask > 0, 1)[0].tolist() == [0]


def test_masks_as_arrays():
    q, x = (codes(rows, 48).numpy() for rows in (2, 30))
    mask = np.arange(30) % 3 == 0
    found = hamming.hamming_topk(q, x, 10, mask=mask[::-1])[1]
    assert isinstance(found, np.ndarray)
    assert np.array_equal(np.sort(found), [np.flatnonzero(mask[::-1])] * 2)


@pytest.mark.parametrize("op", ["topk", "range"])
def test_what_the_compiled_ops_refuse(op):
    """Called past the functions, with what would read beyond memory."""
    q, x, mask = codes(2, 48), codes(5, 48), torch.ones(2, 5, dtype=torch.bool)
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
        hamming.hamming_topk(codes(5000, 8), codes(4, 8), 2**31 - 1, impl="cpu")
    assert "\n" not in str(error.value).strip()


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
    rows = np.random.default_rng(0).integers(0, 256, (50, 6), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.array_equal(hamming.hamming_topk(rows[:3], mapped, 5)[1], hamming.hamming_topk(rows[:3], rows, 5)[1])


@pytest.mark.parametrize("op", [op.name for op in hamming.OPS])
def test_opcheck(op):
    q, x = codes(3, 48), codes(20, 48)
    labels, mask = (torch.randint(3, (3,)), torch.randint(3, (20,))), torch.rand(3, 20) < 0.5
    arguments = {
        "hamming_distance": [(q, x, 48, 1, 1), (codes(2, 300), codes(4, 300), 300, 2, 1), (q, x, 48, 4, 1)],
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
    q, x, mask = codes(3, bits), codes(20, bits), torch.rand(3, 20) < 0.5

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
    x = codes(4, 48)
    assert hamming.topk_op.explain(x, x, 2, 48).chosen == "cpu"
    with pytest.raises(af.InputError, match="cannot serve hamming_distance"):
        hamming.hamming_distance(x, x, impl="cuda")
    with pytest.raises(af.InputError, match="cannot serve hamming_topk"):
        hamming.hamming_topk(x, x, 2, impl="cuda")
    with pytest.raises(af.InputError, match="not known"):
        hamming.hamming_topk(x, x, 2, impl="numpy")


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
