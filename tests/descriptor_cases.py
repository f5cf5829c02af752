"""Inputs of the descriptor ops and all that they give, for several test files."""

from __future__ import annotations

import torch
from torch import Tensor

import agmh_fast.functional as af

# (B, channels, H, W): n = 49, 63, 195, 196 and 784; one position an image, one channel, one image; odd numbers of each.
SHAPES = [
    (3, 70, 7, 7),
    (2, 33, 9, 7),
    (1, 64, 15, 13),
    (5, 20, 14, 14),
    (1, 3, 28, 28),
    (19, 17, 1, 1),
    (2, 1, 5, 4),
]


def norm_inputs(
    batch: int, channels: int, height: int, width: int, offset: float = 2.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, gamma, beta, running mean and variance in float64; y's channels have means around `offset`."""
    y = torch.randn(batch, channels, height, width, dtype=torch.float64)
    y = y * (torch.rand(channels, 1, 1).double() + 0.5) + offset
    gamma, beta = torch.randn(2, channels, dtype=torch.float64)
    return y, gamma, beta, torch.randn(channels).double(), torch.rand(channels).double() + 0.5


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """x itself or in channels_last."""
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def normalised(
    inputs: tuple[Tensor, ...],
    impl: str,
    dtype: torch.dtype,
    training: bool = True,
    uses: tuple[str, ...] = ("features", "pooled"),
) -> dict[str, Tensor]:
    """Results, new running statistics and gradients of a sum that weighs every result differently; y in `dtype`, the
    rest in float32 (float64 for float64).
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    y = inputs[0].detach().to(dtype).requires_grad_()
    gamma, beta = (t.detach().to(wide).requires_grad_() for t in inputs[1:3])
    mean, var = (t.to(wide, copy=True) for t in inputs[3:])
    results = af.batch_norm_relu_mean(y, gamma, beta, mean, var, training=training, momentum=0.3, impl=impl)
    out = dict(zip(("features", "pooled"), results, strict=True))
    loss = sum((out[name] * _weights(out[name])).sum() for name in uses)
    grads = torch.autograd.grad(loss, (y, gamma, beta))
    named = dict(zip(("y", "gamma", "beta"), grads, strict=True))
    values = {name: value.detach() for name, value in out.items()}
    return values | named | {"running_mean": mean, "running_var": var}


def _weights(x: Tensor) -> Tensor:
    return torch.linspace(1, 50, x.numel(), dtype=torch.float64, device=x.device).sin().view(x.shape).to(x.dtype)


def encode_inputs(
    batch: int, inputs: int, height: int, width: int, channels: int, bits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of `encode_descriptors` in float64, x non-negative as a backbone's features are."""
    x = torch.randn(batch, inputs, height, width, dtype=torch.float64).relu()
    weight = torch.randn(channels, inputs, dtype=torch.float64) * (2 / inputs) ** 0.5
    bias, gamma, beta, mean = torch.randn(4, channels, dtype=torch.float64)
    hash_weight = torch.randn(bits, channels, dtype=torch.float64) / channels**0.5
    return x, weight, bias, gamma, beta, mean, torch.rand(channels).double() + 0.5, hash_weight


def narrowed(arguments: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x and weight in `dtype`, the rest in float32."""
    return *(t.to(dtype) for t in arguments[:2]), *(t.float() for t in arguments[2:])


def widened(arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Every argument in float64."""
    return tuple(t.double() for t in arguments)
