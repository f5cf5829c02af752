"""Descriptors: BatchNorm, ReLU and the mean over positions in training, and images' features to codes in one go.

docs/math.md §1.2 and §1.3. y is the convolution's output, F = ReLU(BN(y)), v its mean over positions, code = sign(Θv).

    backward:  g = (dF + dv/n) [F > 0],  dβ = Σ g,  dγ = Σ g x̂,  dy = γ/σ (g − dβ/T − x̂ dγ/T),  T = B·n
    encoding:  v = mean of ReLU(γ/σ (W x + b − mean) + β); neither y nor F is ever stored whole
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from agmh_fast.errors import InputError, require
from agmh_fast.kernels.common.memory import like
from agmh_fast.ops.codes import MAX_BITS, pack_bits
from agmh_fast.ops.gpu import features_obstacle
from agmh_fast.ops.registry import Op
from agmh_fast.reference import codes as reference

# Positions and channels encoded at a time. On a CPU the block stays in its cache.
_CPU_BLOCK = (2048, 512)
_GPU_BLOCK = (16384, 4096)

_library = torch.library.Library("agmh_fast", "FRAGMENT")
_library.define(
    "triton_batch_statistics(Tensor y, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "triton_normalize_relu_mean(Tensor y, Tensor mean, Tensor var, Tensor gamma, Tensor beta, float eps) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "triton_normalize_relu_mean_backward(Tensor? dfeatures, Tensor? dpooled, Tensor y, Tensor mean, Tensor var, "
    "Tensor gamma, Tensor beta, bool training, float eps) -> (Tensor, Tensor)"
)
# Opaque to torch.compile, which would unroll the loop over blocks.
for _name in ("encode_descriptors", "triton_encode_descriptors"):
    _library.define(
        f"{_name}(Tensor x, Tensor weight, Tensor? bias, Tensor gamma, Tensor beta, Tensor mean, Tensor var, "
        "Tensor hash_weight, float eps) -> (Tensor, Tensor)"
    )


@torch.library.impl(_library, "triton_batch_statistics", "CompositeExplicitAutograd")
def _statistics_op(y, running_mean, running_var, momentum):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.descriptor import fwd

    with torch.cuda.device_of(y):
        statistics = fwd.batch_statistics(y, running_mean, running_var, momentum)
    for running in (running_mean, running_var):
        if running is not None:
            torch.autograd.graph.increment_version(running)
    return statistics


@torch.library.impl(_library, "triton_normalize_relu_mean", "CompositeExplicitAutograd")
def _normalize_op(y, mean, var, gamma, beta, eps):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.descriptor import fwd

    with torch.cuda.device_of(y):
        return fwd.forward(y, mean, var, gamma, beta, eps)


@torch.library.impl(_library, "triton_normalize_relu_mean_backward", "CompositeExplicitAutograd")
def _normalize_backward_op(dfeatures, dpooled, y, *saved):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.descriptor import bwd

    with torch.cuda.device_of(y):
        return bwd.backward(dfeatures, dpooled, y, *saved)


@torch.library.impl(_library, "encode_descriptors", "CompositeExplicitAutograd")
def _encode_op(x, *arguments):  # type: ignore[no-untyped-def]
    with torch.autocast(x.device.type, enabled=False):
        return _encode_in_blocks(x, *arguments)


@torch.library.impl(_library, "triton_encode_descriptors", "CompositeExplicitAutograd")
def _triton_encode_op(x, *arguments):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.descriptor import encode

    with torch.cuda.device_of(x):
        return encode.encode(x, *arguments)


@torch.library.register_fake("agmh_fast::triton_batch_statistics")
def _statistics_fake(y, running_mean, running_var, momentum):  # type: ignore[no-untyped-def]
    return tuple(y.new_empty(y.shape[1], dtype=torch.float32) for _ in range(2))


@torch.library.register_fake("agmh_fast::triton_normalize_relu_mean")
def _normalize_fake(y, mean, var, gamma, beta, eps):  # type: ignore[no-untyped-def]
    return like(y), y.new_empty(y.shape[:2], dtype=torch.float32)


@torch.library.register_fake("agmh_fast::triton_normalize_relu_mean_backward")
def _normalize_backward_fake(dfeatures, dpooled, y, *_):  # type: ignore[no-untyped-def]
    return like(y), y.new_empty(2, y.shape[1], dtype=torch.float32)


@torch.library.register_fake("agmh_fast::triton_encode_descriptors")
@torch.library.register_fake("agmh_fast::encode_descriptors")
def _encode_fake(x, weight, bias, gamma, beta, mean, var, hash_weight, eps):  # type: ignore[no-untyped-def]
    batch, bits = x.shape[0], hash_weight.shape[0]
    return x.new_empty(batch, (bits + 7) // 8, dtype=torch.uint8), x.new_empty(batch, bits, dtype=_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    """float64 stays; sums of everything narrower are float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _NormalizeReluMean(torch.autograd.Function):
    """Features and their mean; with `training` the gradient goes through the statistics, which are those of y."""

    @staticmethod
    def forward(ctx: Any, y, gamma, beta, mean, var, training: bool, eps: float):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(y, mean, var, gamma, beta)
        ctx.training, ctx.eps = training, eps
        ctx.set_materialize_grads(False)
        return torch.ops.agmh_fast.triton_normalize_relu_mean(y, mean, var, gamma, beta, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dfeatures: Tensor | None, dpooled: Tensor | None):  # type: ignore[no-untyped-def]
        op = torch.ops.agmh_fast.triton_normalize_relu_mean_backward
        dy, sums = op(dfeatures, dpooled, *ctx.saved_tensors, ctx.training, ctx.eps)
        dgamma, dbeta = sums.to(ctx.saved_tensors[3].dtype)
        return dy, dgamma, dbeta, None, None, None, None


