"""Attention Dispersion Loss (ADL): the mean overlap of the descriptors' aggregation maps. docs/math.md §1.5.

P_d is the softmax of descriptor d's peak response over positions; with D maps of B images,
ADL = 2/(D(D−1)B) Σ_b Σ_{i<j} ⟨P_i, P_j⟩ = (‖Σ_d P_d‖² − Σ_d ‖P_d‖²) / (D(D−1)B).
"""

from __future__ import annotations

import torch
from torch import Tensor

from agmh_fast.ops import peak_response_triton
from agmh_fast.ops.attention import AttentionParams
from agmh_fast.ops.peak_response import cpu_obstacle, peak_response
from agmh_fast.ops.registry import Op
from agmh_fast.reference import dispersion as reference


def overlap(maps: Tensor) -> Tensor:
    """Mean pairwise overlap of aggregation maps (B, D, n): a scalar, 0 for a single descriptor."""
    batch, descriptors, _ = maps.shape
    pairs = descriptors * (descriptors - 1)
    return (maps.sum(dim=1).square().sum() - maps.square().sum()) / (max(pairs, 1) * batch)


attention_dispersion = Op("attention_dispersion")


@attention_dispersion.register("triton", obstacle=peak_response_triton.dispersion_obstacle)
def _triton(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    collapsed = peak_response_triton.collapsed(params)
    return peak_response_triton.dispersion(features, collapsed, training, momentum, eps)


@attention_dispersion.register("cpu", obstacle=cpu_obstacle)
def _cpu(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    return _dispersion("cpu", features, params, training, momentum, eps)


@attention_dispersion.register("torch")
def _torch(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    return _dispersion("torch", features, params, training, momentum, eps)


def _dispersion(
    impl: str, features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float
) -> Tensor:
    peaks = peak_response(features, params, training, momentum, eps, impl=impl)
    return overlap(torch.softmax(peaks, dim=2))


@attention_dispersion.register("reference")
def _reference(features: Tensor, params: AttentionParams, training: bool, momentum: float, eps: float) -> Tensor:
    peaks = peak_response(features, params, training, momentum, eps, impl="reference")
    return reference.overlap([torch.softmax(m, dim=-1) for m in peaks.unbind(1)])
