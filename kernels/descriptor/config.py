"""Tuning as data: tile sizes, warps and pipeline stages, chosen from the GPU, the dtype and the shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from agmh_fast.kernels.common.device import capability, padded, precision
from agmh_fast.kernels.common.tuning import around
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


def norm_alternatives(tile: NormConfig) -> dict[str, list[Any]]:
    """What autotuning tries in place of an element-wise kernel's tile."""
    return {"positions": around(tile.positions), "channels": around(tile.channels), "warps": [4, 8]}


def sum_alternatives(tile: NormConfig) -> dict[str, list[Any]]:
    """What autotuning tries in place of the tile and splits of a sum over positions."""
    splits = [splits for splits in (tile.splits // 2, 2 * tile.splits) if 0 < splits <= MAX_SPLITS]
    return norm_alternatives(tile) | {"splits": splits}


def encode_alternatives(tile: EncodeConfig) -> dict[str, list[Any]]:
    """What autotuning tries in place of the convolution's tile; nothing in exact float32, which compiles for long."""
    if tile.precision == "ieee":
        return {}
    sizes = {name: around(getattr(tile, name)) for name in ("positions", "channels", "inner")}
    return sizes | {"warps": [4, 8], "stages": [2, 3, 4]}
