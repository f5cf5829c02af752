"""Descriptors: all D groups of C channels by one convolution, one BatchNorm and one ReLU."""

from __future__ import annotations

import math

from torch import Tensor, nn


class DescriptorGroup(nn.Module):
    """(B, in_channels, H, W) -> (B, D·C, H, W); descriptor d owns channels [d·C, (d+1)·C). Source: Lu et al. 2023,
    section 3.1.
    """

    def __init__(self, in_channels: int, num_descriptors: int, descriptor_dim: int) -> None:
        super().__init__()
        channels = num_descriptors * descriptor_dim
        self.conv = nn.Conv2d(in_channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        # Kaiming's fan-out is that of one descriptor: they are separate convolutions side by side.
        nn.init.normal_(self.conv.weight, 0, math.sqrt(2 / descriptor_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu_()
