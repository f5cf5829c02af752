"""Stepwise Interactive External Attention (SIEA), one descriptor at a time.

x' = W₁F + b₁;  q_i = Q_i x';  z ← q₁;  z ← A_i [z; q_{i+1}];
s = softmax of z over positions;  a = s / (1e-9 + Σ_slots s);  y = W₂ V a;  out = ReLU(BN(y) + F)

Lu et al. 2023, section 3.2; docs/math.md §1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOT_EPSILON = 1e-9


class StepwiseExternalAttention(nn.Module):
    """SIEA of one descriptor, (B, C, H, W) -> (B, C, H, W), built from the modules and names of the paper's code.

    `memory_size` is K, the number of memory slots; `num_heads` is h, the number of interaction steps.
    """

    def __init__(self, dim: int, num_heads: int = 4, memory_size: int = 128) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.qry_conv = nn.ModuleList(nn.Conv1d(dim, memory_size, 1, bias=False) for _ in range(num_heads))
        self.alt_conv = nn.ModuleList(
            nn.Conv1d(2 * memory_size, memory_size, 1, bias=False) for _ in range(num_heads - 1)
        )
        self.linear = nn.Conv1d(memory_size, dim, 1, bias=False)
        self.conv2 = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim))
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                nn.init.normal_(module.weight, 0, math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))

    def attention(self, x: Tensor) -> Tensor:
        """a, the attention of every position to every memory slot: (B, K, n)."""
        x = self.conv1(x).flatten(2)
        queries = [conv(x) for conv in self.qry_conv]
        z = queries[0]
        for mix, query in zip(self.alt_conv, queries[1:], strict=True):
            z = mix(torch.cat([z, query], dim=1))
        s = torch.softmax(z, dim=-1)
        return s / (SLOT_EPSILON + s.sum(dim=1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(self.attention(x)).unflatten(2, x.shape[2:])
        return F.relu(self.conv2(y) + x)
