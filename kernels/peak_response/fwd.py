"""Forward: features -> attention -> peaks. README.md has the formulas, moments.py BatchNorm.

Rows are positions, so that a tile is (positions, slots) or (positions, channels). Per position are kept the centred
attention h = a − 1/K, the slot sum, the peak and its channel, all as (D, B·n, ...): T = B·n positions a descriptor.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.common.layout import aligned, alignment, batches, dense, strides
from agmh_fast.kernels.common.tuning import fastest
from agmh_fast.kernels.peak_response import config, moments
from torch import Tensor

SLOT_EPSILON = tl.constexpr(1e-9)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _logits(
    features,
    weight,
    weight_low,
    live,
    SC: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z · log₂e of a tile: features (BLOCK_N, 1) and weight point at channel 0; −inf where not live."""
    k, c = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    z = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for i in range(0, C, BLOCK_C):
        inside = i + c < C
        x = tl.load(features + (i + c)[None, :] * SC, mask=live[:, None] & inside[None, :], other=0.0)
        at, known = k[None, :] * C + (i + c)[:, None], inside[:, None] & (k < K)[None, :]
        z = tl.dot(x, tl.load(weight + at, mask=known, other=0.0), z, input_precision=PRECISION)
        # Rounding W_z to 16 bits is the largest error of the chain, so what the rounding left over is added.
        if weight_low is not None:
            z = tl.dot(x, tl.load(weight_low + at, mask=known, other=0.0), z, input_precision=PRECISION)
    return tl.where(live[:, None], z * _LOG2_E, float("-inf"))


