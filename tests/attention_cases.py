"""Attention parameters, features and error measures that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agmh_fast import functional
from agmh_fast.ops.attention import AttentionParams

# (D, C, K, h, B, H, W): odd sizes, single descriptors, channels, slots and heads, n = 49, 195 and 196.
SHAPES = [
    (3, 20, 7, 4, 3, 5, 4),
    (1, 8, 3, 2, 2, 7, 7),
    (2, 1, 4, 4, 3, 2, 3),
    (2, 33, 1, 3, 2, 3, 3),
    (6, 16, 12, 4, 5, 7, 7),
    (2, 64, 100, 1, 1, 15, 13),
    (2, 96, 128, 4, 9, 14, 14),
]


def make_params(
    d: int, c: int, k: int, h: int, dtype: torch.dtype = torch.float64, requires_grad: bool = True
) -> AttentionParams:
    """Random parameters of ordinary scale, with running statistics that are not the identity."""

    def weight(*shape: int) -> Tensor:
        return (torch.randn(*shape, dtype=dtype) * (2 / shape[-2]) ** 0.5).requires_grad_(requires_grad)

    def vector(shift: float) -> Tensor:
        return (torch.rand(d, c, dtype=dtype) + shift).requires_grad_(requires_grad)

    return AttentionParams(
        weight(d, c, c),
        vector(-0.5),
        weight(d, h, k, c),
        weight(d, h - 1, k, 2 * k),
        weight(d, c, k),
        weight(d, c, c),
        vector(0.5),
        vector(-0.5),
        torch.randn(d, c, dtype=dtype),
        torch.rand(d, c, dtype=dtype) + 0.5,
    )


def make_features(d: int, c: int, b: int, h: int, w: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features as descriptors are: non-negative, about half of them zero."""
    return torch.randn(b, d * c, h, w, dtype=dtype).relu()


def with_own_statistics(params: AttentionParams) -> AttentionParams:
    """The same parameters with copies of the running statistics, for a call that updates them."""
    return params._replace(running_mean=params.running_mean.clone(), running_var=params.running_var.clone())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in float64; the absolute norm where the expected one is zero."""
    actual, expected = actual.double(), expected.double()
    size = expected.norm().item()
    return (actual - expected).norm().item() / (size if size > 0 else 1.0)


def nudged(params: AttentionParams) -> AttentionParams:
    """The parameters, each moved by a float32 epsilon, as rounding moves their products; statistics as they are."""
    eps = torch.finfo(torch.float32).eps
    return type(params)(*(t * (1 + eps * torch.randn_like(t).sign()) for t in params[:8]), *params[8:])


def assert_as_exact_as_plain(
    ours: dict[str, Tensor],
    exact: dict[str, Tensor],
    plain: Callable[[AttentionParams], dict[str, Tensor]],
    params: AttentionParams,
    roundoff: float,
    gradients: Sequence[str],
    negligible: float,
) -> None:
    """Errors against float64 are at most twice those of plain PyTorch, plus ten roundings.

    `plain(params)` computes it. Its error is the largest of eight runs whose parameters differ by a rounding, as one
    may be right by luck where terms cancel. Of `gradients` those that cancel to less than `negligible` of the largest
    are measured against the largest.
    """
    runs: list[dict[str, Tensor]] = []
    largest = max(float(exact[name].norm()) for name in gradients)
    for name, expected in exact.items():
        cancels = name in gradients and float(expected.norm()) < negligible * largest
        size = largest if cancels else float(expected.norm()) or 1.0
        error, allowed = float((ours[name].double() - expected).norm()) / size, 0.0
        for run in range(8):
            if run == len(runs):
                runs.append(plain(nudged(params) if run else params))
            allowed = max(allowed, 2 * float((runs[run][name].double() - expected).norm()) / size + 10 * roundoff)
            if error <= allowed:
                break
        assert error <= allowed, f"{name}: {error:.1e}, allowed are {allowed:.1e}"


def compiled_gradient_error(impl: str) -> float:
    """Largest relative error, over batches of two sizes, of the features' gradient under a whole-graph torch.compile,
    against the `torch` implementation run eagerly.
    """
    params = make_params(2, 6, 4, 2, torch.float32)

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def step(features: Tensor) -> Tensor:
        return functional.attention_dispersion(features, params, impl=impl)

    errors = []
    for batch in (3, 5):
        features = make_features(2, 6, batch, 3, 3, torch.float32).requires_grad_()
        eager = functional.attention_dispersion(features, with_own_statistics(params), impl="torch")
        (expected,) = torch.autograd.grad(eager, features)
        (actual,) = torch.autograd.grad(step(features), features)
        errors.append(relative_error(actual, expected))
    return max(errors)
