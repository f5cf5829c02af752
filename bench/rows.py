"""Rows of a run, recorded or fresh from pytest-benchmark, in one form: what was measured, beside what, how exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import described

from agmh_fast.recorded import seconds

# What a row may note of the best that is possible: the loop of distances, memory's bandwidth, a kernel's fewest bytes.
_SHARES = {"of_limit": "distance loop", "of_bandwidth": "read bandwidth", "of_floor": "fewest bytes"}
_RATES = {"gpairs_per_s": "Gpairs/s", "gb_per_s": "GB/s"}


@dataclass(frozen=True)
class Row:
    """One bench: seconds a unit of work, times faster than `against`, and the share of `limit` that it reaches.

    spread is the relative distance from the median to the middle 60 % (or half of the rounds) of all timings that the
    speed-up is made of; peaks are bytes by contestant; missed are the figures that miss their target.
    """

    name: str
    group: str
    seconds: float
    spread: float
    against: str | None = None
    speedup: float | None = None
    share: float | None = None
    limit: str | None = None
    rate: str | None = None
    peaks: Mapping[str, int] = field(default_factory=dict)
    missed: tuple[str, ...] = ()


def read(path: Path) -> dict[str, Any]:
    """A run: what `--benchmark-json` wrote, or what bench/record.py made of it; ValueError if it is neither."""
    run = json.loads(path.read_text())
    if not isinstance(run, dict) or not run.get("benchmarks"):
        raise ValueError("it holds no benches")
    return described(run) if "machine_info" in run else run


def rows(run: Mapping[str, Any]) -> list[Row]:
    """Every bench of a run."""
    return [_row(bench) for bench in run["benchmarks"]]


def _row(bench: Mapping[str, Any]) -> Row:
    contestants = bench.get("contestants", {})
    # Ours stands first among the contestants, and has its own figures where all have.
    ours, own = next(iter(contestants.items()), ("ours", {}))
    facts = {**own, **bench}
    against = _against(bench, ours)
    share = next((key for key in _SHARES if key in facts), None)
    rate = next((f"{facts[key]:.3g} {unit}" for key, unit in _RATES.items() if key in facts), None)
    targets = bench.get("targets", [])
    if "target" in bench and "speedup" in bench and bench["speedup"] < bench["target"]:
        targets = [{"figure": "speedup", "least": bench["target"], "met": False}]
    return Row(
        bench["name"],
        bench["group"],
        own["p50_s"] if "speedup" in own else seconds(dict(bench)),
        _spread(bench, ours, against),
        against if "speedup" in facts else None,
        facts.get("speedup"),
        facts[share] if share else None,
        _SHARES[share] if share else None,
        rate,
        {name: each["peak_bytes"] for name, each in contestants.items() if "peak_bytes" in each},
        tuple(_bound(target) for target in targets if not target["met"]),
    )


def _against(bench: Mapping[str, Any], ours: str) -> str | None:
    """Whom the speed-up is over: the named baseline, or the contestant that takes so many times our time."""
    if "baseline_median_s" in bench:
        return "published form"
    if "baseline" in bench or "speedup" not in bench:
        return bench.get("baseline")
    others = [(name, each.get("times_ours", math.inf)) for name, each in bench["contestants"].items() if name != ours]
    return min(others, key=lambda other: abs(other[1] - bench["speedup"]))[0]


def _spread(bench: Mapping[str, Any], ours: str, against: str | None) -> float:
    contestants = bench.get("contestants", {})
    timings = [contestants[name] for name in (ours, against) if name in contestants]
    if not timings or "p20_s" not in timings[0]:
        return 0.5 * bench["iqr_s"] / bench["median_s"]
    return sum(0.5 * (each["p80_s"] - each["p20_s"]) / each["p50_s"] for each in timings)


def _bound(target: Mapping[str, Any]) -> str:
    sign, bound = (">=", target["least"]) if "least" in target else ("<=", target["most"])
    return f"{target['figure']} {sign} {bound:g}"
