"""Peak response: the largest channel of the attended features at every position, M = max_c ReLU(BN(P a) + F).

docs/math.md §2 and §3. All D descriptors at once; no (C, n) attention map is stored. The gradient of a channel max has
one entry a position, so backward needs the attention a, the arg max c* and the features only.

    forward:   a from W_z F;  mean_y = P μ, var_y = diag(P Σ Pᵀ);  M = max(0, max_c [P'_c·a + shift_c + F_c])
    backward:  S_c = Σ_{c*=c} g a,  dβ_c = Σ_{c*=c} g,  dγ = r (P·S − mean_y dβ),
               da = g P'_{c*} − P'ᵀdβ/T − R (a − μ),  dF = W_zᵀ dz + g at c*
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from agmh_fast.kernels.peak_response.config import MAX_CHANNELS, MAX_SLOTS, capability
from agmh_fast.ops.attention import (
    SLOT_EPSILON,
    AttentionParams,
    attend_by_reference,
    collapse,
    compute_dtype,
    update_running,
)
from agmh_fast.ops.registry import Op

# Features worked on at a time: one image of the published sizes. A step's operands then stay in a CPU's cache, weights
# need no copy for a batched product, and small images still share one.
_CHUNK = 6 * 512 * 14 * 14


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


def peak_response_forward(
    features: Tensor,
    weight: Tensor,
    projection: Tensor,
    gamma: Tensor,
    beta: Tensor,
    stats: tuple[Tensor, Tensor] | None,
    eps: float,
) -> PeakResponse:
    """features (B, D·C, H, W); weight W_z (D, K, C); projection P (D, C, K); gamma, beta (D, C); stats (mean, var) of
    y or None.
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
        mean = (projection @ mu[..., None])[..., 0]
        var = ((projection @ cov) * projection).sum(dim=-1)
    else:
        mu, cov = attention.new_empty(0), attention.new_empty(0)
        mean, var = (statistic.to(dtype, copy=True) for statistic in stats)
    scale = gamma * torch.rsqrt(var + eps)
    scaled, shift = scale[..., None] * projection, beta - scale * mean
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


