"""What the tests of the peaks and of their dispersion loss share: cases, and errors against float64 beside plain
PyTorch's.

Error budget: against the float64 reference at most twice the error of plain PyTorch in that type, plus ten roundings
of the type. Plain PyTorch is the `torch` implementation for float32, the reference under autocast for narrower types.
Gradients that cancel to nearly nothing (K = 1) are measured against the largest gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from attention_cases import assert_as_exact_as_plain, make_features, make_params, with_own_statistics
from torch import Tensor
from triton_compile import Launch, recording
from triton_interpreter import interpreting

import agmh_fast.functional as af
from agmh_fast.ops import peak_response_triton
from agmh_fast.ops.attention import AttentionParams
from agmh_fast.ops.dispersion import attention_dispersion
from agmh_fast.ops.peak_response import peak_response

NAMES = ("features", "conv_weight", "conv_bias", "query", "mix", "value", "project", "bn_weight", "bn_bias")
Results = dict[str, Tensor]
Objective = Callable[[Tensor, AttentionParams, str, bool], Results]


@contextlib.contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Let the kernels serve CPU tensors, in the interpreter."""
    with pytest.MonkeyPatch.context() as patch, interpreting():
        for op in (peak_response, attention_dispersion):
            patch.setitem(op.obstacles, "triton", lambda *args: None)
        yield


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set how float32 is multiplied, and put the setting back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _results(objective: Tensor, features: Tensor, params: AttentionParams, **values: Tensor) -> Results:
    grads = torch.autograd.grad(objective, [features, *params[:8]], materialize_grads=True)
    values |= {"running_mean": params.running_mean, "running_var": params.running_var}
    return {name: value.detach() for name, value in values.items()} | dict(zip(NAMES, grads, strict=True))


def peaks_and_gradients(features: Tensor, params: AttentionParams, impl: str, training: bool = True) -> Results:
    """Loss, peaks, running statistics, and the gradients of the loss and a sum that weighs every peak differently."""
    params = with_own_statistics(params)
    # A single slot has attention 1 everywhere: all that varies is rounding, which a small eps would blow up.
    eps = 1e-5 if params.query.shape[2] > 1 else 1.0
    peaks = af.peak_response(features, params, training=training, eps=eps, impl=impl)
    weights = torch.linspace(0.5, 2, peaks.numel(), dtype=peaks.dtype).view_as(peaks).sin() / peaks.numel()
    maps = torch.softmax(peaks, dim=2)
    loss = (maps.sum(dim=1).square() - maps.square().sum(dim=1)).sum()
    objective = (peaks * weights.to(peaks.device)).sum() + loss
    return _results(objective, features, params, loss=loss, peaks=peaks)


def loss_and_gradients(features: Tensor, params: AttentionParams, impl: str, training: bool = True) -> Results:
    """The dispersion loss, running statistics, and gradients of three times the loss."""
    params = with_own_statistics(params)
    loss = af.attention_dispersion(features, params, training=training, impl=impl)
    return _results(3 * loss, features, params, loss=loss)


def case(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> tuple[Tensor, AttentionParams]:
    """Features and parameters (D, C, K, h, B, H, W) in float64 that `dtype` holds exactly; channels_last if `last`."""
    d, c, k, h, b, height, width = shape
    features = make_features(d, c, b, height, width).to(dtype).double()
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    return features.requires_grad_(), make_params(d, c, k, h)


def narrowed(features: Tensor, params: AttentionParams, dtype: torch.dtype) -> tuple[Tensor, AttentionParams]:
    """Leaves: the features in `dtype`, the parameters in float32."""
    single = [None if t is None else t.detach().float() for t in params]
    leaves = [t.requires_grad_() for t in single[:8]]
    return features.detach().to(dtype).requires_grad_(), type(params)(*leaves, *single[8:])


def compare(
    objective: Objective,
    features: Tensor,
    params: AttentionParams,
    dtype: torch.dtype,
    against: torch.dtype,
    training: bool = True,
) -> None:
    """Hold the kernels' errors against float64 to those of plain PyTorch in the type `against`."""
    exact = objective(features, params, "reference", training)
    low, single = narrowed(features, params, dtype)
    ours = objective(low, single, "triton", training)
    assert ours["features"].dtype == dtype
    assert ours["features"].stride() == low.stride()

    def plain(params: AttentionParams) -> dict[str, Tensor]:
        if against == torch.float32:
            return objective(*narrowed(features, params, dtype), "torch", training)
        with torch.autocast(features.device.type, dtype=against):
            return objective(*narrowed(features, params, against), "reference", training)

    assert_as_exact_as_plain(ours, exact, plain, params, torch.finfo(against).eps, NAMES, negligible=1e-3)


def on_gpu(dtype: torch.dtype, last: bool, batch: int = 8) -> tuple[Tensor, AttentionParams]:
    """Features and float32 parameters of the published sizes on the GPU, leaves."""
    features, params = case((6, 512, 128, 4, batch, 14, 14), dtype, last)
    moved = params._replace(**{name: t.detach().cuda() for name, t in params._asdict().items()})
    return narrowed(features.detach().cuda(), moved, dtype)


def doubled(features: Tensor, params: AttentionParams) -> tuple[Tensor, AttentionParams]:
    """Leaves with the same values in float64."""
    values = [t.detach().double() for t in params]
    return features.detach().double().requires_grad_(), type(params)(
        *(t.requires_grad_() for t in values[:8]), *values[8:]
    )


# What our ops launch is counted one by one.
_OPS = {
    torch.ops.agmh_fast.triton_peak_response.default: peak_response_triton._peaks,
    torch.ops.agmh_fast.triton_peak_response_backward.default: peak_response_triton._peaks_backward,
    torch.ops.agmh_fast.triton_attention_dispersion.default: peak_response_triton._dispersion,
    torch.ops.agmh_fast.triton_attention_dispersion_backward.default: peak_response_triton._dispersion_backward,
}
# Allocations: they launch nothing.
_ALLOCATIONS = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


class Launches(torch.utils._python_dispatch.TorchDispatchMode):
    """Everything that a GPU would be given to do: names of kernels and of torch ops that are no views."""

    def __init__(self, recorded: list[Launch]) -> None:
        super().__init__()
        self._recorded = recorded
        self._torch: list[str] = []

    @property
    def names(self) -> list[str]:
        """All of it since the last `clear`, torch's after the kernels'."""
        return [launch.name for launch in self._recorded] + self._torch

    def clear(self) -> None:
        """Forget what was counted."""
        self._recorded.clear()
        self._torch.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _OPS:
            with self:
                return _OPS[func](*args)
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _ALLOCATIONS:
            self._torch.append(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counting() -> Iterator[Launches]:
    """Count what is launched inside, on meta tensors: nothing runs."""
    # Filled memory would be a launch that users do not see.
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        with recording() as recorded, Launches(recorded) as launches:
            yield launches
    finally:
        torch.use_deterministic_algorithms(deterministic)
