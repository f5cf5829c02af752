"""Tuning as data: the tile of the sweep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from agmh_fast.kernels.common.device import capability

MAX_BITS = 512


@dataclass(frozen=True)
class Config:
    """Rows of a program, bits that it decides at a time, and its warps."""

    rows: int
    bits: int
    warps: int


def choose(device: torch.device) -> Config:
    """One tile for every N and L.

    16 bits are the fewest that a product takes, and each bit of a block costs a look at the whole tile. With four warps
    and 64 rows Triton 3.6 would send float64 to those tensor cores of sm_100 that do not know it. Where it takes none
    for float64 at all, two warps would spill.
    """
    cc = capability(device)
    return Config(rows=32, bits=16, warps=2 if cc in (80, 90) or 100 <= cc < 120 else 4)
