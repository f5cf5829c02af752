"""Tuning as data: tile sizes, warps and pipeline stages, chosen from the GPU, the dtype and the shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from agmh_fast.kernels.common.device import capability, padded, precision
from torch import Tensor

# Programs that share a channel's sum over positions: their parts are combined in one tile of this many rows.
MAX_SPLITS = 32


@dataclass(frozen=True)
class NormConfig:
    """Tile of positions and channels of the element-wise kernels; `splits` programs share a sum over positions."""

    positions: int
    channels: int
    splits: int
    warps: int


@dataclass(frozen=True)
class EncodeConfig:
    """Tile of the convolution as a product (channels, inner) · (inner, positions), and `precision` of float32 in it."""

    precision: str
    positions: int
    channels: int
    inner: int
    warps: int
    stages: int


def choose_norm(y: Tensor, align: int) -> NormConfig:
    """Tiles for y (B, D·C, H, W) whose positions can be loaded `align` at a time, 0 where channels are.

    A thread has 16 values, or 8 where each is a load of its own; splits are enough for eight blocks on each SM of an
    H100.
    """
    batch, channels, height, width = y.shape
    n = height * width
    rows, columns = min(64, padded(n)), 16 if align in (1, 2) else 64
    tiles, wanted = batch * -(-n // rows), 8 * 132 // -(-channels // columns)
    warps = max(1, rows * columns // (256 if columns == 16 else 512))
    return NormConfig(rows, columns, max(1, min(MAX_SPLITS, wanted, tiles)), warps)


def choose_encode(x: Tensor) -> EncodeConfig:
    """Tiles for x (B, C_in, H, W): 128 positions and as many channels as registers and shared memory have room for.

    Exact float32 uses no tensor core, and smaller tiles.
    """
    cc, mode, wide = capability(x.device), precision(x.dtype), 64 if x.dtype != torch.float32 else 32
    if mode == "ieee":
        return EncodeConfig(mode, 128, 64, 16, 8, 3)
    if 90 <= cc < 100:
        return EncodeConfig(mode, 128, 256, wide, 8, 3)
    # GPUs from 120 on have the shared memory of the smaller ones before 90. With 16 warps there would be no tcgen05.
    return EncodeConfig(mode, 128, 128, wide, 8, 4 if 100 <= cc < 120 else 3)
