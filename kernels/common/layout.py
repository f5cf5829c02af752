"""How kernels address features (B, D·C, H, W), contiguous or channels_last, without a copy."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def aligned(n, ALIGN: tl.constexpr):
    """n, known to the compiler to be the multiple of ALIGN that it is: masks of positions then keep copies wide."""
    return n // ALIGN * ALIGN


def strides(features: Tensor, descriptors: int) -> tuple[int, int, int, int]:
    """Elements between images, descriptors, positions and channels of dense features (B, D·C, H, W)."""
    _, channels, height, width = features.shape
    n, each = height * width, channels // descriptors
    if features.is_contiguous(memory_format=torch.channels_last):
        return channels * n, each, channels, 1
    return channels * n, each * n, 1, n


def dense(features: Tensor) -> Tensor:
    """The features themselves if contiguous or channels_last, else a contiguous copy."""
    return features if features.is_contiguous(memory_format=torch.channels_last) else features.contiguous()


def alignment(n: int, sc: int) -> int:
    """The power of two up to 16 that divides n where rows of positions are loaded, 1 where rows of channels are."""
    return 1 if sc == 1 else min(16, n & -n)


def batches(batch: int, n: int, sb: int, sp: int) -> tuple[int, int]:
    """Images and positions for a kernel whose positions are independent: one image of B·n where positions are evenly
    spaced.
    """
    return (1, batch * n) if sb == n * sp else (batch, n)
