"""Peaks and their dispersion loss by the Triton kernels: two pairs of ops, forward and backward, and their gradients.

The ops are opaque to torch.compile. In training they also move the running statistics; what forward gives goes to
backward as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from agmh_fast.kernels.common.memory import like
from agmh_fast.kernels.dispersion.config import MAX_DESCRIPTORS
from agmh_fast.kernels.peak_response.config import MAX_CHANNELS, MAX_SLOTS
from agmh_fast.ops.attention import AttentionParams, collapse
from agmh_fast.ops.gpu import features_obstacle

_INPUTS = "Tensor features, Tensor weight, Tensor projection, Tensor gamma, Tensor beta"
_SETTINGS = "Tensor(a!)? running_mean, Tensor(b!)? running_var, bool training, float momentum, float eps"
_SAVED = (
    "Tensor peaks, Tensor channel, Tensor attention, Tensor slot_sum, Tensor mean, Tensor var, Tensor attention_mean, "
    "Tensor attention_cov"
)
_BACKWARD = f"Tensor grad, Tensor features, Tensor weight, Tensor projection, Tensor gamma, {_SAVED}"
_GRADS = ", ".join(["Tensor"] * 5)

_library = torch.library.Library("agmh_fast", "FRAGMENT")
_library.define(f"triton_peak_response({_INPUTS}, {_SETTINGS}) -> ({', '.join(['Tensor'] * 8)})")
_library.define(f"triton_peak_response_backward({_BACKWARD}, float eps) -> ({_GRADS})")
_library.define(f"triton_attention_dispersion({_INPUTS}, {_SETTINGS}) -> ({', '.join(['Tensor'] * 10)})")
_library.define(f"triton_attention_dispersion_backward({_BACKWARD}, Tensor rows, float eps) -> ({_GRADS})")


@torch.library.impl(_library, "triton_peak_response", "CompositeExplicitAutograd")
def _peaks(features, *args, ticket=None):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.peak_response import fwd

    *parameters, running_mean, running_var, training, momentum, eps = args
    running = (running_mean, running_var)
    if training:
        # Kernels write past autograd's knowledge.
        torch.autograd.graph.increment_version([x for x in running if x is not None and not x.is_inference()])
    with torch.cuda.device_of(features):
        if training:
            return fwd.forward(features, *parameters, None, eps, running, momentum, ticket)
        return fwd.forward(features, *parameters, running, eps, ticket=ticket)


@torch.library.impl(_library, "triton_peak_response_backward", "CompositeExplicitAutograd")
def _peaks_backward(grad, features, *args):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.peak_response import bwd

    with torch.cuda.device_of(features):
        return bwd.backward(grad, features, *args)


@torch.library.impl(_library, "triton_attention_dispersion", "CompositeExplicitAutograd")
def _dispersion(features, *args):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.dispersion import kernel

    ticket = features.new_empty(1, dtype=torch.int32)
    saved = _peaks(features, *args, ticket=ticket)
    with torch.cuda.device_of(features):
        loss, rows = kernel.forward(saved[0], ticket)
    return loss, *saved, rows


@torch.library.impl(_library, "triton_attention_dispersion_backward", "CompositeExplicitAutograd")
def _dispersion_backward(grad, features, weight, projection, gamma, peaks, *args):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.dispersion import kernel

    *saved, rows, eps = args
    with torch.cuda.device_of(features):
        dpeaks = kernel.backward(grad, peaks, rows)
    return _peaks_backward(dpeaks, features, weight, projection, gamma, peaks, *saved, eps)


@torch.library.register_fake("agmh_fast::triton_peak_response")
def _peaks_fake(features, weight, projection, gamma, beta, running_mean, running_var, training, momentum, eps):  # type: ignore[no-untyped-def]
    batch, _, height, width = features.shape
    descriptors, slots, channels = weight.shape
    n, new = height * width, weight.new_empty
    moments = ((descriptors, slots), (descriptors, slots, slots)) if training else ((0,), (0,))
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


@torch.library.register_fake("agmh_fast::triton_attention_dispersion")
def _dispersion_fake(features, weight, *args):  # type: ignore[no-untyped-def]
    new = weight.new_empty
    return new(()), *_peaks_fake(features, weight, *args), new(3, weight.shape[0], features.shape[0])


@torch.library.register_fake("agmh_fast::triton_peak_response_backward")
@torch.library.register_fake("agmh_fast::triton_attention_dispersion_backward")
def _backward_fake(grad, features, weight, projection, gamma, *args):  # type: ignore[no-untyped-def]
    parameters = (torch.empty_like(x) for x in (weight, projection, gamma, gamma))
    return like(features), *parameters


class _Kernels(torch.autograd.Function):
    """Peaks (B, D, n) or their dispersion loss () with the sparse gradient; `pair` names the two ops."""

    @staticmethod
    def forward(ctx: Any, pair: str, features, weight, projection, gamma, beta, bias, *settings):  # type: ignore[no-untyped-def]
        op = getattr(torch.ops.agmh_fast, pair)
        outputs = op(features, weight, projection, gamma, beta, *settings)
        saved = outputs if pair == "triton_peak_response" else outputs[1:]
        ctx.save_for_backward(bias, features, weight, projection, gamma, *saved)
        ctx.eps, ctx.pair = settings[-1], pair
        return outputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # type: ignore[no-untyped-def]
        bias, *saved = ctx.saved_tensors
        op = getattr(torch.ops.agmh_fast, f"{ctx.pair}_backward")
        # b₁ cancels in the softmax: its zero gradient is given, so that weight decay and DDP see the parameter.
        return None, *op(grad, *saved, ctx.eps), torch.zeros_like(bias), *[None] * 5


def collapsed(params: AttentionParams) -> tuple[Tensor | None, ...]:
    """What the kernels take of the parameters: W_z, P, γ, β in float32, b₁, running mean and variance."""
    weight, projection = (x.contiguous() for x in collapse(params, torch.float32))
    gamma, beta = (x.to(torch.float32).contiguous() for x in (params.bn_weight, params.bn_bias))
    return weight, projection, gamma, beta, params.conv_bias, params.running_mean, params.running_var


def peaks(
    features: Tensor, collapsed: tuple[Tensor | None, ...], training: bool, momentum: float, eps: float
) -> Tensor:
    """Peaks (B, D, n) float32 by the kernels."""
    return _Kernels.apply("triton_peak_response", features, *collapsed, training, momentum, eps)


def dispersion(
    features: Tensor, collapsed: tuple[Tensor | None, ...], training: bool, momentum: float, eps: float
) -> Tensor:
    """Dispersion loss () float32 by the kernels."""
    return _Kernels.apply("triton_attention_dispersion", features, *collapsed, training, momentum, eps)


def kernel_obstacle(features: Tensor, params: AttentionParams, *_: Any) -> str | None:
    """Why the kernels cannot compute these peaks, or None."""
    slots, channels = params.query.shape[2], params.descriptor_dim
    if (obstacle := features_obstacle("features", features)) is not None:
        return obstacle
    if slots > MAX_SLOTS or channels > MAX_CHANNELS:
        limit = f"{MAX_SLOTS} memory slots and {MAX_CHANNELS} channels a descriptor"
        return f"it takes at most {limit}, not {slots} and {channels}"
    return None


def dispersion_obstacle(features: Tensor, params: AttentionParams, *_: Any) -> str | None:
    """Why the kernels cannot compute this dispersion loss, or None."""
    if (obstacle := kernel_obstacle(features, params)) is not None:
        return obstacle
    if params.num_descriptors > MAX_DESCRIPTORS:
        return f"it takes at most {MAX_DESCRIPTORS} descriptors, not {params.num_descriptors}"
    return None
