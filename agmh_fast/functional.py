"""The functions users call, one a concept, all with `impl=`.

"reference": the formulas, slow; "torch": plain operators, any device; "triton": fused kernels, CUDA devices; "cpu" and
"cuda": the compiled engine.
impl="auto" takes the fastest that can serve the arguments; one asked for by name is used or raises InputError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agmh_fast.errors import InputError, first_line
from agmh_fast.ops import attention as _attention
from agmh_fast.ops import descriptor as _descriptor
from agmh_fast.ops import dispersion as _dispersion
from agmh_fast.ops import hashing as _hashing
from agmh_fast.ops import peak_response as _peak
from agmh_fast.ops.arrays import array_to_tensor
from agmh_fast.ops.attention import AttentionParams
from agmh_fast.ops.hamming import OPS as _HAMMING
from agmh_fast.ops.hamming import (
    hamming_distance,
    hamming_histogram,
    hamming_range,
    hamming_stable_ranking,
    hamming_topk,
)
from agmh_fast.ops.hashing import HashingLoss, HashingState
from agmh_fast.ops.registry import Choice, Op

__all__ = [
    "AttentionParams",
    "HashingLoss",
    "aggregation_maps",
    "asymmetric_hashing_loss",
    "attention_dispersion",
    "batch_norm_relu_mean",
    "encode_descriptors",
    "explain",
    "hamming_distance",
    "hamming_histogram",
    "hamming_range",
    "hamming_stable_ranking",
    "hamming_topk",
    "peak_response",
    "stepwise_external_attention",
    "update_database_codes",
]

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        _descriptor.batch_norm_relu_mean,
        _descriptor.encode_descriptors,
        _attention.stepwise_external_attention,
        _peak.peak_response,
        _dispersion.attention_dispersion,
        _hashing.hashing_loss,
        _hashing.discrete_step,
        *_HAMMING,
    )
}


def explain(op: str, *args: Any) -> Choice:
    """Which implementation `impl="auto"` takes for these tensors, and why not a faster one; print it for one line.

    op: the name of a function here; args: its first arguments, tensors or arrays, e.g. `explain("hamming_topk", q, x)`.
    Raises InputError for an unknown name, and for arguments that are too few to tell, or not that function's.
    """
    if op not in OPS:
        raise InputError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    given = [array_to_tensor("args", arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    try:
        return OPS[op].explain(*given)
    except (TypeError, AttributeError) as error:
        raise InputError(f"args must begin as those of functional.{op} do: {first_line(error)}") from error


def batch_norm_relu_mean(
    y: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Descriptors F = ReLU(BatchNorm(y)) and their mean over positions, in one call: (B, D·C, H, W) and (B, D·C).

    y: (B, D·C, H, W) floating, what the 1×1 convolution gives; gamma, beta and running_mean, running_var (D·C,). F has
    y's dtype, the mean is float32 (float64 for float64). training=True uses the batch's statistics and moves the
    running ones, where given, as `nn.BatchNorm2d` does; training=False uses the running ones. Differentiable in y,
    gamma and beta. Raises InputError for shapes, dtypes or devices that do not fit, and for fewer than two positions in
    training. Source: Lu et al. 2023, section 3.1.
    """
    _descriptor.check_batch_norm(y, gamma, beta, running_mean, running_var, training)
    args = (y, gamma, beta, running_mean, running_var, training, momentum, eps)
    return _descriptor.batch_norm_relu_mean(*args, impl=impl)


