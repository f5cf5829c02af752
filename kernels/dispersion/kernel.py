"""Attention Dispersion Loss of the peaks, forward and backward, one launch each. README.md has the formulas.

A program holds all D maps of an image. What an image adds to the loss is a sum of products P_d (Σ P − P_d), none of
them negative: nothing cancels, as the difference of two sums of squares would.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.dispersion import config
from torch import Tensor

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_peaks(peaks, row, p, d, n, D: tl.constexpr):
    """Peaks (BLOCK_D, BLOCK_N) of one image: −inf past the last position, 0 in rows past the last map."""
    live = p < n
    at = row[:, None] * n + p[None, :]
    return tl.load(peaks + at, mask=(d < D)[:, None] & live[None, :], other=tl.where(live, 0.0, float("-inf"))[None, :])


@triton.jit
def _maps(m, d, top, scale, D: tl.constexpr):
    """Softmax over positions from a row's largest peak and the inverse of its sum; rows past the last map are 0."""
    return tl.where((d < D)[:, None], tl.exp2((m - top[:, None]) * _LOG2_E) * scale[:, None], 0.0)


@triton.jit(do_not_specialize=["n"])
def overlap(
    peaks,
    rows,
    parts,
    ticket,
    loss,
    n,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Program (image): per map its largest peak, 1 / Σ exp and Σ_p P_d (Σ P − P_d) as rows (3, D, B); the last program
    to finish adds the images' parts (B,), in their order, to the loss.
    """
    b, images = tl.program_id(0), tl.num_programs(0)
    d, p = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    row = d.to(tl.int64) * images + b
    top, total = tl.full((BLOCK_D,), float("-inf"), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    for t in range(0, n, BLOCK_N):
        m = _load_peaks(peaks, row, t + p, d, n, D)
        above = tl.maximum(top, tl.max(m, 1))
        total = total * tl.exp2((top - above) * _LOG2_E) + tl.sum(tl.exp2((m - above[:, None]) * _LOG2_E), 1)
        top = above
    scale, shared = 1 / total, tl.zeros((BLOCK_D,), tl.float32)
    for t in range(0, n, BLOCK_N):
        P = _maps(_load_peaks(peaks, row, t + p, d, n, D), d, top, scale, D)
        shared += tl.sum(P * (tl.sum(P, 0)[None, :] - P), 1)
    stride = tl.cast(images, tl.int64) * D
    tl.store(rows + row, top, mask=d < D)
    tl.store(rows + stride + row, scale, mask=d < D)
    tl.store(rows + 2 * stride + row, shared, mask=d < D)
    tl.store(parts + b, tl.sum(shared, 0))
    # The ticket publishes what the whole program stored, not only the thread that draws it.
    tl.debug_barrier()
    if tl.atomic_add(ticket, 1, sem="acq_rel") == images - 1:
        i, acc = tl.arange(0, BLOCK_B), tl.zeros((BLOCK_B,), tl.float32)
        for start in range(0, images, BLOCK_B):
            acc += tl.load(parts + start + i, mask=start + i < images, other=0.0, cache_modifier=".cg")
        tl.store(loss, tl.sum(acc, 0) / (max(D * (D - 1), 1) * images))


@triton.jit(do_not_specialize=["n"])
def overlap_gradient(peaks, rows, grad, dpeaks, n, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Program (image, position tile): dM_d = grad / (D (D − 1) B) · 2 P_d (Σ P − P_d − ⟨P_d, Σ P − P_d⟩)."""
    b, images = tl.program_id(0), tl.num_programs(0)
    d, p = tl.arange(0, BLOCK_D), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, stride = d.to(tl.int64) * images + b, tl.cast(images, tl.int64) * D
    top, scale, shared = (
        tl.load(rows + row, mask=d < D, other=0.0),
        tl.load(rows + stride + row, mask=d < D, other=0.0),
        tl.load(rows + 2 * stride + row, mask=d < D, other=0.0),
    )
    P = _maps(_load_peaks(peaks, row, p, d, n, D), d, top, scale, D)
    g = tl.load(grad) * 2 / (max(D * (D - 1), 1) * images)
    out = g * P * (tl.sum(P, 0)[None, :] - P - shared[:, None])
    tl.store(dpeaks + row[:, None] * n + p[None, :], out, mask=(d < D)[:, None] & (p < n)[None, :])


def forward(peaks: Tensor, ticket: Tensor) -> tuple[Tensor, Tensor]:
    """Loss () of peaks (B, D, n) float32, and the rows (3, D, B) that backward needs. `ticket` is an int32 zero, which
    is used up. Without images the loss is NaN, as that of a mean is.
    """
    batch, descriptors, n = peaks.shape
    rows, parts = peaks.new_empty(3, descriptors, batch), peaks.new_empty(batch)
    if batch == 0:
        return peaks.new_full((), torch.nan), rows
    loss, tuning = peaks.new_empty(()), config.choose(descriptors, n)
    overlap[(batch,)](
        peaks.transpose(0, 1).contiguous(), rows, parts, ticket, loss, n, D=descriptors, BLOCK_D=tuning.descriptors,
        BLOCK_N=tuning.positions, BLOCK_B=256, num_warps=tuning.warps,
    )  # fmt: skip
    return loss, rows


def backward(grad: Tensor, peaks: Tensor, rows: Tensor) -> Tensor:
    """Gradient (B, D, n) of the peaks from that of the loss, () float32, which stays on the device."""
    batch, descriptors, n = peaks.shape
    dpeaks, tuning = peaks.new_empty(descriptors, batch, n), config.choose(descriptors, n)
    positions = tuning.gradient_positions
    overlap_gradient[(batch, triton.cdiv(n, positions))](
        peaks.transpose(0, 1).contiguous(), rows, grad, dpeaks, n, D=descriptors, BLOCK_D=tuning.descriptors,
        BLOCK_N=positions, num_warps=4,
    )  # fmt: skip
    return dpeaks.transpose(0, 1)
