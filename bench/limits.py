"""The work of a row, and what this machine gives without us, measured once a run."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from measuring import Clock, copy_bandwidth

# Side of the matrices whose product gives the rate of products: large enough for all of a machine's units.
_SIDE = {"cpu": 1024, "cuda": 8192}


@dataclass(frozen=True)
class Work:
    """What one call of ours does: bytes that must move at least, and operations, in `operation`: "flop" or, of codes of
    `bits`, "pair". images, where those are counted.
    """

    bytes: float = 0
    operations: float = 0
    operation: str = ""
    bits: int = 0
    images: int = 0

    @classmethod
    def search(cls, queries: int, items: int, bits: int, results: int) -> Work:
        """Every code read once, every pair compared, `results` distances and ids written."""
        width = (bits + 7) // 8
        return cls((queries + items) * width + 12 * results, queries * items, "pair", bits)

    def rates(self, seconds: float) -> dict[str, float]:
        """Of a call that takes so long."""
        found = {"gb_per_s": self.bytes / seconds / 1e9} if self.bytes else {}
        if self.operations:
            found[f"g{self.operation}{'s' if self.operation == 'pair' else ''}_per_s"] = self.operations / seconds / 1e9
        return found | ({"images_per_s": self.images / seconds} if self.images else {})

    def facts(self) -> dict[str, Any]:
        """What is recorded of it."""
        found: dict[str, Any] = {"bytes": round(self.bytes)} if self.bytes else {}
        return found | ({"operations": round(self.operations), "operation": self.operation} if self.operations else {})


@dataclass(frozen=True)
class Limit:
    """What cannot be beaten, or not by much: a side of the race, or seconds of a call of ours."""

    name: str
    side: str | None = None
    seconds: float = 0


@functools.cache
def copy_rate(device: torch.device) -> float:
    """Bytes a second of a plain copy, read and written bytes counted."""
    return copy_bandwidth(device)


@functools.cache
def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of large square matrices, as torch has it by default."""
    side, clock = _SIDE[device.type], Clock(device)
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * side**3 / statistics.median(clock.seconds(lambda: a @ b) for _ in range(7))


def roof(work: Work, device: torch.device, dtype: torch.dtype) -> Limit:
    """The slower of moving the work's bytes and doing its products, each at this machine's own rate."""
    moving = work.bytes / copy_rate(device)
    multiplying = work.operations / product_rate(device, dtype) if work.operations else 0
    return Limit("copy bandwidth", seconds=moving) if moving >= multiplying else Limit("products", seconds=multiplying)


def roofs(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Both rates, to draw a roofline with."""
    return {
        "copy_gb_per_s": copy_rate(device) / 1e9,
        "product_gflop_per_s": product_rate(device, dtype) / 1e9,
    }
