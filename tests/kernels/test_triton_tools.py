"""The tools that stand in for a GPU, on kernels with planted mistakes and known results."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError
from triton_compile import compile_launch, recording
from triton_interpreter import interpreting


@triton.jit
def _copy(source, target, count, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        tl.store(target + i, tl.load(source + i, mask=i < count, other=0.0), mask=i < count)
    else:
        tl.store(target + i, tl.load(source + i))


@triton.jit
def _fill_backwards(target, BLOCK: tl.constexpr):
    tl.store(target - 1 + tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32))


@triton.jit
def _sum_to_one_place(source, target, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target, tl.load(target) + tl.sum(tl.load(source + i), 0))


@triton.jit
def _shift_in_place(values, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(values + i, tl.load(values + i + 1))


@triton.jit
def _product(left, right, out, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    x = tl.dot(tl.load(left + at), tl.load(right + at), input_precision=PRECISION)
    tl.store(out + at, (x + tl.max(x, 1)[:, None]).to(out.dtype.element_ty))


@triton.jit
def _double_product(left, right, out, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    tl.store(out + at, tl.dot(tl.load(left + at), tl.load(right + at), out_dtype=tl.float64))


@triton.jit(do_not_specialize=["scale"])
def _scaled(source, target, scale: tl.float64):
    tl.store(target, tl.load(source) * scale)


@triton.jit
def _add_to_one_place(source, target, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(target, tl.sum(tl.load(source + i), 0), sem="relaxed")


@triton.jit
def _add_and_touch(target, other, STORE: tl.constexpr):
    tl.atomic_add(target, 1.0, sem="acq_rel")
    if STORE:
        tl.store(target, 0.0)
    else:
        tl.store(other + tl.program_id(0), tl.load(target))


@triton.jit
def _ordered_sum(
    source, parts, ticket, target, BLOCK: tl.constexpr, SEM: tl.constexpr, BARRIER: tl.constexpr, LAST: tl.constexpr
):
    program = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    tl.store(parts + program, tl.sum(tl.load(source + program * BLOCK + i), 0))
    if BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(ticket, 1, sem=SEM) == LAST:
        tl.store(target, tl.sum(tl.load(parts + i, mask=i < tl.num_programs(0), other=0.0), 0))


def test_a_right_kernel_passes():
    source, target = torch.randn(100), torch.empty(100)
    with interpreting():
        _copy[(4,)](source, target, 100, BLOCK=32, MASKED=True)
    assert torch.equal(source, target)


@pytest.mark.parametrize("size", [100, 127])
def test_reading_past_the_end_is_caught(size):
    with interpreting(), pytest.raises(InterpreterError, match=r"\(3, 0, 0\): load out of bounds"):
        _copy[(4,)](torch.zeros(size), torch.empty(128), size, BLOCK=32, MASKED=False)


def test_writing_outside_is_caught_even_inside_the_storage():
    storage = torch.zeros(64)
    with interpreting(), pytest.raises(InterpreterError, match="store out of bounds"):
        _fill_backwards[(1,)](storage[8:], BLOCK=32)


def test_programs_that_write_to_one_place_are_caught():
    with interpreting(), pytest.raises(InterpreterError, match="another"):
        _sum_to_one_place[(2,)](torch.ones(64), torch.zeros(1), BLOCK=32)


def test_a_program_that_overwrites_what_another_reads_is_caught():
    with interpreting(), pytest.raises(InterpreterError, match="another"):
        _shift_in_place[(2,)](torch.zeros(65), BLOCK=32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32], ids=str)
def test_programs_may_add_to_one_place(dtype):
    source, target = torch.arange(64).to(dtype), torch.zeros(1, dtype=dtype)
    with interpreting():
        _add_to_one_place[(2,)](source, target, BLOCK=32)
    assert target.item() == 64 * 63 / 2


@pytest.mark.parametrize("store", [True, False])
def test_touching_what_another_adds_to_is_caught(store):
    with interpreting(), pytest.raises(InterpreterError, match="another"):
        _add_and_touch[(2,)](torch.zeros(1), torch.zeros(2), STORE=store)


def _sum_by_the_last(semantic="acq_rel", barrier=True, last=3):
    source, parts, target = torch.arange(64.0), torch.empty(4), torch.zeros(1)
    ticket = torch.zeros(1, dtype=torch.int32)
    with interpreting():
        _ordered_sum[(4,)](source, parts, ticket, target, BLOCK=16, SEM=semantic, BARRIER=barrier, LAST=last)
    return target.item()


def test_the_last_program_may_sum_what_the_others_stored():
    assert _sum_by_the_last() == 64 * 63 / 2


@pytest.mark.parametrize(
    "mistake",
    [{"semantic": "relaxed"}, {"semantic": "acquire"}, {"semantic": "release"}, {"barrier": False}, {"last": 2}],
    ids=str,
)
def test_a_sum_over_what_is_not_published_is_caught(mistake):
    with pytest.raises(InterpreterError, match="another"):
        _sum_by_the_last(**mistake)


def test_a_product_too_small_for_a_tensor_core_is_caught():
    small = torch.zeros(8, 8)
    with interpreting(), pytest.raises(InterpreterError, match=">= 16"):
        _product[(1,)](small, small, small.clone(), N=8, PRECISION="ieee")


def test_bfloat16_rounds_to_nearest_even():
    left, right = torch.randn(2, 32, 32).to(torch.bfloat16)
    out = torch.empty(32, 32, dtype=torch.bfloat16)
    with interpreting():
        _product[(1,)](left, right, out, N=32, PRECISION="tf32")
    exact = left.double() @ right.double()
    exact = exact + exact.max(dim=1, keepdim=True).values
    # One rounding of the result: half a unit in the last of eight bits, beside which float32's own is small.
    assert ((out.double() - exact).abs() <= exact.abs() * 2.0**-8 * 1.001 + 1e-5).all()


def test_tf32_keeps_ten_bits_and_ieee_all():
    left, right = torch.full((32, 32), 1 + 2.0**-12), torch.eye(32)
    out = {mode: torch.empty(32, 32) for mode in ("tf32", "ieee")}
    with interpreting():
        for mode, result in out.items():
            _product[(1,)](left, right, result, N=32, PRECISION=mode)
    assert (out["tf32"] == 2).all()
    assert (out["ieee"] == 2 * (1 + 2.0**-12)).all()


def test_double_products_keep_all_bits():
    left, right = torch.full((16, 16), 1 + 2.0**-40, dtype=torch.float64), torch.eye(16, dtype=torch.float64)
    out = torch.empty(16, 16, dtype=torch.float64)
    with interpreting():
        _double_product[(1,)](left, right, out, N=16)
    assert (out == 1 + 2.0**-40).all()


@pytest.mark.parametrize("scale", [3, 1, 0.1])
def test_an_annotated_scalar_is_what_it_says(scale):
    source, target = torch.ones(2, dtype=torch.float64)
    with interpreting():
        _scaled[(1,)](source, target, scale)
    assert target == scale
    with recording() as launches:
        _scaled[(1,)](*(torch.empty(1, dtype=torch.float64, device="meta") for _ in range(2)), scale)
    # A double comes in two registers and is multiplied as one.
    assert compile_launch(launches[0], 90).count("DMUL") == 1
    assert compile_launch(launches[0], 90).count("F2F") == 0


def test_compiling_needs_no_gpu_and_counts_tensor_core_instructions():
    tensors = [torch.empty(128, 128, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    with recording() as launches:
        _product[(1,)](*tensors, N=128, PRECISION="tf32", num_warps=4)
    code = compile_launch(launches[0], 90)
    assert launches[0].name == "_product"
    assert code.count("HGMMA") > 0
    assert 0 < code.registers <= 255


def test_spills_are_seen():
    tensors = [torch.empty(128, 128, dtype=torch.bfloat16, device="meta") for _ in range(3)]
    with recording() as launches:
        _product[(1,)](*tensors, N=128, PRECISION="tf32", num_warps=4, maxnreg=32)
    assert compile_launch(launches[0], 80).spills > 0
