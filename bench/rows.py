"""Rows of a run, recorded or fresh from pytest-benchmark, in one form: what was measured, beside what, how exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import described, load, of_these_benches

from agmh_fast.recorded import seconds

_RATES = {"gpairs_per_s": "Gpairs/s", "gflop_per_s": "GFLOP/s", "images_per_s": "images/s", "gb_per_s": "GB/s"}

# Without these nobody knows where and of what a run was made.
_ORIGIN = ("datetime", "commit", "cpu", "cores", "torch", "python")


@dataclass(frozen=True)
class Row:
    """One bench: seconds a unit of work, times faster than `against`, and the share of `limit` that it reaches.

    spread is the relative distance from the median to the middle 60 % (or half of the rounds) of all timings that the
    speed-up is made of; peaks are bytes by contestant; missed are the figures that miss their target; absent says who
    did not take part, and why. facts is the row as it was recorded.
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
    absent: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> dict[str, Any]:
    """A run: what `--benchmark-json` wrote, or what bench/record.py made of it; ValueError names a file of neither."""
    try:
        run = load(path)
        run = described(run) if "machine_info" in run else run
        if missing := [key for key in _ORIGIN if key not in run]:
            raise ValueError(f"it does not say its {', '.join(missing)}")
        with of_these_benches():
            rows(run)
        return run
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def rows(run: Mapping[str, Any]) -> list[Row]:
    """Every bench of a run."""
    return [_row(bench) for bench in run["benchmarks"]]


def _row(bench: Mapping[str, Any]) -> Row:
    contestants = bench.get("contestants", {})
    return Row(
        bench["name"],
        bench["group"],
        seconds(dict(bench)),
        _spread(bench),
        bench.get("against"),
        bench.get("speedup"),
        bench.get("of_limit"),
        bench.get("limit"),
        next((f"{bench[key]:.3g} {unit}" for key, unit in _RATES.items() if key in bench), None),
        {name: each["peak_bytes"] for name, each in contestants.items() if "peak_bytes" in each},
        tuple(_bound(target) for target in bench.get("targets", []) if not target["met"]),
        bench.get("not_measured", {}),
        bench,
    )


def _spread(bench: Mapping[str, Any]) -> float:
    """Of our timings and, where there is one, the baseline's."""
    contestants = bench.get("contestants", {})
    timings = [*list(contestants.values())[:1], *([contestants[bench["against"]]] if "against" in bench else [])]
    if not timings or any("p20_s" not in each for each in timings):
        return 0.5 * bench["iqr_s"] / bench["median_s"]
    return sum(0.5 * (each["p80_s"] - each["p20_s"]) / each["p50_s"] for each in timings)


def _bound(target: Mapping[str, Any]) -> str:
    sign, bound = (">=", target["least"]) if "least" in target else ("<=", target["most"])
    return f"{target['figure']} {sign} {bound:g}"
