"""Descriptors: D groups of C channels out of the backbone's features, and the embedding read from them.

F_d = ReLU(BN_d(W_d X + b_d)), v = concat_d mean_p F_d, u = tanh(Θ v). Lu et al. 2023, section 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class DescriptorGroup(nn.Module):
    """D separate 1×1 convolutions with BN and ReLU: (B, in_channels, H, W) -> list of D tensors (B, C, H, W)."""

    def __init__(self, in_channels: int, num_descriptors: int, descriptor_dim: int) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels, descriptor_dim, 1), nn.BatchNorm2d(descriptor_dim), nn.ReLU())
            for _ in range(num_descriptors)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        return [conv(x) for conv in self.conv_list]


class HashLayer(nn.Module):
    """Mean over positions, concatenation and Θ: list of D tensors (B, C, H, W) -> embedding (B, bits) in (-1, 1)."""

    def __init__(self, features: int, bits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(bits, features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, descriptors: list[Tensor]) -> Tensor:
        pooled = torch.cat([f.mean(dim=(2, 3)) for f in descriptors], dim=1)
        return torch.tanh(pooled @ self.weight.T)
