"""What rows are to reach. A target that is missed is reported; only a wrong answer fails."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Items, queries of the largest metrics row and seconds of a race are multiplied by this, and models shrink: below 1 for
# a trial of the bench itself, whose figures say nothing.
SCALE = float(os.environ.get("AGMH_BENCH_SCALE", "1"))


def scaled(count: int, least: int = 512) -> int:
    """So many items at this run's scale."""
    return max(int(count * SCALE), min(count, least))


@dataclass(frozen=True)
class Target:
    """A bound on one of a row's figures: `least`, or `most` where less is better."""

    figure: str
    least: float | None = None
    most: float | None = None

    def verdict(self, measured: Mapping[str, float]) -> dict[str, Any]:
        """The bound, what was measured, and whether that is within it."""
        value = measured[self.figure]
        above = self.least is None or value >= self.least
        below = self.most is None or value <= self.most
        bound = {"least": self.least} if self.most is None else {"most": self.most}
        return {"figure": self.figure, **bound, "measured": value, "met": above and below}


def judged(targets: Sequence[Target], measured: Mapping[str, float]) -> dict[str, Any]:
    """What a row records of its targets; nothing where it has none."""
    verdicts = [target.verdict(measured) for target in targets]
    return {"targets": verdicts, "targets_met": all(v["met"] for v in verdicts)} if verdicts else {}


def described(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """One clause a target."""
    clauses = []
    for v in verdicts:
        bound = f">= {v['least']:g}" if "least" in v else f"<= {v['most']:g}"
        clauses.append(f"{v['figure']} {v['measured']:.3g} {'meets' if v['met'] else 'MISSES'} {bound}")
    return ", ".join(clauses)


# times the better of faiss's two ways, by bits, Q = 256 and more, k <= 1000
_WIDE = {128: 10.0, 256: 10.0, 512: 6.5, 1024: 5.0}


def topk_targets(bits: int, queries: int, k: int) -> list[Target]:
    """Of a search of a million items: `speedup` over faiss, `of_limit` the rate beside the loop of distances alone."""
    if bits in _WIDE and queries >= 256 and k <= 1000:
        return [Target("speedup", least=_WIDE[bits])]
    if 16 <= bits <= 48 and queries >= 1000 and k <= 100:
        return [Target("speedup", least=20.0 if bits == 32 else 60.0)]
    if bits != 64:
        return []
    if k <= 100:
        full = [Target("of_limit", least=1.0)] if queries >= 256 else []
        return [Target("speedup", least=16.0 if queries >= 256 else 12.0), *full]
    if k <= 1000:
        return [Target("speedup", least=15.0), Target("of_limit", least=0.8)] if queries >= 1000 else []
    return [Target("of_limit", least=0.35)] if k <= 10_000 else []


def ranking_targets() -> list[Target]:
    """Of k = N: times torch.argsort of distances that it is given."""
    return [Target("speedup", least=20.0)]
