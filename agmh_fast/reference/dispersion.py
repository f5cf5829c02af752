"""Attention Dispersion Loss (ADL): descriptors should look at different places. Lu et al. 2023, section 3.3.

M_d(p) = max over channels of out_d;  P_d = softmax of M_d over positions;
ADL = 2 / (D(D−1)B) · Σ_b Σ_{i<j} ⟨P_i, P_j⟩
"""

from __future__ import annotations

import torch
from torch import Tensor


def aggregation_map(attended: Tensor) -> Tensor:
    """P of one descriptor: (B, C, H, W) -> (B, n), each row a distribution over positions."""
    return torch.softmax(attended.max(dim=1).values.flatten(1), dim=-1)


def overlap(maps: list[Tensor]) -> Tensor:
    """Mean pairwise overlap of D aggregation maps (B, n): a scalar, 0 for a single descriptor."""
    batch, count = maps[0].shape[0], len(maps)
    total = maps[0].new_zeros(())
    for i in range(count):
        for j in range(i + 1, count):
            total = total + (maps[i] * maps[j]).sum()
    return 2 * total / (count * (count - 1) * batch) if count > 1 else total


def attention_dispersion(attended: list[Tensor]) -> Tensor:
    """ADL of D attended descriptors (B, C, H, W): a scalar."""
    return overlap([aggregation_map(x) for x in attended])
