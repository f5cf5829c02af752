"""Peak response: the largest channel of the attended features at every position, M = max_c ReLU(BN(P a) + F).

docs/math.md §2 and §3. All D descriptors at once; no (C, n) attention map is stored. The gradient of a channel max has
one entry a position, so backward needs the attention a, the arg max c* and the features only.

    forward:   a from W_z F;  mean_y = P μ, var_y = diag(P Σ Pᵀ);  M = max(0, max_c [P'_c·a + shift_c + F_c])
    backward:  S_c = Σ_{c*=c} g a,  dβ_c = Σ_{c*=c} g,  dγ = r (P·S − mean_y dβ),
               da = g P'_{c*} − P'ᵀdβ/T − R (a − μ),  dF = W_zᵀ dz + g at c*
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from agmh_fast.kernels.common.memory import like
from agmh_fast.ops import compiled, peak_response_cpu, peak_response_torch, peak_response_triton
from agmh_fast.ops.attention import AttentionParams, attend_by_reference, collapse, compute_dtype, update_running
from agmh_fast.ops.peak_response_torch import PeakResponse
from agmh_fast.ops.registry import Op

# Opaque to torch.compile: tracing through the loop over images would unroll it for every batch size. Each
# implementation has a pair of ops with one signature; what forward gives goes to backward as it is, in its own layout.
_library = torch.library.Library("agmh_fast", "FRAGMENT")


def _define(pair: str, implementation: ModuleType) -> None:
    """The pair of ops that `implementation` computes, outside autocast."""
    _library.define(
        f"{pair}(Tensor features, Tensor weight, Tensor projection, Tensor gamma, Tensor beta, Tensor? mean, "
        "Tensor? var, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    )
    _library.define(
        f"{pair}_backward(Tensor grad, Tensor features, Tensor weight, Tensor projection, Tensor gamma, "
        "Tensor peaks, Tensor channel, Tensor attention, Tensor slot_sum, Tensor mean, Tensor var, "
        "Tensor attention_mean, Tensor attention_cov, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    )

    @torch.library.impl(_library, pair, "CompositeExplicitAutograd")
    def forward(features, weight, projection, gamma, beta, mean, var, eps):  # type: ignore[no-untyped-def]
        args = (features, weight, projection, gamma, beta, None if mean is None else (mean, var), eps)
        with torch.autocast(features.device.type, enabled=False):
            return tuple(implementation.peak_response_forward(*args))

    @torch.library.impl(_library, f"{pair}_backward", "CompositeExplicitAutograd")
    def backward(grad, features, weight, projection, gamma, *saved_and_eps):  # type: ignore[no-untyped-def]
        *saved, eps = saved_and_eps
        args = (grad, features, weight, projection, gamma, PeakResponse(*saved), eps)
        with torch.autocast(features.device.type, enabled=False):
            return implementation.peak_response_backward(*args)


_define("peak_response", peak_response_torch)
_define("cpu_peak_response", peak_response_cpu)


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


@torch.library.register_fake("agmh_fast::cpu_peak_response")
def _cpu_forward_fake(features, weight, projection, gamma, beta, mean, var, eps):  # type: ignore[no-untyped-def]
    peaks, channel, attention, slot_sum, *rest = _forward_fake(
        features, weight, projection, gamma, beta, mean, var, eps
    )
    panels = -(-attention.shape[3] // peak_response_cpu.PANEL)
    wide = attention.new_empty(*attention.shape[:3], panels * peak_response_cpu.PANEL)
    return peaks, channel.to(torch.int32), wide, slot_sum[..., 0], *rest


@torch.library.register_fake("agmh_fast::cpu_peak_response_backward")
@torch.library.register_fake("agmh_fast::peak_response_backward")
def _backward_fake(grad, features, weight, projection, gamma, *saved_and_eps):  # type: ignore[no-untyped-def]
    parameters = (torch.empty_like(x) for x in (weight, projection, gamma, gamma))
    return like(features), *parameters


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


@peak_response.register("triton", obstacle=peak_response_triton.kernel_obstacle)
def _triton(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    collapsed = peak_response_triton.collapsed(params)
    return peak_response_triton.peaks(features, collapsed, training, momentum, eps)


def cpu_obstacle(features: Tensor, *_: Any) -> str | None:
    """Why the compiled CPU ops cannot serve these arguments, or None."""
    if (obstacle := compiled.cpu_obstacle("the features", features)) is not None:
        return obstacle
    if features.dtype not in (torch.float32, torch.bfloat16):
        return f"features must be float32 or bfloat16, and are {features.dtype}"
    return None


@peak_response.register("cpu", obstacle=cpu_obstacle)
def _cpu(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    return _collapsed("cpu_peak_response", features, params, training, momentum, eps)


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
