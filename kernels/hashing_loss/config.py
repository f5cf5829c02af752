"""Tuning as data: tiles of the hashing loss, chosen from the batch and the number of bits."""

from __future__ import annotations

from dataclasses import dataclass

from agmh_fast.kernels.common.device import padded

MAX_BITS = 512


@dataclass(frozen=True)
class Config:
    """Images and bits of a tile, bits of a program (a multiple of the tile's), warps."""

    rows: int
    bits: int
    span: int
    warps: int


def choose(batch: int, bits: int) -> Config:
    """Tiles for u (B, L), of four elements a thread.

    Up to 32 images and 128 bits one program is done in the time that a second launch would take; beyond, each tile is
    a program of its own. Tiles of fewer than 64 rows keep Triton 3.6 from sending float64 products to tensor cores
    that do not know them.
    """
    rows, columns = min(32, padded(batch)), min(32, padded(bits))
    alone = batch <= 32 and bits <= 128
    return Config(rows, columns, span=padded(bits) if alone else columns, warps=rows * columns // 128)
