"""The back ends of Hamming search on GPUs, each by its name: csrc/hamming/cuda/README.md."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

_VARIABLE = "AGMH_FAST_CUDA_ISA"


def has_bmma(device: torch.device) -> bool:
    """Whether the device's tensor cores multiply bits."""
    return device.type == "cuda" and (8, 0) <= torch.cuda.get_device_capability(device) <= (9, 0)


@contextlib.contextmanager
def back_end(name: str) -> Iterator[None]:
    """Have searches use "popc", population counts alone, or "bmma", tensor cores that sift first."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if before is not None:
            os.environ[_VARIABLE] = before
