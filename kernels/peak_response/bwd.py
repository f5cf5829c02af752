"""Backward: the gradient of the peaks -> gradients of features and parameters, in four kernels. README.md has the
formulas.

The gradient has one entry a position, at the peak's channel. Sums over positions are formed by a fixed number of
programs, each in order, and added in order: two runs are equal bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.common.layout import aligned, alignment, batches, dense, strides
from agmh_fast.kernels.peak_response import config
from torch import Tensor


@triton.jit(do_not_specialize=["total"])
def channel_sums(
    attention,
    channel,
    grad,
    sums,
    counts,
    total,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (channel tile, descriptor, split): Σ g h (split, D, C, K) and Σ g (split, D, C) of its positions."""
    d, split = tl.program_id(1), tl.program_id(2)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    t, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc, column = tl.zeros((BLOCK_C, BLOCK_K), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    tiles = tl.cdiv(total, BLOCK_N)
    each = tl.cdiv(tiles, tl.num_programs(2))
    for i in range(split * each, min((split + 1) * each, tiles)):
        position = i * BLOCK_N + t
        live = position < total
        row = tl.cast(d, tl.int64) * total + position
        h = tl.load(attention + row[:, None] * K + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)
        g = tl.load(grad + row, mask=live, other=0.0)
        peaked = c[:, None] == tl.load(channel + row, mask=live, other=-1).to(tl.int32)[None, :]
        x = tl.where(peaked, g[None, :], 0.0).to(h.dtype)
        # Both sums from the same rounded g: their difference cancels in the gradient of P.
        column += tl.sum(x.to(tl.float32), 1)
        acc = tl.dot(x, h, acc, input_precision=PRECISION)
    out = (split * tl.num_programs(1) + d).to(tl.int64) * C + c
    tl.store(sums + out[:, None] * K + k[None, :], acc, mask=(c < C)[:, None] & (k < K)[None, :])
    tl.store(counts + out, column, mask=c < C)


@triton.jit
def _logit_gradient(
    attention,
    channel,
    grad,
    projection,
    feedback,
    offset,
    row,
    live,
    d,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of a tile of positions: a, and w = s ds = a (da − Σ_slots a da) with da = g P'_{c*} − R h − v; also g and c*."""
    k = tl.arange(0, BLOCK_K)
    slot = k < K
    mask = live[:, None] & slot[None, :]
    h = tl.load(attention + row[:, None] * K + k[None, :], mask=mask, other=0.0)
    g = tl.load(grad + row, mask=live, other=0.0).to(tl.float32)
    c = tl.load(channel + row, mask=live, other=0).to(tl.int32)
    da = tl.load(projection + (d * C + c[:, None]) * K + k[None, :], mask=mask, other=0.0).to(tl.float32) * g[:, None]
    if feedback is not None:
        back = tl.zeros(da.shape, tl.float32) + tl.load(offset + d * K + k, mask=slot, other=0.0)[None, :]
        for i in range(0, K, BLOCK_J):
            j = i + tl.arange(0, BLOCK_J)
            part = tl.load(attention + row[:, None] * K + j[None, :], mask=live[:, None] & (j < K)[None, :], other=0.0)
            known = (j < K)[:, None] & slot[None, :]
            R = tl.load(feedback + (d * K + j[:, None]) * K + k[None, :], mask=known, other=0.0)
            back = tl.dot(part, R, back, input_precision=PRECISION)
        da -= back
    a = tl.where(mask, h.to(tl.float32) + 1 / K, 0.0)
    return a, a * (da - tl.sum(a * da, 1)[:, None]), g, c


@triton.jit(do_not_specialize=["n", "total"])
def slot_sums(
    attention,
    channel,
    grad,
    projection,
    feedback,
    offset,
    sums,
    n,
    total,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (image, descriptor): Σ_positions w (D, B, K), which the softmax takes off."""
    b, d = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    u = tl.zeros((BLOCK_K,), tl.float32)
    for t in range(0, n, BLOCK_N):
        row = tl.cast(d, tl.int64) * total + b * n + t + p
        _, w, _, _ = _logit_gradient(
            attention, channel, grad, projection, feedback, offset, row, t + p < n, d, C, K, BLOCK_K, BLOCK_J, PRECISION
        )
        u += tl.sum(w, 0)
    tl.store(sums + (tl.cast(d, tl.int64) * tl.num_programs(0) + b) * K + k, u, mask=k < K)


@triton.jit(do_not_specialize=["n", "total"])
def spread(
    attention,
    slot_sum,
    channel,
    grad,
    projection,
    feedback,
    offset,
    sums,
    weight,
    unit,
    dlogits,
    dfeatures,
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
    BLOCK_J: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (image · tiles + tile, descriptor): dz = w − s Σ_positions w; dF = W_zᵀ dz plus g at c*."""
    n = aligned(n, ALIGN)
    tiles = tl.cdiv(n, BLOCK_N)
    b, d = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(1)
    p = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    k, c, live = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C), p < n
    row = tl.cast(d, tl.int64) * total + b * n + p
    a, w, g, first = _logit_gradient(
        attention, channel, grad, projection, feedback, offset, row, live, d, C, K, BLOCK_K, BLOCK_J, PRECISION
    )
    s = a * tl.load(slot_sum + row, mask=live, other=0.0)[:, None]
    at = (tl.cast(d, tl.int64) * (total // n) + b) * K + k
    dz = (w - s * tl.load(sums + at, mask=k < K, other=0.0)[None, :]).to(dlogits.dtype.element_ty)
    tl.store(dlogits + row[:, None] * K + k[None, :], dz, mask=live[:, None] & (k < K)[None, :])
    dfeatures += b * sb + tl.cast(d, tl.int64) * sd + p[:, None] * SP
    for i in range(0, C, BLOCK_C):
        inside = i + c < C
        rows, known = weight + (d * K + k[:, None]) * C + (i + c)[None, :], (k < K)[:, None] & inside[None, :]
        x = tl.dot(dz, tl.load(rows, mask=known, other=0.0), input_precision=PRECISION)
        x += tl.where((i + c)[None, :] == first[:, None], g[:, None], 0.0)
        if unit is not None:
            x *= tl.load(unit)
        out = dfeatures + (i + c)[None, :] * SC
        tl.store(out, x.to(dfeatures.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["images", "n", "total"])
def weight_gradient(
    features,
    dlogits,
    sums,
    sb,
    sd,
    images,
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
    PRECISION: tl.constexpr,
):
    """Program (channel tile, descriptor, split): Σ dz Fᵀ (split, D, K, C) over its share of the position tiles."""
    n = aligned(n, ALIGN)
    d, split = tl.program_id(1), tl.program_id(2)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    t, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    tiles = tl.cdiv(n, BLOCK_N)
    each = tl.cdiv(images * tiles, tl.num_programs(2))
    features += tl.cast(d, tl.int64) * sd
    for i in range(split * each, min((split + 1) * each, images * tiles)):
        b, p = tl.cast(i // tiles, tl.int64), i % tiles * BLOCK_N + t
        live = p < n
        row = tl.cast(d, tl.int64) * total + b * n + p
        y = tl.load(dlogits + row[None, :] * K + k[:, None], mask=live[None, :] & (k < K)[:, None], other=0.0)
        at = b * sb + p.to(tl.int64)[:, None] * SP + c[None, :] * SC
        x = tl.load(features + at, mask=live[:, None] & (c < C)[None, :], other=0.0)
        acc = tl.dot(y, x, acc, input_precision=PRECISION)
    out = ((split * tl.num_programs(1) + d).to(tl.int64) * K + k[:, None]) * C + c[None, :]
    tl.store(sums + out, acc, mask=(k < K)[:, None] & (c < C)[None, :])


def _scaled(g: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """g (D, B, n) in `dtype`, contiguous; float16 in units of a power of two near the largest, or small ones vanish."""
    if dtype != torch.float16:
        return g.to(dtype).contiguous(), None
    largest = g.abs().amax().clamp(2.0**-100, 2.0**100)
    unit = torch.exp2(torch.floor(torch.log2(largest)))
    return (g / unit).to(dtype).contiguous(), unit


def backward(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    projection: Tensor,
    gamma: Tensor,
    peaks: Tensor,
    channel: Tensor,
    attention: Tensor,
    slot_sum: Tensor,
    mean: Tensor,
    var: Tensor,
    attention_mean: Tensor,
    attention_cov: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, W_z, P, γ and β from grad (B, D, n), the gradient of the peaks; the rest as `forward` gave
    it.
    """
    batch, _, height, width = features.shape
    descriptors, slots, channels = weight.shape
    n, total, features = height * width, batch * height * width, dense(features)
    dtype, new, trained = features.dtype, features.new_empty, attention_cov.numel() > 0
    tuning = config.choose(features, slots)
    shape = {"C": channels, "K": slots, "BLOCK_K": tuning.slots, "PRECISION": tuning.precision}
    g, unit = _scaled(torch.where(peaks > 0, grad, 0).transpose(0, 1), dtype)
    channel = channel.transpose(0, 1).contiguous()

    tile = tuning.channel_sums
    sums = new(tuning.splits, descriptors, channels, slots, dtype=torch.float32)
    counts = new(tuning.splits, descriptors, channels, dtype=torch.float32)
    channel_sums[(triton.cdiv(channels, tile.channels), descriptors, tuning.splits)](
        attention, channel, g, sums, counts, total, **shape,
        BLOCK_N=tile.positions, BLOCK_C=tile.channels, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    S, dbeta = sums.sum(dim=0), counts.sum(dim=0)  # of h, not of a
    r = torch.rsqrt(var + eps)
    scale = gamma * r
    scaled = (scale[..., None] * projection).to(dtype)
    feedback, offset = None, None
    if trained:
        mu = attention_mean[..., None]
        centred = S - dbeta[..., None] * mu.mT
        dgamma = r * (projection * centred).sum(dim=-1)
        feedback = (scaled.float().mT @ ((dgamma * r / total)[..., None] * projection)).to(dtype)
        # From the rounded R, as the kernels multiply by it.
        offset = (scaled.float().mT @ (dbeta[..., None] / total) - feedback.float().mT @ mu)[..., 0]
        centred = centred - (dgamma * r)[..., None] * (projection @ attention_cov)
    else:
        centred = S + dbeta[..., None] / slots
        dgamma = r * ((projection * centred).sum(dim=-1) - mean * dbeta)
    dprojection = scale[..., None] * centred

    tile, u = tuning.slot_sums, new(descriptors, batch, slots, dtype=torch.float32)
    slot_sums[(batch, descriptors)](
        attention, channel, g, scaled, feedback, offset, u, n, total, **shape,
        BLOCK_N=tile.positions, BLOCK_J=tuning.inner, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    dlogits, dfeatures = torch.empty_like(attention), torch.empty_like(features)
    sb, sd, sp, sc = strides(features, descriptors)
    align = alignment(n, sc)
    tile = tuning.spread
    spread[(batch * triton.cdiv(n, tile.positions), descriptors)](
        attention, slot_sum, channel, g, scaled, feedback, offset, u, weight.to(dtype), unit, dlogits, dfeatures,
        sb, sd, n, total, SP=sp, SC=sc, ALIGN=align, BLOCK_J=tuning.inner, **shape,
        BLOCK_N=tile.positions, BLOCK_C=tile.channels, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    tile, (images, positions) = tuning.weight_gradient, batches(batch, n, sb, sp)
    parts = new(tuning.splits, descriptors, slots, channels, dtype=torch.float32)
    weight_gradient[(triton.cdiv(channels, tile.channels), descriptors, tuning.splits)](
        features, dlogits, parts, sb, sd, images, positions, total, SP=sp, SC=sc, ALIGN=align, **shape,
        BLOCK_N=tile.positions, BLOCK_C=tile.channels, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    grads = parts.sum(dim=0), dprojection, dgamma, dbeta
    return dfeatures, *(grads if unit is None else (part * unit for part in grads))
