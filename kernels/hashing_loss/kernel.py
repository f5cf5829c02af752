"""The asymmetric hashing loss of a batch from group sums, with its gradients, in one launch or two. README.md has the
formulas.

Everything is float64 on chip. Sums over images and bits are formed by a fixed number of programs, each in order, and
added in order: two runs are equal bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.hashing_loss import config
from torch import Tensor


@triton.jit
def _scale(batch, count, L: tl.constexpr):
    """12 / (L·B·N), in float64."""
    return 12.0 / (tl.cast(batch, tl.float64) * tl.cast(count, tl.float64) * L)


@triton.jit
def _store_losses(mixed, distance, scale, gamma, total, pairwise, quantization):
    """The three losses from the sums over images, each rounded before the total is formed."""
    pairs = (mixed * scale).to(total.dtype.element_ty)
    own = (distance * scale * gamma).to(total.dtype.element_ty)
    tl.store(pairwise, pairs)
    tl.store(quantization, own)
    tl.store(total, pairs + own)


@triton.jit(do_not_specialize=["batch", "count", "width", "gamma"])
def losses_and_gradients(
    embedding,
    items,
    groups,
    targets,
    square_sums,
    gram,
    codes,
    parts,
    total,
    pairwise,
    quantization,
    gradients,
    down,
    across,
    batch,
    count,
    width,
    gamma: tl.float64,
    L: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Program (image tile, span of bits): the gradients (3, B, L) of its tiles, and its part of the sums: the losses
    themselves where parts is None, for then the program is alone.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    live, bit, inner = row < batch, tl.arange(0, BLOCK_L), tl.arange(0, 16)
    item = tl.load(items + row, mask=live, other=0).to(tl.int64)
    # What does not exist is not read: its loss and gradients are NaN.
    known = live & (item >= 0) & (item < count)
    group = tl.load(groups + item, mask=known, other=0)
    first = tl.program_id(1) * SPAN
    scale = _scale(batch, count, L)
    mixed, distance = tl.zeros((BLOCK_B,), tl.float64), tl.zeros((BLOCK_B,), tl.float64)
    if first == 0:
        mixed += tl.load(square_sums + group, mask=known, other=float("nan")) * (L * L)
    for start in range(first, min(first + SPAN, L), BLOCK_L):
        j = start + bit
        mask = live[:, None] & (j < L)[None, :]
        product = tl.zeros((BLOCK_B, BLOCK_L), tl.float64)
        # width is L as a run-time value: unrolled, the loop would spill.
        for i in range(0, width, 16):
            k = i + inner
            at = row[:, None] * down + k.to(tl.int64)[None, :] * across
            u = tl.load(embedding + at, mask=live[:, None] & (k < L)[None, :], other=0.0).to(tl.float64)
            inside = (k < L)[:, None] & (j < L)[None, :]
            factor = tl.load(gram + k[:, None] * L + j[None, :], mask=inside, other=0.0)
            product = tl.dot(u, factor, product, out_dtype=tl.float64)
        at = row[:, None] * down + j.to(tl.int64)[None, :] * across
        u = tl.load(embedding + at, mask=mask, other=0.0).to(tl.float64)
        there = known[:, None] & (j < L)[None, :]
        aim = tl.load(targets + group[:, None] * L + j[None, :], mask=there, other=float("nan")) * (2 * L)
        apart = u - tl.load(codes + item[:, None] * L + j[None, :], mask=there, other=float("nan")).to(tl.float64)
        mixed += tl.sum(tl.where(mask, (product - aim) * u, 0.0), 1)
        distance += tl.sum(tl.where(mask, apart * apart, 0.0), 1)
        push, pull = (2 * product - aim) * scale, apart * (2 * gamma * scale)
        out, plane = gradients + row[:, None] * L + j[None, :], tl.cast(batch, tl.int64) * L
        tl.store(out, (push + pull).to(gradients.dtype.element_ty), mask=mask)
        tl.store(out + plane, push.to(gradients.dtype.element_ty), mask=mask)
        tl.store(out + 2 * plane, pull.to(gradients.dtype.element_ty), mask=mask)
    mixed, distance = tl.sum(tl.where(live, mixed, 0.0), 0), tl.sum(distance, 0)
    if parts is None:
        _store_losses(mixed, distance, scale, gamma, total, pairwise, quantization)
    else:
        at = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * 2
        tl.store(parts + at, mixed)
        tl.store(parts + at + 1, distance)


@triton.jit(do_not_specialize=["programs", "batch", "count", "width", "gamma"])
def add_parts(
    parts,
    total,
    pairwise,
    quantization,
    programs,
    batch,
    count,
    gamma: tl.float64,
    L: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the losses from the parts (programs, 2), added in their order."""
    i = tl.arange(0, BLOCK)
    mixed, distance = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, programs, BLOCK):
        p = start + i
        mixed += tl.load(parts + 2 * p, mask=p < programs, other=0.0)
        distance += tl.load(parts + 2 * p + 1, mask=p < programs, other=0.0)
    scale = _scale(batch, count, L)
    _store_losses(tl.sum(mixed, 0), tl.sum(distance, 0), scale, gamma, total, pairwise, quantization)


def hashing_loss(
    embedding: Tensor,
    items: Tensor,
    groups: Tensor,
    targets: Tensor,
    square_sums: Tensor,
    gram: Tensor,
    codes: Tensor,
    gamma: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, pairwise and quantization loss, scalars, and their gradients (3, B, L); float32, or float64 for a float64
    embedding.

    embedding (B, L) floating, any strides, B >= 1; items (B,) integer; groups (N,) int64; targets (G, L), square_sums
    (G,) and gram (L, L) float64; codes (N, L) float32; all but embedding and items contiguous. An item outside 0..N−1
    makes the losses and the gradients of its image NaN.
    """
    (batch, bits), count = embedding.shape, codes.shape[0]
    torch._check(batch > 0, lambda: "embedding needs a row or more")
    # Of 16-bit operands that are widened Triton's float64 products would take two at a time, and fail to compile.
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    losses = [embedding.new_empty(()) for _ in range(3)]
    gradients = embedding.new_empty((3, batch, bits))
    tile = config.choose(batch, bits)
    grid = triton.cdiv(batch, tile.rows), triton.cdiv(bits, tile.span)
    programs = grid[0] * grid[1]
    parts = gram.new_empty((programs, 2)) if programs > 1 else None
    # Few programs: left to itself the assembler would spill so that two can share an SM.
    losses_and_gradients[grid](
        embedding, items.contiguous(), groups, targets, square_sums, gram, codes, parts, *losses, gradients,
        *embedding.stride(), batch, count, bits, gamma, L=bits,
        SPAN=tile.span, BLOCK_B=tile.rows, BLOCK_L=tile.bits, num_warps=tile.warps, num_stages=2, maxnreg=255,
    )  # fmt: skip
    if parts is not None:
        add_parts[(1,)](parts, *losses, programs, batch, count, gamma, L=bits, BLOCK=256)
    return *losses, gradients
