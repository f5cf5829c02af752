"""SIEA for D descriptors as one module; only its attention map's peaks are needed in training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from agmh_fast import functional
from agmh_fast.errors import require_int
from agmh_fast.ops import all_ranks
from agmh_fast.ops.attention import AttentionParams
from agmh_fast.ops.dispersion import overlap


class StepwiseExternalAttention(nn.Module):
    """Stepwise Interactive External Attention of D descriptors, parameters stacked over descriptors.

    `forward` is the Attention Dispersion Loss of features (B, D·C, H, W), a scalar; `maps` is where each descriptor
    looks, `attended` the materialised output. Batch statistics are used and tracked in training mode, as BatchNorm
    does. Source: Lu et al. 2023, sections 3.2 and 3.3.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_descriptors: int,
        descriptor_dim: int,
        num_heads: int = 4,
        memory_size: int = 128,
        momentum: float = 0.1,
        eps: float = 1e-5,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        d = require_int("num_descriptors", num_descriptors, 1)
        c = require_int("descriptor_dim", descriptor_dim, 1)
        h = require_int("num_heads", num_heads, 1)
        k = require_int("memory_size", memory_size, 1)
        self.momentum, self.eps, self.impl = momentum, eps, impl
        # Whether batch statistics are those of all ranks: modules.synced.
        self.synced = False
        self.conv_weight = nn.Parameter(torch.empty(d, c, c))
        self.conv_bias = nn.Parameter(torch.empty(d, c))
        self.query = nn.Parameter(torch.empty(d, h, k, c))
        self.mix = nn.Parameter(torch.empty(d, h - 1, k, 2 * k))
        self.value = nn.Parameter(torch.empty(d, c, k))
        self.project = nn.Parameter(torch.empty(d, c, c))
        self.bn_weight = nn.Parameter(torch.ones(d, c))
        self.bn_bias = nn.Parameter(torch.zeros(d, c))
        self.register_buffer("running_mean", torch.zeros(d, c))
        self.register_buffer("running_var", torch.ones(d, c))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published initialisation: normal with variance 2 / out_channels; BN 1 and 0."""
        for weight in (self.conv_weight, self.query, self.mix, self.value, self.project):
            nn.init.normal_(weight, 0, math.sqrt(2 / weight.shape[-2]))
        bound = 1 / math.sqrt(self.conv_bias.shape[1])
        nn.init.uniform_(self.conv_bias, -bound, bound)
        nn.init.ones_(self.bn_weight)
        nn.init.zeros_(self.bn_bias)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    @property
    def params(self) -> AttentionParams:
        """The parameters and buffers as the functions take them."""
        return AttentionParams(
            self.conv_weight,
            self.conv_bias,
            self.query,
            self.mix,
            self.value,
            self.project,
            self.bn_weight,
            self.bn_bias,
            self.running_mean,
            self.running_var,
        )

    def forward(self, features: Tensor) -> Tensor:
        """The loss, a scalar, of features (B, D·C, H, W); errors as `functional.attention_dispersion`."""
        if self.training:
            self.num_batches_tracked.add_(1)
            if self.synced:
                peaks = all_ranks.peak_response(features, self.params, self.momentum, self.eps)
                return overlap(torch.softmax(peaks, dim=2))
        return functional.attention_dispersion(
            features, self.params, training=self.training, momentum=self.momentum, eps=self.eps, impl=self.impl
        )

    def maps(self, features: Tensor) -> Tensor:
        """Aggregation maps (B, D, H, W), each summing to 1, from running statistics."""
        return functional.aggregation_maps(features, self.params, training=False, eps=self.eps, impl=self.impl)

    def attended(self, features: Tensor) -> Tensor:
        """Attended features (B, D·C, H, W) from running statistics."""
        return functional.stepwise_external_attention(
            features, self.params, training=False, eps=self.eps, impl=self.impl
        )

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        d, h, k, c = self.query.shape
        return f"num_descriptors={d}, descriptor_dim={c}, num_heads={h}, memory_size={k}, impl={self.impl!r}"