def peak_response_backward(
    grad: Tensor, features: Tensor, weight: Tensor, projection: Tensor, gamma: Tensor, saved: PeakResponse, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, W_z, P, γ and β from grad (B, D, n), the gradient of the peaks."""
    descriptors, slots, channels = weight.shape
    attention, trained = saved.attention, saved.attention_cov.numel() > 0
    g = torch.where(saved.peaks > 0, grad, 0).contiguous()
    row = saved.channel + channels * torch.arange(descriptors, device=grad.device)[:, None]
    S = segment_sum((attention * g[..., None]).flatten(0, 2), row.flatten(), descriptors * channels)
    S = S.view(descriptors, channels, slots)
    dbeta = segment_sum(g.view(-1, 1), row.flatten(), descriptors * channels).view(descriptors, channels)
    r = torch.rsqrt(saved.var + eps)
    dgamma = r * ((projection * S).sum(dim=-1) - saved.mean * dbeta)
    scaled = (gamma * r)[..., None] * projection
    dprojection = S
    if trained:
        positions = g.numel() // descriptors
        feedback = scaled.mT @ ((dgamma * r / positions)[..., None] * projection)
        mu = saved.attention_mean[..., None]
        offset = (scaled.mT @ (dbeta[..., None] / positions) - feedback @ mu).mT
        dprojection = S - dbeta[..., None] * mu.mT - (dgamma * r)[..., None] * (projection @ saved.attention_cov)
    dprojection = (gamma * r)[..., None] * dprojection

    dfeatures, dweight = _gradient_of(features), weight.new_zeros(descriptors, channels, slots)
    table = scaled.flatten(0, 1)
    for (images, x), (_, dx) in zip(_chunks(features, descriptors), _chunks(dfeatures, descriptors), strict=True):
        a, gi = attention[images], g[images, ..., None]
        da = table.index_select(0, row[images].flatten()).view_as(a).mul_(gi)
        if trained:
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


def _gradient_of(features: Tensor) -> Tensor:
    """Memory for a gradient: channels_last as the features are, else contiguous, so that chunks of it are views."""
    last = features.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(features, memory_format=torch.channels_last if last else torch.contiguous_format)


# Opaque to torch.compile: tracing through the loop over images would unroll it for every batch size. Each
# implementation has a pair of ops with one signature; what forward gives goes to backward as it is, in its own layout.
_library = torch.library.Library("agmh_fast", "FRAGMENT")
for _pair in ("peak_response", "triton_peak_response"):
    _library.define(
        f"{_pair}(Tensor features, Tensor weight, Tensor projection, Tensor gamma, Tensor beta, Tensor? mean, "
        "Tensor? var, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    _library.define(
        f"{_pair}_backward(Tensor grad, Tensor features, Tensor weight, Tensor projection, Tensor gamma, "
        "Tensor peaks, Tensor channel, Tensor attention, Tensor slot_sum, Tensor mean, Tensor var, "
        "Tensor attention_mean, Tensor attention_cov, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    )


@torch.library.impl(_library, "peak_response", "CompositeExplicitAutograd")
def _forward_op(features, weight, projection, gamma, beta, mean, var, eps):  # type: ignore[no-untyped-def]
    stats = None if mean is None else (mean, var)
    with torch.autocast(features.device.type, enabled=False):
        return tuple(peak_response_forward(features, weight, projection, gamma, beta, stats, eps))


@torch.library.impl(_library, "peak_response_backward", "CompositeExplicitAutograd")
def _backward_op(grad, features, weight, projection, gamma, *saved_and_eps):  # type: ignore[no-untyped-def]
    *saved, eps = saved_and_eps
    with torch.autocast(features.device.type, enabled=False):
        return peak_response_backward(grad, features, weight, projection, gamma, PeakResponse(*saved), eps)


@torch.library.impl(_library, "triton_peak_response", "CompositeExplicitAutograd")
def _triton_forward_op(features, weight, projection, gamma, beta, mean, var, eps):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.peak_response import fwd

    stats = None if mean is None else (mean, var)
    with torch.autocast(features.device.type, enabled=False):
        return fwd.forward(features, weight, projection, gamma, beta, stats, eps)


@torch.library.impl(_library, "triton_peak_response_backward", "CompositeExplicitAutograd")
def _triton_backward_op(grad, features, weight, projection, gamma, *saved_and_eps):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.peak_response import bwd

    with torch.autocast(features.device.type, enabled=False):
        return bwd.backward(grad, features, weight, projection, gamma, *saved_and_eps)


@torch.library.register_fake("agmh_fast::peak_response")
def _forward_fake(features, weight, projection, gamma, beta, mean, var, eps):  # type: ignore[no-untyped-def]
    batch, _, height, width = features.shape
    descriptors, slots, channels = weight.shape
    shape, new = (batch, descriptors, height * width), weight.new_empty
    moments = ((descriptors, slots), (descriptors, slots, slots)) if mean is None else ((0,), (0,))
    return (
        new(shape),
        new(shape, dtype=torch.int64),
        new(*shape, slots),
        new(*shape, 1),
        new(descriptors, channels),
        new(descriptors, channels),
        new(moments[0]),
        new(moments[1]),
    )


@torch.library.register_fake("agmh_fast::triton_peak_response")
def _triton_forward_fake(features, weight, projection, gamma, beta, mean, var, eps):  # type: ignore[no-untyped-def]
    batch, _, height, width = features.shape
    descriptors, slots, channels = weight.shape
    n, new = height * width, weight.new_empty
    moments = ((descriptors, slots), (descriptors, slots, slots)) if mean is None else ((0,), (0,))
    return (
        new(descriptors, batch, n).transpose(0, 1),
        new(descriptors, batch, n, dtype=torch.int16).transpose(0, 1),
        features.new_empty(descriptors, batch * n, slots),
        new(descriptors, batch * n),
        new(descriptors, channels),
        new(descriptors, channels),
        new(moments[0]),
        new(moments[1]),
    )


@torch.library.register_fake("agmh_fast::triton_peak_response_backward")
@torch.library.register_fake("agmh_fast::peak_response_backward")
def _backward_fake(grad, features, weight, projection, gamma, *saved_and_eps):  # type: ignore[no-untyped-def]
    like = torch.empty_like
    return _gradient_of(features), like(weight), like(projection), like(gamma), like(gamma)


class _PeakResponse(torch.autograd.Function):
    """Peaks (B, D, n) with the sparse gradient; also the batch's mean and biased variance of y (D, C), not
    differentiable. `pair` names the two ops that compute it.
    """

    @staticmethod
    def forward(ctx: Any, features, weight, projection, gamma, beta, bias, mean, var, eps: float, pair: str):  # type: ignore[no-untyped-def]
        op = getattr(torch.ops.agmh_fast, pair)
        saved = op(features, weight, projection, gamma, beta, mean, var, eps)
        ctx.save_for_backward(features, weight, projection, gamma, bias, *saved)
        ctx.eps, ctx.pair = eps, pair
        ctx.mark_non_differentiable(saved[4], saved[5])
        return saved[0], saved[4], saved[5]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
        features, weight, projection, gamma, bias, *saved = ctx.saved_tensors
        op = getattr(torch.ops.agmh_fast, f"{ctx.pair}_backward")
        grads = op(grad, features, weight, projection, gamma, *saved, ctx.eps)
        # b₁ cancels in the softmax: its zero gradient is given, so that weight decay and DDP see the parameter.
        return *grads, torch.zeros_like(bias), None, None, None, None


peak_response = Op("peak_response")

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def triton_obstacle(features: Tensor, params: AttentionParams, *_: Any) -> str | None:
    """Why the Triton kernels cannot serve these arguments, or None."""
    slots, channels = params.query.shape[2], params.descriptor_dim
    if features.device.type != "cuda":
        return f"its tensors must be on a CUDA device, and are on {features.device}"
    if not _HAS_TRITON:
        return "it needs the package triton: pip install triton"
    if capability(features.device) < 80:
        return "it needs a GPU of compute capability 8.0 or later"
    if features.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 and float16 features, not {features.dtype}"
    if slots > MAX_SLOTS or channels > MAX_CHANNELS:
        limit = f"{MAX_SLOTS} memory slots and {MAX_CHANNELS} channels a descriptor"
        return f"it takes at most {limit}, not {slots} and {channels}"
    if features.shape[1] * features.shape[2] * features.shape[3] >= 2**31:
        return "one image of the features must have fewer than 2³¹ elements"
    return None


@peak_response.register("triton", obstacle=triton_obstacle)
def _triton(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    return _collapsed("triton_peak_response", features, params, training, momentum, eps)


@peak_response.register("torch")
def _torch(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    return _collapsed("peak_response", features, params, training, momentum, eps)


def _collapsed(
    pair: str, features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float
) -> Tensor:
    """Peaks by one pair of ops; the running statistics follow the batch's when training."""
    batch, _, height, width = features.shape
    dtype = compute_dtype(features)
    weight, projection = collapse(params, dtype)
    gamma, beta = params.bn_weight.to(dtype), params.bn_bias.to(dtype)
    stats = (None, None) if training else (params.running_mean, params.running_var)
    bias = params.conv_bias
    peaks, mean, var = _PeakResponse.apply(features, weight, projection, gamma, beta, bias, *stats, eps, pair)
    if training:
        update_running(params, mean, var, batch * height * width, momentum)
    return peaks


@peak_response.register("reference")
def _reference(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    attended = attend_by_reference(features, params, training, momentum, eps)
    return torch.stack([x.max(dim=1).values.flatten(1) for x in attended], dim=1)