@triton.jit
def _store_attention(s, attention, slot_sum, row, live, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Normalise s (positions, slots) over slots and store a − 1/K and the sum."""
    k = tl.arange(0, BLOCK_K)
    s = tl.where((k < K)[None, :], s, 0.0)
    total = SLOT_EPSILON + tl.sum(s, 1)
    centred = s * (1 / total)[:, None] - 1 / K
    mask = live[:, None] & (k < K)[None, :]
    tl.store(attention + row[:, None] * K + k[None, :], centred.to(attention.dtype.element_ty), mask=mask)
    tl.store(slot_sum + row, total, mask=live)


@triton.jit(do_not_specialize=["n", "total"])
def attend(
    features,
    weight,
    weight_low,
    attention,
    slot_sum,
    sb,
    sd,
    n,
    total,
    SP: tl.constexpr,
    SC: tl.constexpr,
    ALIGN: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ONE_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (image, descriptor): z = W_z F, softmax over positions, normalised over slots.

    With ONE_TILE all positions are on chip. Otherwise a first sweep over position tiles finds each slot's largest logit
    and sum, rescaling the sum as the largest grows, and a second computes the logits again.
    """
    n = aligned(n, ALIGN)
    b, d = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p = tl.arange(0, BLOCK_N)
    features += b * sb + tl.cast(d, tl.int64) * sd
    weight += d * K * C
    if weight_low is not None:
        weight_low += d * K * C
    row = tl.cast(d, tl.int64) * total + b * n + p
    if ONE_TILE:
        live = p < n
        z = _logits(
            features + p[:, None] * SP, weight, weight_low, live, SC, C, K, BLOCK_N, BLOCK_K, BLOCK_C, PRECISION
        )
        s = tl.exp2(z - tl.max(z, 0)[None, :])
        s *= (1 / tl.sum(s, 0))[None, :]
        _store_attention(s, attention, slot_sum, row, live, K, BLOCK_K)
    else:
        top, sums = tl.full((BLOCK_K,), float("-inf"), tl.float32), tl.zeros((BLOCK_K,), tl.float32)
        for t in range(0, n, BLOCK_N):
            x = features + (t + p)[:, None] * SP
            z = _logits(x, weight, weight_low, t + p < n, SC, C, K, BLOCK_N, BLOCK_K, BLOCK_C, PRECISION)
            above = tl.maximum(top, tl.max(z, 0))
            sums = sums * tl.exp2(top - above) + tl.sum(tl.exp2(z - above[None, :]), 0)
            top = above
        scale = 1 / sums
        for t in range(0, n, BLOCK_N):
            x, live = features + (t + p)[:, None] * SP, t + p < n
            z = _logits(x, weight, weight_low, live, SC, C, K, BLOCK_N, BLOCK_K, BLOCK_C, PRECISION)
            s = tl.exp2(z - top[None, :]) * scale[None, :]
            _store_attention(s, attention, slot_sum, row + t, live, K, BLOCK_K)


@triton.jit(do_not_specialize=["total"])
def gram(
    attention,
    products,
    sums,
    total,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (descriptor, split): Σ h hᵀ (split, D, K, K) and Σ h (split, D, K) over its share of the positions."""
    d, split = tl.program_id(0), tl.program_id(1)
    t, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc, column = tl.zeros((BLOCK_K, BLOCK_K), tl.float32), tl.zeros((BLOCK_K,), tl.float32)
    tiles = tl.cdiv(total, BLOCK_N)
    each = tl.cdiv(tiles, tl.num_programs(1))
    for i in range(split * each, min((split + 1) * each, tiles)):
        position = i * BLOCK_N + t
        row = tl.cast(d, tl.int64) * total + position
        mask = (position < total)[:, None] & (k < K)[None, :]
        h = tl.load(attention + row[:, None] * K + k[None, :], mask=mask, other=0.0)
        column += tl.sum(h.to(tl.float32), 0)
        acc = tl.dot(tl.trans(h), h, acc, input_precision=PRECISION)
    out = (split * tl.num_programs(0) + d).to(tl.int64) * K + k
    tl.store(products + out[:, None] * K + k[None, :], acc, mask=(k < K)[:, None] & (k < K)[None, :])
    tl.store(sums + out, column, mask=k < K)


@triton.jit(do_not_specialize=["n", "total"])
def peak(
    features,
    attention,
    projection,
    shift,
    peaks,
    channel,
    ticket,
    sb,
    sd,
    n,
    total,
    SP: tl.constexpr,
    SC: tl.constexpr,
    ALIGN: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (image · tiles + tile, descriptor): max(0, max_c h·P'_c + shift_c + F_c) and the first such c.

    `ticket` is set to zero for a later kernel whose programs count themselves.
    """
    if ticket is not None:
        tl.store(ticket, 0, mask=(tl.program_id(0) == 0) & (tl.program_id(1) == 0))
    n = aligned(n, ALIGN)
    tiles = tl.cdiv(n, BLOCK_N)
    b, d = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(1)
    p = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    k, c, live = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C), p < n
    row = tl.cast(d, tl.int64) * total + b * n + p
    h = tl.load(attention + row[:, None] * K + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)
    # int64 before the product: a batch that is walked as one image has as many positions as the batch.
    features += b * sb + tl.cast(d, tl.int64) * sd + p.to(tl.int64)[:, None] * SP
    top, first = tl.full((BLOCK_N,), float("-inf"), tl.float32), tl.zeros((BLOCK_N,), tl.int32)
    # The range's own num_stages: the features are no operand of the dot and would not be prefetched without.
    for i in tl.range(0, C, BLOCK_C, num_stages=STAGES):
        inside = i + c < C
        x = tl.load(features + (i + c)[None, :] * SC, mask=live[:, None] & inside[None, :], other=0.0)
        at, known = (d * C + i + c)[None, :] * K + k[:, None], inside[None, :] & (k < K)[:, None]
        y = tl.dot(h, tl.load(projection + at, mask=known, other=0.0), input_precision=PRECISION)
        y += x.to(tl.float32) + tl.load(shift + d * C + i + c, mask=inside, other=0.0)[None, :]
        best, j = tl.max(tl.where(inside[None, :], y, float("-inf")), 1, return_indices=True)
        # Strictly greater: of equal channels the first counts, across chunks as within one.
        first = tl.where(best > top, i + j, first)
        top = tl.maximum(top, best)
    # Comparisons drop NaN: a position whose channels are all NaN must not come out as 0.
    value = tl.where(top > float("-inf"), tl.maximum(top, 0.0), float("nan"))
    tl.store(peaks + row, value, mask=live)
    tl.store(channel + row, first.to(channel.dtype.element_ty), mask=live)


@triton.jit
def split_weight(weight, high, low, count, BLOCK: tl.constexpr):
    """Program (block): W_z rounded to the type of `high`, and in `low` what that rounding left over."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(weight + i, mask=i < count, other=0.0)
    rounded = x.to(high.dtype.element_ty)
    tl.store(high + i, rounded, mask=i < count)
    if low is not None:
        tl.store(low + i, (x - rounded.to(tl.float32)).to(low.dtype.element_ty), mask=i < count)


def _in_16_bits(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """W_z in the features' dtype, and for bfloat16 what that rounding leaves over."""
    if dtype == torch.float32:
        return weight, None
    high = torch.empty_like(weight, dtype=dtype)
    low = torch.empty_like(high) if dtype == torch.bfloat16 else None
    split_weight[(triton.cdiv(weight.numel(), 2048),)](weight, high, low, weight.numel(), BLOCK=2048)
    return high, low


def _moments(h: Tensor, tuning: config.Config) -> tuple[Tensor, Tensor]:
    """Mean (D, K) and covariance (D, K, K) of h (D, T, K)."""
    descriptors, total, slots = h.shape
    tile, splits = tuning.gram, 2 * tuning.splits
    products = h.new_empty(splits, descriptors, slots, slots, dtype=torch.float32)
    sums = h.new_empty(splits, descriptors, slots, dtype=torch.float32)
    gram[(descriptors, splits)](
        h, products, sums, total, K=slots, BLOCK_N=tile.positions, BLOCK_K=tuning.slots,
        PRECISION=tuning.precision, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    mean, cov = torch.empty_like(sums[0]), torch.empty_like(products[0])
    moments.covariance[(triton.cdiv(slots, config.COVARIANCE_ROWS), descriptors)](
        products, sums, mean, cov, splits, total, K=slots,
        BLOCK_S=config.SPLITS_AT_ONCE, BLOCK_I=config.COVARIANCE_ROWS, BLOCK_K=tuning.slots, num_warps=8,
    )  # fmt: skip
    return mean, cov


def forward(
    features: Tensor,
    weight: Tensor,
    projection: Tensor,
    gamma: Tensor,
    beta: Tensor,
    stats: tuple[Tensor, Tensor] | None,
    eps: float,
    running: tuple[Tensor | None, Tensor | None] = (None, None),
    momentum: float = 0.0,
    ticket: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Peaks (B, D, n) float32, their channels (B, D, n) int16, h (D, B·n, K) in the features' dtype, slot sums
    (D, B·n), mean and biased variance of y (D, C), μ_h (D, K) and Σ (D, K, K), empty where the statistics are given.

    features (B, D·C, H, W) float32, bfloat16 or float16; weight (D, K, C), projection (D, C, K), gamma and beta (D, C)
    float32, contiguous; stats (mean, var) of y or None. Without them `running` (mean, var), if any, moves towards the
    batch's, as BatchNorm's does. `ticket`, one int32, is set to zero.
    """
    batch, _, height, width = features.shape
    descriptors, slots, channels = weight.shape
    n, total, features = height * width, batch * height * width, dense(features)
    dtype, new = features.dtype, features.new_empty
    default = config.choose(features, slots)
    tuning = fastest(
        "peak_response.forward", (descriptors, slots, stats is None), features, default, config.forward_alternatives,
        lambda: forward(features, weight, projection, gamma, beta, stats, eps),
    )  # fmt: skip
    sb, sd, sp, sc = strides(features, descriptors)
    h, slot_sum = new(descriptors, total, slots), new(descriptors, total, dtype=torch.float32)
    tile = tuning.attend
    attend[(batch, descriptors)](
        features, *_in_16_bits(weight, dtype), h, slot_sum, sb, sd, n, total,
        SP=sp, SC=sc, ALIGN=alignment(n, sc), C=channels, K=slots,
        BLOCK_N=tile.positions, BLOCK_K=tuning.slots, BLOCK_C=tile.channels, ONE_TILE=n <= tile.positions,
        PRECISION=tuning.precision, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    mu, cov = (None, None) if stats else _moments(h, tuning)
    mean, var, shift = torch.empty_like(beta), torch.empty_like(beta), torch.empty_like(beta)
    scaled, tile = torch.empty_like(projection, dtype=dtype), tuning.statistics
    moments.statistics[(triton.cdiv(channels, tile.channels), descriptors)](
        projection, gamma, beta, mu, cov, *(stats or running), mean, var, scaled, shift, momentum, eps, total,
        C=channels, K=slots, BLOCK_C=tile.channels, BLOCK_K=tuning.slots, BLOCK_J=tuning.chunk,
        PRECISION=tuning.exact, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    peaks = new(descriptors, batch, n, dtype=torch.float32)
    channel = new(descriptors, batch, n, dtype=torch.int16)
    tile, (images, positions) = tuning.peak, batches(batch, n, sb, sp)
    peak[(images * triton.cdiv(positions, tile.positions), descriptors)](
        features, h, scaled, shift, peaks, channel, ticket, sb, sd, positions, total,
        SP=sp, SC=sc, ALIGN=alignment(n, sc), C=channels, K=slots,
        BLOCK_N=tile.positions, BLOCK_K=tuning.slots, BLOCK_C=tile.channels, STAGES=tile.stages,
        PRECISION=tuning.precision, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if mu is None or cov is None:
        mu, cov = peaks.new_empty(0), peaks.new_empty(0)
    return peaks.transpose(0, 1), channel.transpose(0, 1), h, slot_sum, mean, var, mu, cov
