"""Peak response by the compiled CPU ops: csrc/attention does what grows with the batch, torch what does not.

The same signatures and formulas as `peak_response_torch`; attention is (B, D, n, K padded to 32), channels int32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agmh_fast.kernels.common.memory import like
from agmh_fast.ops.peak_response_torch import Merge, PeakResponse, Total, affine, parameter_gradients, statistics

# Slots are padded to a multiple of it, `kPanel` of csrc/attention.
PANEL = 32


def _evenly_spaced(features: Tensor) -> Tensor:
    """The features where the compiled ops can walk over their positions by one stride, else a contiguous copy."""
    _, _, height, width = features.shape
    even = height == 1 or width == 1 or features.stride(2) == width * features.stride(3)
    return features if even else features.contiguous()


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
    """As `peak_response_torch.peak_response_forward`; features float32 or bfloat16, the rest float32."""
    features, ops = _evenly_spaced(features), torch.ops.agmh_fast
    attention, slot_sum, mu, cov = ops.attend(features, weight.contiguous(), stats is None)
    mu, cov = mu.to(weight.dtype), cov.to(weight.dtype)
    if stats is None:
        mu, cov = merge(mu, cov) if merge else (mu, cov)
        mean, var = statistics(projection, mu, cov)
    else:
        mu, cov = mu.flatten(), cov.flatten()
        mean, var = (statistic.to(weight.dtype, copy=True) for statistic in stats)
    scaled, shift = affine(projection, gamma, beta, mean, var, eps)
    peaks, channel = ops.peak(features, attention, scaled.contiguous(), shift)
    return PeakResponse(peaks, channel, attention, slot_sum, mean, var, mu, cov)


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
    """As `peak_response_torch.peak_response_backward`."""
    ops, weight = torch.ops.agmh_fast, weight.contiguous()
    _, slots, channels = weight.shape
    g = torch.where(saved.peaks > 0, grad, 0).contiguous()
    S, dbeta = ops.channel_sums(g, saved.channel, saved.attention, channels, slots)
    scaled, feedback, offset, dprojection, dgamma = parameter_gradients(S, dbeta, projection, gamma, saved, eps, total)
    dfeatures, dweight = like(features), torch.empty_like(weight)
    ops.spread(
        _evenly_spaced(features),
        g,
        saved.channel,
        saved.attention,
        saved.slot_sum,
        weight,
        scaled.contiguous(),
        None if feedback is None else feedback.contiguous(),
        None if offset is None else offset[:, 0].contiguous(),
        dfeatures,
        dweight,
    )
    return dfeatures, dweight, dprojection, dgamma, dbeta
