"""Training forward: BatchNorm, ReLU and the mean over positions of y (B, D·C, H, W), in three kernels.

y is read twice and the features written once. A tile is (positions, channels); README.md has the formulas.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.common.layout import aligned, alignment, dense, strides
from agmh_fast.kernels.common.memory import like
from agmh_fast.kernels.common.tuning import fastest
from agmh_fast.kernels.descriptor import config
from torch import Tensor


@triton.jit(do_not_specialize=["images", "n"])
def statistics(
    y,
    parts,
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
    """Program (channel tile, split): count, mean and sum of squared deviations (3, split, C) of its position tiles.

    The mean is taken less the channel's first value, exact where y lies far from zero: in tiles' means that are rounded
    far from zero the variance between tiles would drown.
    """
    n = aligned(n, ALIGN)
    split, splits = tl.program_id(1), tl.num_programs(1)
    c, t = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    tiles = tl.cdiv(n, BLOCK_N)
    each = tl.cdiv(images * tiles, splits)
    origin = tl.load(y + c * SC, mask=c < C, other=0.0).to(tl.float32)
    count, mean, squares = 0.0, tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    for i in range(split * each, min((split + 1) * each, images * tiles)):
        start = i % tiles * BLOCK_N
        live = (start + t < n)[:, None] & (c < C)[None, :]
        at = tl.cast(i // tiles, tl.int64) * sb + (start + t)[:, None] * SP + c[None, :] * SC
        x = tl.where(live, tl.load(y + at, mask=live, other=0.0).to(tl.float32) - origin[None, :], 0.0)
        size = tl.cast(tl.minimum(n - start, BLOCK_N), tl.float32)
        centre = tl.sum(x, 0) / size
        deviation = tl.where(live, x - centre[None, :], 0.0)
        # Chan's formula: nothing is squared before it is centred.
        share = size / (count + size)
        apart = centre - mean
        squares += tl.sum(deviation * deviation, 0) + apart * apart * (count * share)
        mean += apart * share
        count += size
    out = parts + split * C + c
    tl.store(out, tl.zeros((BLOCK_C,), tl.float32) + count, mask=c < C)
    tl.store(out + splits * C, mean, mask=c < C)
    tl.store(out + 2 * splits * C, squares, mask=c < C)


@triton.jit(do_not_specialize=["splits"])
def combine(
    y,
    parts,
    mean,
    var,
    running_mean,
    running_var,
    momentum,
    splits,
    SC: tl.constexpr,
    C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (channel tile): mean and biased variance of all splits, and the running statistics moved towards them."""
    c, s = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    known = c < C
    at, mask = parts + s[:, None] * C + c[None, :], (s < splits)[:, None] & known[None, :]
    count = tl.load(at, mask=mask, other=0.0)
    centre = tl.load(at + splits * C, mask=mask, other=0.0)
    squares = tl.load(at + 2 * splits * C, mask=mask, other=0.0)
    total = tl.maximum(tl.sum(count, 0), 1.0)
    average = tl.sum(count * centre, 0) / total
    apart = centre - average[None, :]
    variance = tl.sum(squares + count * apart * apart, 0) / total
    average += tl.load(y + c * SC, mask=known, other=0.0).to(tl.float32)
    tl.store(mean + c, average, mask=known)
    tl.store(var + c, variance, mask=known)
    if running_mean is not None:
        old = tl.load(running_mean + c, mask=known, other=0.0).to(tl.float32)
        tl.store(running_mean + c, old + momentum * (average - old), mask=known)
    if running_var is not None:
        old = tl.load(running_var + c, mask=known, other=0.0).to(tl.float32)
        unbiased = variance * (total / tl.maximum(total - 1, 1.0))
        tl.store(running_var + c, old + momentum * (unbiased - old), mask=known)


