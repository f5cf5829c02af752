"""The discrete step: b_l ← sign(q_l − b·Ω_l) for every database item and l = 0..L−1 in order. README.md has the
formulas.

Rows are database items. A program takes a tile of rows through all bits, a block of bits at a time: products with what
the block's own bits do not change, then the bits of the block one after another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.discrete import config
from torch import Tensor


@triton.jit(do_not_specialize=["count", "gamma"])
def sweep(
    codes,
    targets,
    groups,
    sampled,
    embeddings,
    gram,
    updated,
    count,
    gamma: tl.float64,
    L: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Program (row tile): all bits of its rows. Sums are float64."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    live, bit = row < count, tl.arange(0, BLOCK_L)
    group = tl.load(groups + row, mask=live, other=0)
    own = tl.load(sampled + row, mask=live, other=-1)
    for first in range(0, L, BLOCK_L):
        j = first + bit
        inside = j < L
        total = tl.zeros((BLOCK_R, BLOCK_L), tl.float64)
        for start in range(0, L, BLOCK_L):
            k = start + bit
            # Bits before the block are decided, those past it are as they were, and so are those of the block that
            # follow a bit; those that precede it are added below.
            source = updated if start < first else codes
            b = tl.load(source + row[:, None] * L + k[None, :], mask=live[:, None] & (k < L)[None, :], other=0.0)
            there = (k < L)[:, None] & inside[None, :] & ((start != first) | (bit[:, None] > bit[None, :]))
            omega = tl.load(gram + k[:, None] * L + j[None, :], mask=there, other=0.0)
            total = tl.dot(b.to(tl.float64), omega, total, out_dtype=tl.float64)
        at, mask = row[:, None] * L + j[None, :], live[:, None] & inside[None, :]
        target = tl.load(targets + group[:, None] * L + j[None, :], mask=mask, other=0.0)
        u = tl.load(embeddings + own[:, None] * L + j[None, :], mask=mask & (own >= 0)[:, None], other=0.0)
        target += gamma * u
        for i in range(BLOCK_L):
            # A decided bit moves the sums of those that follow, and no others: each keeps the sum it was decided by.
            holds = tl.sum(((target >= total) & (bit == i)[None, :]).to(tl.int32), 1)
            omega = tl.load(gram + (first + i) * L + j, mask=inside & (bit > i), other=0.0)
            total += tl.where(holds > 0, 1.0, -1.0).to(tl.float64)[:, None] * omega[None, :]
        tl.store(updated + at, tl.where(target >= total, 1.0, -1.0), mask=mask)
        # The next block reads these codes in another layout.
        tl.debug_barrier()


def discrete_step(
    codes: Tensor, targets: Tensor, groups: Tensor, sampled: Tensor, embeddings: Tensor, gram: Tensor, gamma: float
) -> Tensor:
    """Codes (N, L) float32 after one sweep, each −1 or +1; sign(0) = +1.

    codes (N, L) float32 before it, L <= 512; targets (G, L) float64; groups (N,) and sampled (N,) int64, the item's
    label group and its row of `embeddings`, −1 for none; embeddings (m, L) float64; gram (L, L) float64, Ω = UᵀU with
    a zero diagonal. All contiguous.
    """
    count, bits = codes.shape
    updated, tile = torch.empty_like(codes), config.choose(codes.device)
    if count == 0:
        return updated
    sweep[(triton.cdiv(count, tile.rows),)](
        codes, targets, groups, sampled, embeddings, gram, updated, count, gamma,
        L=bits, BLOCK_R=tile.rows, BLOCK_L=tile.bits, num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    return updated
