"""Peak response in plain torch operators, image by image; docs/math.md §2 and §3, symbols as in peak_response.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from agmh_fast.kernels.common.memory import like
from agmh_fast.ops.attention import SLOT_EPSILON

# Features worked on at a time: one image of the published sizes. A step's operands then stay in a CPU's cache, weights
# need no copy for a batched product, and small images still share one.
_CHUNK = 6 * 512 * 14 * 14


# Moments of attention here to those of all ranks; sums of the gradient here to those of all ranks and their positions.
Merge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Total = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, int]]


class PeakResponse(NamedTuple):
    """What forward computes and backward needs; T = B·n positions."""

    peaks: Tensor  # M (B, D, n)
    channel: Tensor  # c* (B, D, n) int64
    attention: Tensor  # a (B, D, n, K)
    slot_sum: Tensor  # 1e-9 + Σ_slots s (B, D, n, 1)
    mean: Tensor  # of y (D, C)
    var: Tensor  # of y, biased (D, C)
    attention_mean: Tensor  # μ (D, K); empty when the statistics are given
    attention_cov: Tensor  # Σ (D, K, K); empty when the statistics are given


def _chunks(features: Tensor, num_descriptors: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the batch with their features as (b, D, C, n) views; positions are the rows in memory if
    channels_last.
    """
    batch, channels, height, width = features.shape
    if features.is_contiguous(memory_format=torch.channels_last):
        rows = features.permute(0, 2, 3, 1).reshape(batch, height * width, num_descriptors, -1)
        x = rows.permute(0, 2, 3, 1)
    else:
        x = features.reshape(batch, num_descriptors, channels // num_descriptors, height * width)
    step = max(1, _CHUNK // max(channels * height * width, 1))
    for start in range(0, batch, step):
        yield slice(start, start + step), x[start : start + step]


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (D, I, J) += Σ_images left (b, D, I, T) right (b, D, T, J), image by image."""
    for a, b in zip(left, right, strict=True):
        total.baddbmm_(a, b)


def _moments(attention: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D, K) and covariance (D, K, K) of a (B, D, n, K) over all its positions, centred before it is squared."""
    batch, descriptors, positions, slots = attention.shape
    mean = attention.mean(dim=(0, 2))
    cov = attention.new_zeros(descriptors, slots, slots)
    for image in attention:
        centred = image - mean[:, None]
        cov.baddbmm_(centred.mT, centred)
    return mean, cov / (batch * positions)


def statistics(projection: Tensor, mu: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of y = P a (D, C) from the moments of a."""
    return (projection @ mu[..., None])[..., 0], ((projection @ cov) * projection).sum(dim=-1)


def affine(
    projection: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """P' (D, C, K) and shift (D, C): BN(P a) = P' a + shift."""
    scale = gamma * torch.rsqrt(var + eps)
    return scale[..., None] * projection, beta - scale * mean


def peak_response_forward(
    features: Tensor,
    weight: Tensor,
    projection: Tensor,
    gamma: Tensor,
    beta: Tensor,
    stats: tuple[Tensor, Tensor] | None,
    eps: float,
    merge: Merge | None = None,
) -> PeakResponse:
    """features (B, D·C, H, W); weight W_z (D, K, C); projection P (D, C, K); gamma, beta (D, C); stats (mean, var) of
    y or None; merge makes those of all ranks of the moments here.
    """
    batch, _, height, width = features.shape
    descriptors, slots, _ = weight.shape
    shape, dtype = (batch, descriptors, height * width), weight.dtype
    attention = features.new_empty(*shape, slots, dtype=dtype)
    slot_sum = features.new_empty(*shape, 1, dtype=dtype)
    for images, x in _chunks(features, descriptors):
        s, den = attention[images], slot_sum[images]
        torch.softmax(x.to(dtype).mT @ weight.mT, dim=2, out=s)
        torch.sum(s, dim=3, keepdim=True, out=den)
        s.div_(den.add_(SLOT_EPSILON))
    if stats is None:
        mu, cov = _moments(attention)
        mu, cov = merge(mu, cov) if merge else (mu, cov)
        mean, var = statistics(projection, mu, cov)
    else:
        mu, cov = attention.new_empty(0), attention.new_empty(0)
        mean, var = (statistic.to(dtype, copy=True) for statistic in stats)
    scaled, shift = affine(projection, gamma, beta, mean, var, eps)
    peaks = features.new_empty(shape, dtype=dtype)
    channel = features.new_empty(shape, dtype=torch.int64)
    for images, x in _chunks(features, descriptors):
        y = x + shift[..., None]
        for image, a in zip(y, attention[images], strict=True):
            image.baddbmm_(scaled, a.mT)
        torch.max(y, dim=2, out=(peaks[images], channel[images]))
    return PeakResponse(peaks.clamp_min_(0), channel, attention, slot_sum, mean, var, mu, cov)


def segment_sum(values: Tensor, segment: Tensor, count: int) -> Tensor:
    """Sum the rows of values (T, K) by segment (T,) into (count, K), in a fixed order on every device."""
    if values.device.type == "cpu":
        return values.new_zeros(count, values.shape[1]).index_add_(0, segment, values)
    order = torch.argsort(segment, stable=True)
    ends = torch.searchsorted(segment[order], torch.arange(count + 1, device=segment.device))
    return torch.segment_reduce(values[order], "sum", offsets=ends, axis=0, unsafe=True, initial=0)


def parameter_gradients(
    S: Tensor,
    dbeta: Tensor,
    projection: Tensor,
    gamma: Tensor,
    saved: PeakResponse,
    eps: float,
    total: Total | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """P', R and v, dP and dγ from S and dβ; R and v are None where the statistics were given.

    With statistics of all ranks `total` gives their sums S and dβ and their number of positions: features depend on
    these, while dP and dγ are this rank's part.
    """
    if total is not None:
        *_, dprojection, dgamma = parameter_gradients(S, dbeta, projection, gamma, saved, eps)
        S, dbeta, count = total(S, dbeta)
        scaled, feedback, offset, *_ = _feedback(S, dbeta, projection, gamma, saved, eps, count)
        return scaled, feedback, offset, dprojection, dgamma
    return _feedback(S, dbeta, projection, gamma, saved, eps, saved.peaks.numel() // saved.peaks.shape[1])


def _feedback(
    S: Tensor, dbeta: Tensor, projection: Tensor, gamma: Tensor, saved: PeakResponse, eps: float, positions: int
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """`parameter_gradients` from the sums over so many positions."""
    r = torch.rsqrt(saved.var + eps)
    dgamma = r * ((projection * S).sum(dim=-1) - saved.mean * dbeta)
    scaled = (gamma * r)[..., None] * projection
    if saved.attention_cov.numel() == 0:
        return scaled, None, None, (gamma * r)[..., None] * S, dgamma
    feedback = scaled.mT @ ((dgamma * r / positions)[..., None] * projection)
    mu = saved.attention_mean[..., None]
    offset = (scaled.mT @ (dbeta[..., None] / positions) - feedback @ mu).mT
    centred = S - dbeta[..., None] * mu.mT - (dgamma * r)[..., None] * (projection @ saved.attention_cov)
    return scaled, feedback, offset, (gamma * r)[..., None] * centred, dgamma


def peak_response_backward(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    projection: Tensor,
    gamma: Tensor,
    saved: PeakResponse,
    eps: float,
    total: Total | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, W_z, P, γ and β from grad (B, D, n), the gradient of the peaks."""
    descriptors, slots, channels = weight.shape
    attention = saved.attention
    g = torch.where(saved.peaks > 0, grad, 0).contiguous()
    row = saved.channel + channels * torch.arange(descriptors, device=grad.device)[:, None]
    S = segment_sum((attention * g[..., None]).flatten(0, 2), row.flatten(), descriptors * channels)
    S = S.view(descriptors, channels, slots)
    dbeta = segment_sum(g.view(-1, 1), row.flatten(), descriptors * channels).view(descriptors, channels)
    scaled, feedback, offset, dprojection, dgamma = parameter_gradients(S, dbeta, projection, gamma, saved, eps, total)

    dfeatures, dweight = like(features), weight.new_zeros(descriptors, channels, slots)
    table = scaled.flatten(0, 1)
    for (images, x), (_, dx) in zip(_chunks(features, descriptors), _chunks(dfeatures, descriptors), strict=True):
        a, gi = attention[images], g[images, ..., None]
        da = table.index_select(0, row[images].flatten()).view_as(a).mul_(gi)
        if feedback is not None and offset is not None:
            da.sub_(a @ feedback.mT).sub_(offset)
        # With w = s ds = a (da − Σ_slots a da), dz = w − s Σ_positions w.
        w = da.mul_(a)
        w.addcmul_(a, w.sum(dim=3, keepdim=True), value=-1)
        dz = w.addcmul_(a * saved.slot_sum[images], w.sum(dim=2, keepdim=True), value=-1)
        _add_products(dweight, x.to(dz.dtype), dz)
        dense = torch.matmul(weight.mT, dz.mT, out=dx if dx.dtype == dz.dtype else None)
        dense.scatter_add_(2, saved.channel[images][:, :, None], gi.mT)
        if dense is not dx:
            dx.copy_(dense)
    return dfeatures, dweight.mT.contiguous(), dprojection, dgamma, dbeta
