"""Tuning as data: tile sizes, warps and pipeline stages, chosen from the GPU, the dtype and the shape."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from agmh_fast.kernels.common.device import capability, padded, precision
from agmh_fast.kernels.common.tuning import around, variants
from torch import Tensor

MAX_SLOTS = 128
MAX_CHANNELS = 2**15 - 1  # a peak's channel is kept as int16

SPLITS_AT_ONCE = 8  # whose parts are loaded together where they are added up
COVARIANCE_ROWS = 4  # of Σ, a program
LARGEST_PARTS = 64  # programs that look for a float16 gradient's largest value

# Read once, as every other switch of the environment.
_ATOMICS = os.environ.get("AGMH_FAST_ATOMICS") == "1"


def atomics() -> bool:
    """Whether sums over positions may be added up by float atomics: asked for, and no determinism is."""
    return _ATOMICS and not torch.are_deterministic_algorithms_enabled()


@dataclass(frozen=True)
class Tile:
    """One kernel's tile of positions and channels, with its warps and pipeline stages."""

    positions: int
    channels: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Config:
    """The tiles of all kernels. `precision` is how float32 is multiplied, `exact` how it is where only parameters are,
    `slots` is K padded, `inner` and `chunk` how many slots a K × K product of either takes at a time, `splits` how many
    programs share a sum over positions.
    """

    precision: str
    exact: str
    slots: int
    inner: int
    chunk: int
    splits: int
    attend: Tile
    gram: Tile
    statistics: Tile
    peak: Tile
    channel_sums: Tile
    channel_gradients: Tile
    feedback: Tile
    slot_sums: Tile
    spread: Tile
    weight_gradient: Tile


def _attend(cc: int, dtype: torch.dtype, mode: str, n: int, slots: int) -> Tile:
    """All positions at once while they fit the registers, else tiles of them; exact float32 takes small tiles."""
    if mode == "ieee":
        return Tile(32, 32, 8, 2)
    if n > 256:
        return Tile(64, 32, 8, 2)
    if padded(n) * slots <= 64 * 128:
        return Tile(padded(n), 32, 4, 2)
    if cc >= 100:
        return Tile(padded(n), 32 if dtype == torch.float16 else 16, 16, 2)
    if cc < 90:
        return Tile(padded(n), 32 if dtype != torch.float32 else 16, 8, 2)
    return Tile(padded(n), 32, 8, 3)


def _splits(features: Tensor) -> int:
    """Programs that share a sum over positions: one for every SM of an H100, each with 256 positions or more."""
    batch, channels, height, width = features.shape
    tiles = -(-channels // 128)
    return min(max(1, 132 // tiles), -(-batch * height * width // 256))


def choose(features: Tensor, slots: int) -> Config:
    """Tiles for features (B, D·C, H, W) and K slots.

    The accumulator of `attend` is positions × slots in float32: 256 × 128 of it fits the registers of 8 warps.
    """
    n, dtype = features.shape[2] * features.shape[3], features.dtype
    cc, mode, k = capability(features.device), precision(dtype), padded(slots)
    stages = 2 if cc < 90 else 3
    half, strict = dtype != torch.float32, mode == "ieee"
    wide = 64 if half else 32
    return Config(
        mode,
        exact="ieee" if strict else "tf32x3",
        slots=k,
        inner=k if half else min(k, 32),
        chunk=min(k, 32),
        splits=_splits(features),
        attend=_attend(cc, dtype, mode, n, k),
        gram=Tile(64 if half else 32, 0, 8, 2),
        statistics=Tile(0, 32, 4, 2),
        peak=Tile(64, 16, 8, 2) if strict and cc >= 100 else Tile(128, wide, 8, stages),
        channel_sums=Tile(16 if strict else 64, 32 if strict else 128 if half else 64, 8, stages),
        channel_gradients=Tile(0, 16, 8, 2),
        feedback=Tile(16, 32 if strict else 64, 4 if strict else 8, 3),
        slot_sums=Tile(64 if half else 32, 0, 8, 2),
        spread=Tile(128 if half and cc >= 100 else 32 if strict else 64, wide, 8, 2 if strict else stages),
        weight_gradient=Tile(64 if half else 32, 128, 8, 3),
    )


def forward_alternatives(tuning: Config) -> dict[str, list[Any]]:
    """What autotuning tries in place of the tiles that forward takes."""
    return _alternatives(tuning, "attend", "gram", "statistics", "peak")


def backward_alternatives(tuning: Config) -> dict[str, list[Any]]:
    """What autotuning tries in place of the tiles that backward takes."""
    kernels = "channel_sums", "channel_gradients", "feedback", "slot_sums", "spread", "weight_gradient"
    return _alternatives(tuning, *kernels)


def _alternatives(tuning: Config, *kernels: str) -> dict[str, list[Any]]:
    """Tiles around each of these, and splits. None in exact float32: its tiles compile for long."""
    if tuning.precision == "ieee":
        return {}
    tried: dict[str, list[Any]] = {}
    for kernel in kernels:
        tile = getattr(tuning, kernel)
        # Fewer positions than all would have `attend` compute its logits twice.
        positions = [] if kernel == "attend" else around(tile.positions)
        tried[kernel] = variants(tile, positions=positions, channels=around(tile.channels), warps=(4, 8), stages=(2, 3))
    return tried | {"splits": [splits for splits in (tuning.splits // 2, 2 * tuning.splits) if splits]}