batch_norm_relu_mean = Op("batch_norm_relu_mean")


def _norm_obstacle(y: Tensor, *_: Any) -> str | None:
    """Why the Triton kernels cannot normalise y, or None."""
    return features_obstacle("y", y)


@batch_norm_relu_mean.register("triton", obstacle=_norm_obstacle)
def _triton(
    y: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    mean, var = running_mean, running_var
    if training:
        op = torch.ops.agmh_fast.triton_batch_statistics
        mean, var = op(y.detach(), running_mean, running_var, momentum)
    return _NormalizeReluMean.apply(y, gamma, beta, mean, var, training, eps)


@batch_norm_relu_mean.register("torch")
def _torch(
    y: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    features = F.batch_norm(y, running_mean, running_var, gamma, beta, training, momentum, eps).relu_()
    return features, features.mean(dim=(2, 3), dtype=_wide(y))


@batch_norm_relu_mean.register("reference")
def _reference(
    y: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    features = F.relu(F.batch_norm(y, running_mean, running_var, gamma, beta, training, momentum, eps))
    return features, features.to(_wide(y)).mean(dim=(2, 3))


def check_batch_norm(
    y: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
) -> None:
    """Raise InputError unless `y` is a floating (B, D·C, H, W) tensor and the vectors fit it."""
    _check_features("y", y)
    vectors = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    _check_vectors("y", y, y.shape[1], vectors)
    if training and y.numel() // max(y.shape[1], 1) < 2:
        raise InputError("y needs at least two positions over the batch to train BatchNorm; got fewer")
    if not training and (running_mean is None or running_var is None):
        raise InputError("running_mean and running_var are needed when training=False")


encode_descriptors = Op("encode_descriptors")


def _encode_obstacle(x: Tensor, *_: Any) -> str | None:
    """Why the Triton kernels cannot encode x, or None."""
    return features_obstacle("x", x)


@encode_descriptors.register("triton", obstacle=_encode_obstacle)
def _triton_encode(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.agmh_fast.triton_encode_descriptors(x, *arguments)


@encode_descriptors.register("torch")
def _torch_encode(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.agmh_fast.encode_descriptors(x, *arguments)


@encode_descriptors.register("reference")
def _reference_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    hash_weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    y = F.conv2d(x, weight[:, :, None, None], None if bias is None else bias.to(x.dtype))
    _, pooled = _reference(y, gamma, beta, mean, var, False, 0.0, eps)
    logits = pooled @ hash_weight.to(pooled.dtype).T
    return reference.pack_bits(reference.sign_bits(logits)), logits


def _slow_in_16_bits(x: Tensor) -> bool:
    """Whether x is 16-bit on an x86 that cannot multiply it: there float32 is faster, and nothing is rounded."""
    if x.device.type != "cpu" or x.element_size() != 2:
        return False
    # Newer than the oldest torch supported.
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    units = ("amx_bf16", "avx512_bf16") if x.dtype == torch.bfloat16 else ("amx_fp16",)
    return found.get("architecture") == "x86_64" and not any(found.get(unit) for unit in units)


def _encode_in_blocks(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    hash_weight: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """A block of positions and channels at a time, normalised, cut off and added before the next is computed."""
    batch, inputs, height, width = x.shape
    n, channels, dtype = height * width, weight.shape[0], _wide(x)
    product = dtype if _slow_in_16_bits(x) else x.dtype
    scale = gamma.to(dtype) * torch.rsqrt(var.to(dtype) + eps)
    centre = mean.to(dtype) if bias is None else mean.to(dtype) - bias.to(dtype)
    shift = beta.to(dtype) - centre * scale
    rows, columns = _CPU_BLOCK if x.device.type == "cpu" else _GPU_BLOCK
    step, pooled = max(1, rows // max(n, 1)), x.new_empty(batch, channels, dtype=dtype)
    for images in range(0, batch, step):
        positions = x[images : images + step].permute(0, 2, 3, 1).reshape(-1, inputs).to(product)
        for first in range(0, channels, columns):
            part = slice(first, first + columns)
            y = (positions @ weight[part].to(product).T).to(dtype)
            y = y.mul_(scale[part]).add_(shift[part]).relu_().view(-1, n, y.shape[1])
            torch.sum(y, dim=1, out=pooled[images : images + step, part])
    logits = (pooled / n) @ hash_weight.to(dtype).T
    return pack_bits(logits >= 0), logits


def autocast(x: Tensor) -> Tensor:
    """x in autocast's dtype where that is on, as convolutions take it; float64 and integers stay."""
    kind = x.device.type
    if x.dtype == torch.float64 or not x.is_floating_point() or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def check_encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    hash_weight: Tensor,
) -> None:
    """Raise InputError unless x is a floating (B, C_in, H, W) tensor and everything else fits it; no value is read."""
    _check_features("x", x)
    if weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        raise InputError(f"weight must be (D·C, {x.shape[1]}) for x {tuple(x.shape)}, got {tuple(weight.shape)}")
    channels = weight.shape[0]
    if hash_weight.dim() != 2 or hash_weight.shape[1] != channels or not 1 <= hash_weight.shape[0] <= MAX_BITS:
        raise InputError(f"hash_weight must be (1..{MAX_BITS}, {channels}), got {tuple(hash_weight.shape)}")
    require(weight.dtype == x.dtype, f"weight is {weight.dtype} and x {x.dtype}: convert one of them")
    vectors = {"bias": bias, "gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var}
    _check_vectors("x", x, channels, vectors)
    for name, tensor in (("weight", weight), ("hash_weight", hash_weight)):
        require(tensor.device == x.device, f"x is on {x.device} and {name} on {tensor.device}: move one of them")


def _check_features(name: str, x: Tensor) -> None:
    require(x.dim() == 4, f"{name} must be (B, channels, H, W), got {tuple(x.shape)}")
    require(x.shape[2] * x.shape[3] > 0, f"{name} must have at least one position, got {tuple(x.shape)}")
    require(x.is_floating_point(), f"{name} must be floating point, got {x.dtype}")


def _check_vectors(name: str, x: Tensor, channels: int, vectors: dict[str, Tensor | None]) -> None:
    for vector, tensor in vectors.items():
        if tensor is None:
            continue
        require(tensor.shape == (channels,), f"{vector} must be ({channels},), got {tuple(tensor.shape)}")
        require(tensor.is_floating_point(), f"{vector} must be floating point, got {tensor.dtype}")
        require(tensor.device == x.device, f"{name} is on {x.device} and {vector} on {tensor.device}: move one of them")
