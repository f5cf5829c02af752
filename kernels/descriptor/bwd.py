"""Training backward: the gradients of features and their mean -> of y, γ and β, in two kernels and one addition.

y and the features' gradient are read twice, the gradient of y written once. What ReLU let through is computed again
from y, so that the features need not be kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.common.layout import aligned, alignment, dense, strides
from agmh_fast.kernels.common.memory import like
from agmh_fast.kernels.common.tuning import fastest
from agmh_fast.kernels.descriptor import config
from agmh_fast.kernels.descriptor.fwd import channel
from torch import Tensor


@triton.jit
def _through_relu(y, dfeatures, dpooled, at, live, centre, inverse, scale, shift):
    """g = (dF + dv) · [F > 0] and x̂ of a tile; dv is the gradient of the mean, divided by n already."""
    x = tl.load(y + at, mask=live, other=0.0).to(tl.float32) - centre[None, :]
    g = tl.zeros(x.shape, tl.float32)
    if dfeatures is not None:
        g += tl.load(dfeatures + at, mask=live, other=0.0).to(tl.float32)
    if dpooled is not None:
        g += dpooled[None, :]
    # As in the forward: NaN is not below zero, and its gradient passes.
    stopped = x * scale[None, :] + shift[None, :] <= 0
    return tl.where(stopped | (live == 0), 0.0, g), x * inverse[None, :]


@triton.jit(do_not_specialize=["images", "n"])
def gradient_sums(
    y,
    dfeatures,
    dpooled,
    mean,
    var,
    gamma,
    beta,
    parts,
    eps,
    sb,
    images,
    n,
    SP: tl.constexpr,
    SC: tl.constexpr,
    ALIGN: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (channel tile, split): Σ g x̂ and Σ g (split, 2, C) over its position tiles."""
    n = aligned(n, ALIGN)
    split = tl.program_id(1)
    c, t = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    centre, inverse, scale, shift = channel(mean, var, gamma, beta, eps, c, C)
    dgamma = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    dbeta = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    tiles = tl.cdiv(n, BLOCK_N)
    each = tl.cdiv(images * tiles, tl.num_programs(1))
    for i in range(split * each, min((split + 1) * each, images * tiles)):
        b, p = tl.cast(i // tiles, tl.int64), i % tiles * BLOCK_N + t
        live = (p < n)[:, None] & (c < C)[None, :]
        at = b * sb + p[:, None] * SP + c[None, :] * SC
        dv = None
        if dpooled is not None:
            dv = tl.load(dpooled + b * C + c, mask=c < C, other=0.0) / n
        g, x = _through_relu(y, dfeatures, dv, at, live, centre, inverse, scale, shift)
        dgamma += g * x
        dbeta += g
    out = parts + split * 2 * C + c
    tl.store(out, tl.sum(dgamma, 0), mask=c < C)
    tl.store(out + C, tl.sum(dbeta, 0), mask=c < C)


@triton.jit(do_not_specialize=["n"])
def input_gradient(
    y,
    dfeatures,
    dpooled,
    mean,
    var,
    gamma,
    beta,
    sums,
    dy,
    eps,
    part,
    sb,
    n,
    SP: tl.constexpr,
    SC: tl.constexpr,
    ALIGN: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (image · channel tiles + channel tile): dy = γ/σ (g − part · (dβ + x̂ dγ)), with part = 1/T; without
    `sums` the statistics were given, and dy = γ/σ g.
    """
    n = aligned(n, ALIGN)
    tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    b = (tl.program_id(0) // tiles).to(tl.int64)
    c, t = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    centre, inverse, scale, shift = channel(mean, var, gamma, beta, eps, c, C)
    dv = None
    if dpooled is not None:
        dv = tl.load(dpooled + b * C + c, mask=c < C, other=0.0) / n
    if sums is not None:
        dgamma = tl.load(sums + c, mask=c < C, other=0.0) * part
        dbeta = tl.load(sums + C + c, mask=c < C, other=0.0) * part
    for i in range(0, n, BLOCK_N):
        live = (i + t < n)[:, None] & (c < C)[None, :]
        at = b * sb + (i + t)[:, None] * SP + c[None, :] * SC
        g, x = _through_relu(y, dfeatures, dv, at, live, centre, inverse, scale, shift)
        if sums is not None:
            g -= dbeta[None, :] + x * dgamma[None, :]
        tl.store(dy + at, (g * scale[None, :]).to(dy.dtype.element_ty), mask=live)


def backward(
    dfeatures: Tensor | None,
    dpooled: Tensor | None,
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor,
    beta: Tensor,
    training: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradient of y, and those of γ and β (2, D·C) float32, from those of the features and of their mean (B, D·C);
    either may be None.
    """
    batch, channels, height, width = y.shape
    n, y = height * width, dense(y)
    last = y.is_contiguous(memory_format=torch.channels_last)
    if dfeatures is not None:
        dfeatures = dfeatures.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if dpooled is not None:
        dpooled = dpooled.contiguous()
    sb, _, sp, sc = strides(y, 1)
    align = alignment(n, sc)
    default = config.choose_norm(y, 0 if sc == 1 else align)
    tile = fastest(
        "descriptor.backward", (dfeatures is None, dpooled is None, training), y, default, config.sum_alternatives,
        lambda: backward(dfeatures, dpooled, y, mean, var, gamma, beta, training, eps),
    )  # fmt: skip
    shape = {"SP": sp, "SC": sc, "ALIGN": align, "C": channels}
    tiles = {"BLOCK_N": tile.positions, "BLOCK_C": tile.channels, "num_warps": tile.warps}
    parts = y.new_empty(tile.splits, 2, channels, dtype=torch.float32)
    gradient_sums[(triton.cdiv(channels, tile.channels), tile.splits)](
        y, dfeatures, dpooled, mean, var, gamma, beta, parts, eps, sb, batch, n, **shape, **tiles
    )
    sums, dy = parts.sum(dim=0), like(y)
    input_gradient[(batch * triton.cdiv(channels, tile.channels),)](
        y, dfeatures, dpooled, mean, var, gamma, beta, sums if training else None, dy, eps, 1 / max(batch * n, 1),
        sb, n, **shape, **tiles,
    )  # fmt: skip
    return dy, sums
