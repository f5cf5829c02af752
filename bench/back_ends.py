"""The back ends of Hamming search on GPUs, each by its name: csrc/hamming/cuda/README.md."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

_VARIABLE = "AGMH_FAST_CUDA_ISA"


def sieves(device: torch.device) -> list[str]:
    """The back ends with tensor cores that the device has."""
    if device.type != "cuda":
        return []
    capability = torch.cuda.get_device_capability(device)
    return [
        *(["bmma"] if (8, 0) <= capability <= (9, 0) else []),
        *(["imma"] if capability >= (8, 0) else []),
    ]


@contextlib.contextmanager
def back_end(name: str) -> Iterator[None]:
    """Have searches use "popc", population counts alone, or tensor cores that sift first: "bmma" of bits, "imma" of
    signs.
    """
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = name
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        if before is not None:
            os.environ[_VARIABLE] = before
