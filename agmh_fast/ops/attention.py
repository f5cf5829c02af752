"""Stepwise Interactive External Attention (SIEA): its parameters, its exact collapse, and its materialised output.

Lu et al. 2023, section 3.2; docs/math.md §1.4 and §2. D descriptors, C channels each, K memory slots, h heads, n = H·W
positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from agmh_fast.errors import InputError, require
from agmh_fast.ops.registry import Op
from agmh_fast.reference import attention as reference

SLOT_EPSILON = reference.SLOT_EPSILON


class AttentionParams(NamedTuple):
    """The published factors of D attentions, stacked: the first axis of every tensor is the descriptor.

    conv_weight (D, C, C) and conv_bias (D, C) are W₁ and b₁; query (D, h, K, C); mix (D, h−1, K, 2K); value (D, C, K);
    project (D, C, C) is W₂; bn_weight, bn_bias (D, C); running_mean, running_var (D, C) or None. All of one floating
    dtype.
    """

    conv_weight: Tensor
    conv_bias: Tensor
    query: Tensor
    mix: Tensor
    value: Tensor
    project: Tensor
    bn_weight: Tensor
    bn_bias: Tensor
    running_mean: Tensor | None = None
    running_var: Tensor | None = None

    @property
    def num_descriptors(self) -> int:
        """D."""
        return self.value.shape[0]

    @property
    def descriptor_dim(self) -> int:
        """C."""
        return self.value.shape[1]


def check_features(features: Tensor, params: AttentionParams, training: bool) -> None:
    """Raise InputError unless `features` is a floating (B, D·C, H, W) tensor that fits `params`."""
    channels = params.num_descriptors * params.descriptor_dim
    if features.dim() != 4 or features.shape[1] != channels:
        raise InputError(
            f"features must be (B, {channels}, H, W) for {params.num_descriptors} descriptors of "
            f"{params.descriptor_dim} channels, got {tuple(features.shape)}"
        )
    require(features.is_floating_point(), f"features must be floating point, got {features.dtype}")
    if features.device != params.value.device:
        raise InputError(f"features are on {features.device} and the attention's params on {params.value.device}")
    if training and features.numel() // channels < 2:
        raise InputError("features need at least two positions over the batch to train BatchNorm; got fewer")
    if not training and (params.running_mean is None or params.running_var is None):
        raise InputError("params.running_mean and params.running_var are needed when training=False")


def compute_dtype(features: Tensor) -> torch.dtype:
    """float64 stays; everything narrower is computed in float32."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def collapse(params: AttentionParams, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """W_z (D, K, C), from features to slot logits, and P = W₂V (D, C, K), from attention to the normalised output.

    Everything between the features and the softmax is linear, and so is everything between attention and the last BN.
    The bias b₁ shifts a slot's logits equally at all positions and cancels in the softmax.
    """
    with torch.autocast(params.value.device.type, enabled=False):
        query, mix = params.query.to(dtype), params.mix.to(dtype)
        # What each query is multiplied by after it, from the last step back: a step's left half goes on to the queries
        # before it, its right half is its own query's. unbind and split have a gradient of one launch, slices many.
        ahead, own = None, []
        for step in mix.unbind(1)[::-1]:
            ahead, right = (step if ahead is None else ahead @ step).split(query.shape[2], dim=2)
            own.append(right)
        composed = query.flatten(1, 2)
        if ahead is not None:
            composed = torch.cat([ahead, *own[::-1]], dim=2) @ composed
        return composed @ params.conv_weight.to(dtype), params.project.to(dtype) @ params.value.to(dtype)


def update_running(params: AttentionParams, mean: Tensor, var: Tensor, count: int, momentum: float) -> None:
    """Move the running statistics towards the batch's mean and (biased) var (D, C) over `count` positions, as
    BatchNorm does.
    """
    if params.running_mean is None or params.running_var is None:
        return
    with torch.no_grad():
        params.running_mean.lerp_(mean.to(params.running_mean.dtype), momentum)
        params.running_var.lerp_((var * (count / (count - 1))).to(params.running_var.dtype), momentum)


def attend_by_reference(
    features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float
) -> list[Tensor]:
    """The D attended descriptors (B, C, H, W), each by the reference module on that descriptor's parameters."""
    num_heads, slots = params.query.shape[1:3]
    with torch.device("meta"):
        module = reference.StepwiseExternalAttention(params.descriptor_dim, num_heads, slots)
    module.train(training)
    norm = module.conv2[1]
    norm.momentum, norm.eps = momentum, eps  # type: ignore[assignment]
    parts = features.chunk(params.num_descriptors, dim=1)
    return [functional_call(module, descriptor_state(params, d), (part,)) for d, part in enumerate(parts)]


def descriptor_state(params: AttentionParams, d: int) -> dict[str, Tensor]:
    """The tensors of descriptor `d` under the reference module's names and shapes (views)."""
    state = {
        "conv1.weight": params.conv_weight[d, :, :, None, None],
        "conv1.bias": params.conv_bias[d],
        "linear.weight": params.value[d, :, :, None],
        "conv2.0.weight": params.project[d, :, :, None, None],
        "conv2.1.weight": params.bn_weight[d],
        "conv2.1.bias": params.bn_bias[d],
    }
    state |= {f"qry_conv.{i}.weight": params.query[d, i, :, :, None] for i in range(params.query.shape[1])}
    state |= {f"alt_conv.{i}.weight": params.mix[d, i, :, :, None] for i in range(params.mix.shape[1])}
    if params.running_mean is not None and params.running_var is not None:
        state |= {"conv2.1.running_mean": params.running_mean[d], "conv2.1.running_var": params.running_var[d]}
    else:
        shape = params.bn_weight[d]
        state |= {"conv2.1.running_mean": torch.zeros_like(shape), "conv2.1.running_var": torch.ones_like(shape)}
    return state | {"conv2.1.num_batches_tracked": torch.zeros((), dtype=torch.int64, device=params.value.device)}


stepwise_external_attention = Op("stepwise_external_attention")


@stepwise_external_attention.register("torch")
def _collapsed(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    batch, _, height, width = features.shape
    dtype = compute_dtype(features)
    weight, projection = collapse(params, dtype)
    with torch.autocast(features.device.type, enabled=False):
        x = features.to(dtype).reshape(batch, params.num_descriptors, params.descriptor_dim, height * width)
        s = torch.softmax(weight @ x, dim=-1)
        y = projection @ (s / (SLOT_EPSILON + s.sum(dim=2, keepdim=True)))
        if training:
            var, mean = torch.var_mean(y, dim=(0, 3), correction=0)
            update_running(params, mean, var, batch * height * width, momentum)
        else:
            mean, var = params.running_mean.to(dtype), params.running_var.to(dtype)  # type: ignore[union-attr]
        scale = params.bn_weight.to(dtype) * torch.rsqrt(var + eps)
        out = torch.relu(y * scale[..., None] + (params.bn_bias.to(dtype) - mean * scale)[..., None] + x)
    return out.reshape(features.shape).to(features.dtype)


@stepwise_external_attention.register("reference")
def _reference(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    return torch.cat(attend_by_reference(features, params, training, momentum, eps), dim=1)
