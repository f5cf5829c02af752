"""What every folder of kernels launches at the published sizes, recorded on meta tensors: nothing runs.

A folder takes part by a function here that calls its launchers, and its line in FOLDERS.

    for launch in published_launches("peak_response", 90):
        compile_launch(launch, 90)
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from triton_compile import Launch, recording

KERNELS = Path(__file__).parents[2] / "kernels"
PREFIX = "agmh_fast.kernels."
# Images, descriptors, channels a descriptor, height and width, memory slots.
B, D, C, H, W, K = 32, 6, 512, 14, 14, 128
# Bits, database items, label groups, sampled items.
BITS, N, GROUPS, M = 48, 75_750, 101, 2000


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _features(dtype: torch.dtype, channels: int = D * C) -> Tensor:
    return _meta(B, channels, H, W, dtype=dtype).contiguous(memory_format=torch.channels_last)


def peak_response(dtype: torch.dtype) -> None:
    from agmh_fast.kernels.peak_response import bwd, fwd

    features, weight, projection, gamma = _features(dtype), _meta(D, K, C), _meta(D, C, K), _meta(D, C)
    running, ticket = (_meta(D, C), _meta(D, C)), _meta(1, dtype=torch.int32)
    saved = fwd.forward(features, weight, projection, gamma, gamma, None, 1e-5, running, 0.1, ticket)
    bwd.backward(torch.empty_like(saved[0]), features, weight, projection, gamma, *saved, 1e-5)


def dispersion(dtype: torch.dtype) -> None:
    from agmh_fast.kernels.dispersion import kernel

    peaks = _meta(B, D, H * W)
    loss, rows = kernel.forward(peaks, _meta(1, dtype=torch.int32))
    kernel.backward(loss, peaks, rows)


def descriptor(dtype: torch.dtype) -> None:
    from agmh_fast.kernels.descriptor import bwd, encode, fwd

    y, x, vector = _features(dtype), _features(dtype, 2048), _meta(D * C)
    mean, var = fwd.batch_statistics(y, vector, vector, 0.1)
    features, pooled = fwd.forward(y, mean, var, vector, vector, 1e-5)
    bwd.backward(features, pooled, y, mean, var, vector, vector, True, 1e-5)
    weight = _meta(D * C, 2048, dtype=dtype)
    encode.encode(x, weight, vector, vector, vector, mean, var, _meta(BITS, D * C), 1e-5)


def discrete(dtype: torch.dtype) -> None:
    from agmh_fast.kernels.discrete import kernel

    double, index = torch.float64, _meta(N, dtype=torch.int64)
    targets, u, gram = (_meta(rows, BITS, dtype=double) for rows in (GROUPS, M, BITS))
    kernel.discrete_step(_meta(N, BITS), targets, index, index, u, gram, 200.0)


def hashing_loss(dtype: torch.dtype) -> None:
    from agmh_fast.kernels.hashing_loss import kernel

    double, groups = torch.float64, _meta(N, dtype=torch.int64)
    targets, squares, gram = (_meta(*shape, dtype=double) for shape in ((GROUPS, BITS), (GROUPS,), (BITS, BITS)))
    # A batch of one program, and one whose programs' parts a second kernel adds.
    for batch in (B, 4 * B):
        items = _meta(batch, dtype=torch.int64)
        kernel.hashing_loss(_meta(batch, BITS), items, groups, targets, squares, gram, _meta(N, BITS), 200.0)


FOLDERS = {
    "peak_response": peak_response,
    "dispersion": dispersion,
    "descriptor": descriptor,
    "discrete": discrete,
    "hashing_loss": hashing_loss,
}


def published_launches(
    folder: str, capability: int, dtype: torch.dtype = torch.bfloat16, precision: str = "high"
) -> list[Launch]:
    """Launches of a folder's forward and backward as on a GPU of that compute capability (80, 90, 100, ...).

    precision: as `torch.set_float32_matmul_precision` takes it.
    """
    for path in sorted(KERNELS.glob(f"{folder}/*.py")):
        importlib.import_module(f"{PREFIX}{folder}.{path.stem}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with pretending(capability), recording() as launches:
            FOLDERS[folder](dtype)
    finally:
        torch.set_float32_matmul_precision(before)
    return launches


@contextlib.contextmanager
def pretending(capability: int) -> Iterator[None]:
    """Let every loaded module of kernels take tensors for those of a GPU of this compute capability."""
    loaded = [module for name, module in sys.modules.items() if name.startswith(PREFIX)]
    asking = [module for module in loaded if hasattr(module, "capability")]
    originals = [module.capability for module in asking]
    for module in asking:
        module.capability = lambda device: capability
    try:
        yield
    finally:
        for module, original in zip(asking, originals, strict=True):
            module.capability = original