@torch.no_grad()
def encode_descriptors(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    hash_weight: Tensor,
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Codes straight from a backbone's features; the descriptors (B, D·C, H, W) are never stored.

    x: (B, C_in, H, W) floating; weight (D·C, C_in) and bias (D·C,) or None of the 1×1 convolution; gamma, beta,
    running_mean, running_var (D·C,) of BatchNorm; hash_weight Θ (bits, D·C). Returns packed codes (B, ceil(bits/8))
    uint8, as `pack_codes` gives them, and the logits Θv (B, bits) float32 (float64 for float64) whose signs they are.
    A NaN logit, which has no sign, gives bit 0: look at the logits where NaN may occur; this function does not, so that
    it never waits for a GPU. Under autocast the product is taken in its dtype. Not differentiable. Raises InputError
    for shapes, dtypes or devices that do not fit. Source: Lu et al. 2023, sections 3.1 and 3.4.
    """
    x, weight = _descriptor.autocast(x), _descriptor.autocast(weight)
    args = (x, weight, bias, gamma, beta, running_mean, running_var, hash_weight)
    _descriptor.check_encode(*args)
    return _descriptor.encode_descriptors(*args, eps, impl=impl)


def stepwise_external_attention(
    features: Tensor,
    params: AttentionParams,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Attended features ReLU(BN(W₂V a) + F), materialised: for pictures and equivalence, not for training.

    features: (B, D·C, H, W) floating; params: see `AttentionParams`. Returns the same shape and dtype. training=True
    uses and updates batch statistics as BatchNorm does, whose momentum and eps are these. Raises InputError for shapes,
    dtypes or devices that do not fit. Source: Lu et al. 2023, section 3.2.
    """
    _attention.check_features(features, params, training)
    return _attention.stepwise_external_attention(features, params, training, momentum, eps, impl=impl)


def peak_response(
    features: Tensor,
    params: AttentionParams,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Largest channel of the attended features at every position: M (B, D, H·W), float32 (float64 for float64
    features).

    Arguments and errors as `stepwise_external_attention`; the (B, D·C, H, W) attended features are never stored.
    """
    _attention.check_features(features, params, training)
    return _peak.peak_response(features, params, training, momentum, eps, impl=impl)


def aggregation_maps(
    features: Tensor,
    params: AttentionParams,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Where each descriptor looks: the softmax of its peak response over positions, (B, D, H, W), each map summing to
    1; of the dtype of `peak_response`, whose arguments and errors these are.
    """
    peaks = peak_response(features, params, training=training, momentum=momentum, eps=eps, impl=impl)
    return torch.softmax(peaks, dim=2).unflatten(2, features.shape[2:])


def attention_dispersion(
    features: Tensor,
    params: AttentionParams,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Attention Dispersion Loss: the mean pairwise overlap of the D aggregation maps, a scalar; 0 for D = 1.

    Arguments and errors as `peak_response`. Differentiable in features and every parameter. Source: Lu et al. 2023,
    section 3.3.
    """
    _attention.check_features(features, params, training)
    return _dispersion.attention_dispersion(features, params, training, momentum, eps, impl=impl)


def asymmetric_hashing_loss(
    embedding: Tensor, items: Tensor, state: HashingState, *, impl: str = "auto"
) -> HashingLoss:
    """Pairwise and quantization loss of a batch against all N database codes, in time independent of N.

    embedding: (B, bits) floating, differentiable; items: (B,) integer database positions of the batch (0 <= item < N;
    out of range is an IndexError on a CPU, and on a GPU NaN in the losses and the image's gradient, or with
    impl="torch" a device assertion); state: after `begin_iteration`. Returns scalars, at least float32. Source:
    docs/math.md §4; Jiang and Li, AAAI 2018.
    """
    _hashing.check_loss(embedding, items, state)
    return _hashing.hashing_loss(embedding, items, state, impl=impl)


def update_database_codes(state: HashingState, embeddings: Tensor, sampled: Tensor, *, impl: str = "auto") -> Tensor:
    """The discrete step: one sweep over the bits that lowers the loss; returns codes (N, bits) in {−1, +1} and stores
    them in `state`.

    embeddings: (m, bits) finite floating, of the items sampled (m,), the positions given to `begin_iteration`.
    Raises InputError for NaN or mismatched shapes; `state` is then unchanged. Source: Shen et al., SDH, CVPR 2015;
    docs/math.md §4.
    """
    _hashing.check_step(state, embeddings, sampled)
    with torch.no_grad():
        state.codes = state.whole(_hashing.discrete_step(state, embeddings, sampled.to(state.groups), impl=impl))
    return state.codes
