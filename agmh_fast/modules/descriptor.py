"""Descriptors: all D groups of C channels by one convolution, one BatchNorm and one ReLU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from agmh_fast import functional
from agmh_fast.errors import require, require_int
from agmh_fast.ops import all_ranks


class DescriptorGroup(nn.Module):
    """(B, in_channels, H, W) -> descriptors (B, D·C, H, W) and their mean over positions (B, D·C); descriptor d owns
    channels [d·C, (d+1)·C). Source: Lu et al. 2023, section 3.1.

    impl: which implementation normalises and encodes; "auto" where it has none of that name. A `conv` or `bn` that was
    replaced, hooked or set to statistics of another kind runs as the module it is.
    """

    def __init__(self, in_channels: int, num_descriptors: int, descriptor_dim: int, impl: str = "auto") -> None:
        super().__init__()
        names = {"auto"}.union(*(op.implementations for op in functional.OPS.values()))
        require(impl in names, f"impl must be one of {', '.join(sorted(names))}, got {impl!r}")
        dim = require_int("descriptor_dim", descriptor_dim, 1)
        channels = require_int("num_descriptors", num_descriptors, 1) * dim
        self.conv = nn.Conv2d(in_channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.impl = impl
        # Kaiming's fan-out is that of one descriptor: they are separate convolutions side by side.
        nn.init.normal_(self.conv.weight, 0, math.sqrt(2 / dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors and their mean of x (B, in_channels, H, W); errors as `functional.batch_norm_relu_mean`."""
        y, bn = self.conv(x), self.bn
        running = self._running(nn.BatchNorm2d)
        if running is None:
            features = bn(y).relu_()
            return features, mean(features)
        if bn.training and bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
        *statistics, momentum = running
        return functional.batch_norm_relu_mean(
            y, bn.weight, bn.bias, *statistics,
            training=bn.training, momentum=momentum, eps=bn.eps, impl=self._impl("batch_norm_relu_mean"),
        )  # fmt: skip

    def encode(self, x: Tensor, hash_weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """Codes and logits by `functional.encode_descriptors`, from running statistics; None if the modules are not
        those that it computes.
        """
        conv, bn = self.conv, self.bn
        running = self._running(nn.BatchNorm2d, nn.SyncBatchNorm, SyncedBatchNorm2d)
        if running is None or not untouched(conv, nn.Conv2d):
            return None
        if (conv.kernel_size, conv.stride, conv.padding, conv.groups) != ((1, 1), (1, 1), (0, 0), 1):
            return None
        return functional.encode_descriptors(
            x, conv.weight.flatten(1), conv.bias, bn.weight, bn.bias, *running[:2], hash_weight,
            eps=bn.eps, impl=self._impl("encode_descriptors"),
        )  # fmt: skip

    def _running(self, *kinds: type[nn.Module]) -> tuple[Tensor, Tensor, float] | None:
        """Running mean, variance and momentum of `bn` if it is of one of these types and tracks in the usual way."""
        bn = self.bn
        if not (untouched(bn, *kinds) and bn.affine and bn.track_running_stats):
            return None
        if bn.running_mean is None or bn.running_var is None or bn.momentum is None:
            return None
        return bn.running_mean, bn.running_var, bn.momentum

    def _impl(self, op: str) -> str:
        return self.impl if self.impl in functional.OPS[op].implementations else "auto"


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm by the statistics of all ranks' batches in training, on any device; its own kind otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, batch_mean, var, count = all_ranks.BatchNorm.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(batch_mean.to(self.running_mean.dtype), momentum)
            unbiased = var * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return y


def mean(features: Tensor) -> Tensor:
    """Mean over positions (B, D·C) of features (B, D·C, H, W), float32 (float64 for float64)."""
    return features.mean(dim=(2, 3), dtype=torch.float64 if features.dtype == torch.float64 else torch.float32)


def untouched(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of exactly one of these types and has no hook, so that its parameters say what it does."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) in kinds and not any(hooks)
