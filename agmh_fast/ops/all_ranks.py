"""Batch statistics over the batches of all ranks of torch.distributed's default group, exact but for rounding.

Every rank computes its own images. BatchNorm over all of them needs their moments, and its gradient two sums a channel;
each is all-reduced. Parameters get the gradients of a rank's own images: their sum over ranks is that of all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from agmh_fast.ops import peak_response_cpu, peak_response_torch
from agmh_fast.ops.attention import AttentionParams, collapse, compute_dtype, update_running
from agmh_fast.ops.peak_response import cpu_obstacle
from agmh_fast.ops.peak_response_torch import PeakResponse


def total(*tensors: Tensor) -> list[Tensor]:
    """The sum over ranks of each tensor, by one all-reduce; all of one dtype."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def moments(mean: Tensor, cov: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """Mean (D, K), covariance (D, K, K) and number of all ranks' positions, from those of `count` positions here."""
    own, weighted = mean.double(), torch.tensor([float(count)], dtype=torch.float64, device=mean.device)
    (sums, number) = total(count * own, weighted)
    whole = sums / number
    away = own - whole
    (spread,) = total(count * (cov.double() + away[..., :, None] * away[..., None, :]))
    return whole.to(mean.dtype), (spread / number).to(cov.dtype), int(number)


def peak_response(features: Tensor, params: AttentionParams, momentum: float, eps: float) -> Tensor:
    """`functional.peak_response` in training mode with the batch statistics of all ranks: M (B, D, H·W) of own images.

    Compiled on a CPU, plain torch operators elsewhere. Every rank must call it.
    """
    dtype = compute_dtype(features)
    weight, projection = collapse(params, dtype)
    gamma, beta = params.bn_weight.to(dtype), params.bn_bias.to(dtype)
    compiled = cpu_obstacle(features) is None
    peaks, mean, var, count = _PeakResponse.apply(
        features, weight, projection, gamma, beta, params.conv_bias, eps, compiled
    )
    update_running(params, mean, var, int(count), momentum)
    return peaks


class _PeakResponse(torch.autograd.Function):
    """As that of `peak_response`, its moments and its sums all-reduced."""

    @staticmethod
    def forward(ctx: Any, features, weight, projection, gamma, beta, bias, eps: float, compiled: bool):  # type: ignore[no-untyped-def]
        implementation: Any = peak_response_cpu if compiled else peak_response_torch
        seen: list[int] = []

        def merged(mu: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
            mu, cov, count = moments(mu, cov, features.shape[0] * features.shape[2] * features.shape[3])
            seen.append(count)
            return mu, cov

        with torch.autocast(features.device.type, enabled=False):
            saved = implementation.peak_response_forward(features, weight, projection, gamma, beta, None, eps, merged)
        ctx.save_for_backward(features, weight, projection, gamma, bias, *saved)
        ctx.eps, ctx.implementation, ctx.count = eps, implementation, seen[0]
        count = torch.tensor(seen[0])
        ctx.mark_non_differentiable(saved.mean, saved.var, count)
        return saved.peaks, saved.mean, saved.var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
        features, weight, projection, gamma, bias, *saved = ctx.saved_tensors

        def summed(S: Tensor, dbeta: Tensor) -> tuple[Tensor, Tensor, int]:
            return *total(S, dbeta), ctx.count

        with torch.autocast(features.device.type, enabled=False):
            grads = ctx.implementation.peak_response_backward(
                grad, features, weight, projection, gamma, PeakResponse(*saved), ctx.eps, summed
            )
        return *grads, torch.zeros_like(bias), None, None


class BatchNorm(torch.autograd.Function):
    """BatchNorm of x (B, C, H, W) by the statistics of all ranks; also mean and biased variance (C,) and the count."""

    @staticmethod
    def forward(ctx: Any, x, weight, bias, eps: float):  # type: ignore[no-untyped-def]
        wide, dims = x.to(compute_dtype(x)), (0, 2, 3)
        number = wide.new_tensor([wide.numel() // wide.shape[1]])
        sums, count = total(wide.sum(dims), number)
        mean = sums / count
        (squares,) = total((wide - mean[:, None, None]).square().sum(dims))
        var = squares / count
        rate = torch.rsqrt(var + eps)
        scale = rate * weight.to(rate.dtype)
        y = torch.addcmul((bias - mean * scale)[:, None, None], wide, scale[:, None, None])
        ctx.save_for_backward(x, weight, mean, rate, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor):  # type: ignore[no-untyped-def]
        x, weight, mean, rate, count = ctx.saved_tensors
        grad, dims = grad.to(rate.dtype), (0, 2, 3)
        normal = (x.to(rate.dtype) - mean[:, None, None]) * rate[:, None, None]
        dbias, dweight = grad.sum(dims), (grad * normal).sum(dims)
        whole_bias, whole_weight = total(dbias, dweight)
        own = grad - (whole_bias[:, None, None] + normal * whole_weight[:, None, None]) / count
        dx = own.mul_((weight.to(rate.dtype) * rate)[:, None, None])
        return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype), None
