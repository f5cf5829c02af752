"""Backward: the gradient of the peaks -> gradients of features and parameters. README.md has the formulas,
parameters.py the kernels on parameters.

The gradient has one entry a position, at the peak's channel. Sums over positions are formed by a fixed number of
programs, each in order, and added in order: two runs are equal bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from agmh_fast.kernels.common.layout import aligned, alignment, batches, dense, strides
from agmh_fast.kernels.common.tuning import fastest
from agmh_fast.kernels.peak_response import config
from agmh_fast.kernels.peak_response.parameters import parameter_gradients, unit_of
from torch import Tensor


@triton.jit
def _masked(grad, peaks, row, d, position, live, gb, gd, gp, n):
    """The gradient of peaks at positions of a descriptor, float32, zero where the peak is."""
    at = (position // n).to(tl.int64) * gb + (position % n).to(tl.int64) * gp + tl.cast(d, tl.int64) * gd
    g = tl.load(grad + at, mask=live, other=0.0).to(tl.float32)
    return tl.where(tl.load(peaks + row, mask=live, other=0.0) > 0, g, 0.0)


@triton.jit(do_not_specialize=["gb", "gd", "gp", "n", "total"])
def largest_gradient(grad, peaks, largest, gb, gd, gp, n, total, D: tl.constexpr, BLOCK_N: tl.constexpr):
    """Program (share of the positions): its largest |g|."""
    t, top = tl.arange(0, BLOCK_N), tl.zeros((BLOCK_N,), tl.float32)
    for d in range(D):
        for i in range(tl.program_id(0), tl.cdiv(total, BLOCK_N), tl.num_programs(0)):
            position = i * BLOCK_N + t
            live = position < total
            row = tl.cast(d, tl.int64) * total + position
            top = tl.maximum(top, tl.abs(_masked(grad, peaks, row, d, position, live, gb, gd, gp, n)))
    tl.store(largest + tl.program_id(0), tl.max(top, 0))


@triton.jit(do_not_specialize=["gb", "gd", "gp", "n", "total"])
def channel_sums(
    attention,
    channel,
    grad,
    peaks,
    largest,
    rounded,
    sums,
    counts,
    gb,
    gd,
    gp,
    n,
    total,
    C: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    ATOMIC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (channel tile, descriptor, split): Σ g h (split, D, C, K) and Σ g (split, D, C) of its positions.

    The first channel tile also keeps g (D, T): zero where the peak is, in units if there are any, rounded.
    """
    d, split = tl.program_id(1), tl.program_id(2)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    t, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    acc, column = tl.zeros((BLOCK_C, BLOCK_K), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
    unit = 1.0
    if largest is not None:
        unit = unit_of(largest, PARTS)
    tiles = tl.cdiv(total, BLOCK_N)
    each = tl.cdiv(tiles, tl.num_programs(2))
    for i in range(split * each, min((split + 1) * each, tiles)):
        position = i * BLOCK_N + t
        live = position < total
        row = tl.cast(d, tl.int64) * total + position
        h = tl.load(attention + row[:, None] * K + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)
        g = (_masked(grad, peaks, row, d, position, live, gb, gd, gp, n) / unit).to(h.dtype)
        tl.store(rounded + row, g, mask=live & (tl.program_id(0) == 0))
        peaked = c[:, None] == tl.load(channel + row, mask=live, other=-1).to(tl.int32)[None, :]
        x = tl.where(peaked, g[None, :], 0.0).to(h.dtype)
        # Both sums from the same rounded g: their difference cancels in the gradient of P.
        column += tl.sum(x.to(tl.float32), 1)
        acc = tl.dot(x, h, acc, input_precision=PRECISION)
    if ATOMIC:
        out = tl.cast(d, tl.int64) * C + c
        mask = (c < C)[:, None] & (k < K)[None, :]
        tl.atomic_add(sums + out[:, None] * K + k[None, :], acc, mask=mask, sem="relaxed")
        tl.atomic_add(counts + out, column, mask=c < C, sem="relaxed")
    else:
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
    largest,
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
    PARTS: tl.constexpr,
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
    unit = 1.0
    if largest is not None:
        unit = unit_of(largest, PARTS)
    for i in range(0, C, BLOCK_C):
        inside = i + c < C
        rows, known = weight + (d * K + k[:, None]) * C + (i + c)[None, :], (k < K)[:, None] & inside[None, :]
        x = tl.dot(dz, tl.load(rows, mask=known, other=0.0), input_precision=PRECISION)
        x += tl.where((i + c)[None, :] == first[:, None], g[:, None], 0.0)
        out = dfeatures + (i + c)[None, :] * SC
        tl.store(out, (x * unit).to(dfeatures.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["images", "n", "total"])
def weight_gradient(
    features,
    dlogits,
    largest,
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
    PARTS: tl.constexpr,
    ATOMIC: tl.constexpr,
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
    if largest is not None:
        acc *= unit_of(largest, PARTS)
    mask = (k < K)[:, None] & (c < C)[None, :]
    if ATOMIC:
        tl.atomic_add(sums + (tl.cast(d, tl.int64) * K + k[:, None]) * C + c[None, :], acc, mask=mask, sem="relaxed")
    else:
        out = ((split * tl.num_programs(1) + d).to(tl.int64) * K + k[:, None]) * C + c[None, :]
        tl.store(sums + out, acc, mask=mask)


def _largest(grad: Tensor, peaks: Tensor) -> Tensor:
    """Shares of the largest |g|: float16 gradients are held in units of a power of two near it, or vanish."""
    batch, descriptors, n = grad.shape
    largest = grad.new_empty(config.LARGEST_PARTS, dtype=torch.float32)
    largest_gradient[(config.LARGEST_PARTS,)](
        grad, peaks, largest, *grad.stride(), n, batch * n, D=descriptors, BLOCK_N=1024, num_warps=4
    )
    return largest


def _sums(size: int, splits: int, like: Tensor) -> Tensor:
    """Memory for sums over positions: a part for every split, or zeros if atomics add to them."""
    if config.atomics():
        return like.new_zeros(1, size, dtype=torch.float32)
    return like.new_empty(splits, size, dtype=torch.float32)


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
    training, new, default = attention_cov.numel() > 0, features.new_empty, config.choose(features, slots)
    tuning = fastest(
        "peak_response.backward", (descriptors, slots, training), features, default, config.backward_alternatives,
        lambda: backward(
            grad, features, weight, projection, gamma, peaks, channel, attention, slot_sum, mean, var, attention_mean,
            attention_cov, eps,
        ),
    )  # fmt: skip
    shape = {"C": channels, "K": slots, "BLOCK_K": tuning.slots}
    peaks, channel = (x.transpose(0, 1).contiguous() for x in (peaks, channel))
    units = _largest(grad, peaks) if features.dtype == torch.float16 else None
    sums, g = _channel_sums(grad, peaks, channel, attention, units, channels, tuning)
    moments_of_h = (attention_mean, attention_cov) if training else (None, None)
    grads, parts = parameter_gradients(
        sums, weight, projection, gamma, mean, var, *moments_of_h, units, total, eps, features.dtype, tuning
    )
    dprojection, dgamma, dbeta = grads
    rounded_weight, scaled, feedback, offset = parts

    tile, u = tuning.slot_sums, new(descriptors, batch, slots, dtype=torch.float32)
    slot_sums[(batch, descriptors)](
        attention, channel, g, scaled, feedback, offset, u, n, total, **shape, PRECISION=tuning.precision,
        BLOCK_N=tile.positions, BLOCK_J=tuning.inner, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    dlogits, dfeatures = torch.empty_like(attention), torch.empty_like(features)
    sb, sd, sp, sc = strides(features, descriptors)
    layout = {"SP": sp, "SC": sc, "ALIGN": alignment(n, sc), "PARTS": config.LARGEST_PARTS}
    tile = tuning.spread
    spread[(batch * triton.cdiv(n, tile.positions), descriptors)](
        attention, slot_sum, channel, g, scaled, feedback, offset, u, rounded_weight, units, dlogits, dfeatures,
        sb, sd, n, total, **layout, **shape, BLOCK_J=tuning.inner, PRECISION=tuning.precision,
        BLOCK_N=tile.positions, BLOCK_C=tile.channels, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    tile, (images, positions) = tuning.weight_gradient, batches(batch, n, sb, sp)
    dweight = _sums(weight.numel(), tuning.splits, features)
    weight_gradient[(triton.cdiv(channels, tile.channels), descriptors, tuning.splits)](
        features, dlogits, units, dweight, sb, sd, images, positions, total, **layout, **shape,
        BLOCK_N=tile.positions, BLOCK_C=tile.channels, ATOMIC=config.atomics(), PRECISION=tuning.precision,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    dweight = dweight[0] if config.atomics() else dweight.sum(dim=0)
    return dfeatures, dweight.view_as(weight), dprojection, dgamma, dbeta


def _channel_sums(
    grad: Tensor,
    peaks: Tensor,
    channel: Tensor,
    attention: Tensor,
    units: Tensor | None,
    channels: int,
    tuning: config.Config,
) -> tuple[tuple[Tensor, Tensor, int], Tensor]:
    """Parts of Σ g h and Σ g with their number, and g (D, T) as the other kernels take it."""
    descriptors, total, slots = attention.shape
    count = descriptors * channels
    sums = _sums(count * (slots + 1), tuning.splits, attention)
    splits = len(sums)
    products, counts = sums.view(-1).split([splits * count * slots, splits * count])
    tile, g = tuning.channel_sums, attention.new_empty(descriptors, total)
    channel_sums[(triton.cdiv(channels, tile.channels), descriptors, tuning.splits)](
        attention, channel, grad, peaks, units, g, products, counts, *grad.stride(), grad.shape[2], total,
        C=channels, K=slots, PARTS=config.LARGEST_PARTS, ATOMIC=config.atomics(), BLOCK_K=tuning.slots,
        PRECISION=tuning.precision, BLOCK_N=tile.positions, BLOCK_C=tile.channels, num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    return (products, counts, splits), g