@triton.jit
def channel(mean, var, gamma, beta, eps, c, C: tl.constexpr):
    """Of channels c: mean, 1/σ, γ/σ and β in float32."""
    known = c < C
    inverse = tl.rsqrt(tl.load(var + c, mask=known, other=1.0).to(tl.float32) + eps)
    scale = tl.load(gamma + c, mask=known, other=0.0).to(tl.float32) * inverse
    shift = tl.load(beta + c, mask=known, other=0.0).to(tl.float32)
    return tl.load(mean + c, mask=known, other=0.0).to(tl.float32), inverse, scale, shift


@triton.jit(do_not_specialize=["n"])
def normalize(
    y,
    mean,
    var,
    gamma,
    beta,
    features,
    pooled,
    eps,
    sb,
    n,
    SP: tl.constexpr,
    SC: tl.constexpr,
    ALIGN: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (image · channel tiles + channel tile): features ReLU(BN(y)), and their mean over positions."""
    n = aligned(n, ALIGN)
    tiles: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    b = (tl.program_id(0) // tiles).to(tl.int64)
    c, t = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_N)
    centre, _, scale, shift = channel(mean, var, gamma, beta, eps, c, C)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for i in range(0, n, BLOCK_N):
        live = (i + t < n)[:, None] & (c < C)[None, :]
        at = b * sb + (i + t)[:, None] * SP + c[None, :] * SC
        x = tl.load(y + at, mask=live, other=0.0).to(tl.float32)
        z = (x - centre[None, :]) * scale[None, :] + shift[None, :]
        # Not a maximum: that would turn NaN into 0.
        z = tl.where(z <= 0, 0.0, z)
        tl.store(features + at, z.to(features.dtype.element_ty), mask=live)
        total += tl.where(live, z, 0.0)
    tl.store(pooled + b * C + c, tl.sum(total, 0) / n, mask=c < C)


def batch_statistics(
    y: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (D·C) float32 of y; the running statistics, if any, are moved as BatchNorm2d does."""
    batch, channels, height, width = y.shape
    n, y = height * width, dense(y)
    sb, _, sp, sc = strides(y, 1)
    align = alignment(n, sc)
    default = config.choose_norm(y, 0 if sc == 1 else align)
    tile = fastest(
        "descriptor.statistics", (), y, default, config.sum_alternatives,
        lambda: batch_statistics(y, None, None, momentum),
    )  # fmt: skip
    parts = y.new_empty(3, tile.splits, channels, dtype=torch.float32)
    mean, var = (y.new_empty(channels, dtype=torch.float32) for _ in range(2))
    statistics[(triton.cdiv(channels, tile.channels), tile.splits)](
        y, parts, sb, batch, n, SP=sp, SC=sc, ALIGN=align, C=channels,
        BLOCK_N=tile.positions, BLOCK_C=tile.channels, num_warps=tile.warps,
    )  # fmt: skip
    combine[(triton.cdiv(channels, 32),)](
        y, parts, mean, var, running_mean, running_var, momentum, tile.splits,
        SC=sc, C=channels, BLOCK_S=config.MAX_SPLITS, BLOCK_C=32, num_warps=4,
    )  # fmt: skip
    return mean, var


def forward(y: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Features in y's dtype and layout, and their mean over positions (B, D·C) float32, from given statistics."""
    batch, channels, height, width = y.shape
    n, y = height * width, dense(y)
    sb, _, sp, sc = strides(y, 1)
    align = alignment(n, sc)
    default = config.choose_norm(y, 0 if sc == 1 else align)
    tile = fastest(
        "descriptor.forward", (), y, default, config.norm_alternatives,
        lambda: forward(y, mean, var, gamma, beta, eps),
    )  # fmt: skip
    features, pooled = like(y), y.new_empty(batch, channels, dtype=torch.float32)
    normalize[(batch * triton.cdiv(channels, tile.channels),)](
        y, mean, var, gamma, beta, features, pooled, eps, sb, n, SP=sp, SC=sc, ALIGN=align, C=channels,
        BLOCK_N=tile.positions, BLOCK_C=tile.channels, num_warps=tile.warps,
    )  # fmt: skip
    return features, pooled
