"""What every Triton implementation needs of the machine, and those on features of their features."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from agmh_fast.kernels.common.device import capability

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def gpu_obstacle(name: str, tensor: Tensor) -> str | None:
    """Why no Triton kernel runs where `tensor`, called `name` in the answer, lies; None if one does."""
    if tensor.device.type != "cuda":
        return f"{name} must be on a CUDA device, not on {tensor.device}"
    if not _HAS_TRITON:
        return "it needs the package triton: pip install triton"
    if capability(tensor.device) < 80:
        return "it needs a GPU of compute capability 8.0 or later"
    return None


def features_obstacle(name: str, features: Tensor) -> str | None:
    """Why no Triton kernel can serve features (B, channels, H, W), called `name` in the answer; None if one can."""
    if (obstacle := gpu_obstacle(name, features)) is not None:
        return obstacle
    if features.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{name} must be float32, bfloat16 or float16, not {features.dtype}"
    if features.shape[1] * features.shape[2] * features.shape[3] >= 2**31:
        return f"{name} must have fewer than 2³¹ elements an image"
    return None
