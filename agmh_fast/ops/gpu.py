"""What every Triton implementation needs of the machine and of a tensor."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from agmh_fast.kernels.common.device import capability

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def triton_obstacle(name: str, tensor: Tensor) -> str | None:
    """Why no Triton kernel can serve `tensor`, called `name` in the answer; None if one can."""
    if tensor.device.type != "cuda":
        return f"{name} must be on a CUDA device, and are on {tensor.device}"
    if not _HAS_TRITON:
        return "it needs the package triton: pip install triton"
    if capability(tensor.device) < 80:
        return "it needs a GPU of compute capability 8.0 or later"
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{name} must be float32, bfloat16 or float16, and are {tensor.dtype}"
    return None
