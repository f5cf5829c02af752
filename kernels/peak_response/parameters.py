"""What backward makes of the channels' sums: work on (D, C, K) and smaller, in float32. README.md has the formulas."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.peak_response import config
from agmh_fast.kernels.peak_response.moments import sum_of_splits, times_covariance
from torch import Tensor


@triton.jit
def unit_of(largest, PARTS: tl.constexpr):
    """The power of two at or below the largest of PARTS numbers: what float16 gradients are measured in."""
    top = tl.max(tl.load(largest + tl.arange(0, PARTS)), 0)
    bounded = tl.minimum(tl.maximum(top, 2.0**-100), 2.0**100)
    return (bounded.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["splits", "total"])
def channel_gradients(
    sums,
    counts,
    weight,
    projection,
    gamma,
    mean,
    var,
    attention_mean,
    attention_cov,
    largest,
    rounded_weight,
    scaled,
    slope,
    lift,
    dprojection,
    dgamma,
    dbeta,
    eps,
    splits,
    total,
    C: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (channel tile, descriptor): dP, dγ and dβ from the splits of Σ g h and Σ g; also what the next kernels
    multiply by: P' and W_z rounded, and of R and v the factors dγ r/T and dβ/T.
    """
    d, c, k = tl.program_id(1).to(tl.int64), tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    at, inside = d * C + c, c < C
    tile, mask = at[:, None] * K + k[None, :], inside[:, None] & (k < K)[None, :]
    stride = tl.cast(tl.num_programs(1), tl.int64) * C
    S = sum_of_splits(sums, stride * K, splits, tile, mask, BLOCK_S)  # of h, not of a
    db = sum_of_splits(counts, stride, splits, at, inside, BLOCK_S)
    P = tl.load(projection + tile, mask=mask, other=0.0)
    r = tl.rsqrt(tl.load(var + at, mask=inside, other=1.0) + eps)
    scale = tl.load(gamma + at, mask=inside, other=0.0) * r
    if attention_cov is not None:
        mu = tl.load(attention_mean + d * K + k, mask=k < K, other=0.0)
        centred = S - db[:, None] * mu[None, :]
        dg = r * tl.sum(P * centred, 1)
        rows, cov = projection + at[:, None] * K, attention_cov + d * K * K
        PS = times_covariance(rows, cov, inside, C, K, BLOCK_C, BLOCK_K, BLOCK_J, PRECISION)
        centred -= (dg * r)[:, None] * PS
        tl.store(slope + at, dg * r / total, mask=inside)
        tl.store(lift + at, db / total, mask=inside)
    else:
        centred = S + db[:, None] / K
        dg = r * (tl.sum(P * centred, 1) - tl.load(mean + at, mask=inside, other=0.0) * db)
    unit = 1.0
    if largest is not None:
        unit = unit_of(largest, PARTS)
    tl.store(dprojection + tile, scale[:, None] * centred * unit, mask=mask)
    tl.store(dgamma + at, dg * unit, mask=inside)
    tl.store(dbeta + at, db * unit, mask=inside)
    tl.store(scaled + tile, (scale[:, None] * P).to(scaled.dtype.element_ty), mask=mask)
    if rounded_weight is not None:
        turned = (d * K + k[:, None]) * C + c[None, :]
        both = (k < K)[:, None] & inside[None, :]
        w = tl.load(weight + turned, mask=both, other=0.0)
        tl.store(rounded_weight + turned, w.to(rounded_weight.dtype.element_ty), mask=both)


@triton.jit
def feedback_products(
    scaled,
    projection,
    slope,
    lift,
    attention_mean,
    feedback,
    offset,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (slot tile, descriptor): its columns of R = P'ᵀ diag(dγ r/T) P, rounded, and of v = P'ᵀ dβ/T − Rᵀ μ_h."""
    d, k = tl.program_id(1).to(tl.int64), tl.arange(0, BLOCK_K)
    j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    acc, v = tl.zeros((BLOCK_K, BLOCK_J), tl.float32), tl.zeros((BLOCK_J,), tl.float32)
    for start in tl.range(0, C, BLOCK_C, num_stages=STAGES):
        c = start + tl.arange(0, BLOCK_C)
        at, inside = d * C + c, c < C
        columns, mask = at[:, None] * K + j[None, :], inside[:, None] & (j < K)[None, :]
        both = (k < K)[:, None] & inside[None, :]
        left = tl.load(scaled + at[None, :] * K + k[:, None], mask=both, other=0.0).to(tl.float32)
        right = tl.load(projection + columns, mask=mask, other=0.0)
        right *= tl.load(slope + at, mask=inside, other=0.0)[:, None]
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
        own = tl.load(scaled + columns, mask=mask, other=0.0).to(tl.float32)
        v += tl.sum(own * tl.load(lift + at, mask=inside, other=0.0)[:, None], 0)
    R = acc.to(feedback.dtype.element_ty)
    # From the rounded R, as the next kernels multiply by it.
    v -= tl.sum(R.to(tl.float32) * tl.load(attention_mean + d * K + k, mask=k < K, other=0.0)[:, None], 0)
    where = (k < K)[:, None] & (j < K)[None, :]
    tl.store(feedback + (d * K + k[:, None]) * K + j[None, :], R, mask=where)
    tl.store(offset + d * K + j, v, mask=j < K)


def parameter_gradients(
    sums: tuple[Tensor, Tensor, int],
    weight: Tensor,
    projection: Tensor,
    gamma: Tensor,
    mean: Tensor,
    var: Tensor,
    mu: Tensor | None,
    cov: Tensor | None,
    units: Tensor | None,
    total: int,
    eps: float,
    dtype: torch.dtype,
    tuning: config.Config,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """dP, dγ, dβ; W_z and P' in `dtype`, and where the batch gave the statistics R in `dtype` and v."""
    descriptors, slots, channels = weight.shape
    products, counts, splits = sums
    grads = torch.empty_like(projection), torch.empty_like(gamma), torch.empty_like(gamma)
    scaled, slope, lift = torch.empty_like(projection, dtype=dtype), torch.empty_like(gamma), torch.empty_like(gamma)
    rounded_weight = None if dtype == torch.float32 else torch.empty_like(weight, dtype=dtype)
    tile = tuning.channel_gradients
    channel_gradients[(triton.cdiv(channels, tile.channels), descriptors)](
        products, counts, weight, projection, gamma, mean, var, mu, cov, units, rounded_weight, scaled, slope, lift,
        *grads, eps, splits, total, C=channels, K=slots, PARTS=config.LARGEST_PARTS, BLOCK_S=config.SPLITS_AT_ONCE,
        BLOCK_C=tile.channels, BLOCK_K=tuning.slots, BLOCK_J=tuning.chunk, PRECISION=tuning.exact,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    weight = weight if rounded_weight is None else rounded_weight
    if mu is None:
        return grads, (weight, scaled, None, None)
    feedback, offset = scaled.new_empty(descriptors, slots, slots), torch.empty_like(mu)
    tile = tuning.feedback
    feedback_products[(triton.cdiv(slots, tile.positions), descriptors)](
        scaled, projection, slope, lift, mu, feedback, offset, C=channels, K=slots, BLOCK_C=tile.channels,
        BLOCK_K=tuning.slots, BLOCK_J=tile.positions, STAGES=tile.stages, PRECISION=tuning.exact,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return grads, (weight, scaled, feedback, offset)
