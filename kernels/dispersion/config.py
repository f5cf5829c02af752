"""Tuning as data: the tiles of the dispersion loss, chosen from the number of maps and positions."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DESCRIPTORS = 64


@dataclass(frozen=True)
class Config:
    """Maps padded to a power of two, positions a tile of forward and of backward, warps of forward."""

    descriptors: int
    positions: int
    gradient_positions: int
    warps: int


def choose(descriptors: int, n: int) -> Config:
    """An image's maps are one tile up to 4096 values, 16 a thread. Backward has no sum over positions: small tiles
    spread it over more of the GPU.
    """
    maps, all_positions = 1 << (descriptors - 1).bit_length(), 1 << max(4, (n - 1).bit_length())
    return Config(
        maps,
        positions=min(all_positions, 4096 // maps),
        gradient_positions=min(all_positions, max(16, 1024 // maps)),
        warps=8,
    )
