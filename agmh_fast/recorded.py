"""The recorded results of the benches, as the package carries them (in a checkout: `bench/results/`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agmh_fast.errors import InputError


def folder() -> Path:
    """Where recorded results lie; InputError if this installation has none."""
    package = Path(__file__).resolve().parent
    places = (package / "results", package.parent / "bench" / "results")
    for place in places:
        if place.is_dir():
            return place
    raise InputError(f"recorded results are missing: they lie in neither {places[0]} nor {places[1]}")


def names(start: str = "") -> list[str]:
    """The recorded runs of benches whose names begin so, earliest first."""
    found = [path.stem for path in sorted(folder().glob(f"{start}*.json"))]
    runs = {name: run for name in found if isinstance(run := load(name), dict) and "benchmarks" in run}
    return sorted(runs, key=lambda name: str(runs[name]["datetime"]))


def load(name: str) -> dict[str, Any]:
    """A recorded run, e.g. "cpu-training": machine, versions, commit and its rows under "benchmarks"."""
    path = folder() / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the recorded results {path}: {error}") from error


def rows(*names: str) -> dict[str, dict[str, Any]]:
    """The rows of recorded runs by name, the last run's where several have one; under "run" its name and machine."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        run = load(name)
        about = {"name": name} | {key: value for key, value in run.items() if key != "benchmarks"}
        found |= {row["name"]: row | {"run": about} for row in run["benchmarks"]}
    return found


def seconds(row: dict[str, Any]) -> float:
    """Our median for one unit of work (a query in searches, else a call); we are the first contestant."""
    contestants: list[dict[str, Any]] = list(row.get("contestants", {}).values())
    return float(contestants[0]["p50_s"] if contestants else row["median_s"])


def cores(run: Mapping[str, Any]) -> str:
    """The cores that a run had, and whether other work gave way to it there."""
    urgent = f" at real-time priority ({run['real_time']})" if run.get("real_time") else ""
    return f"{run['cores']} cores{urgent}"


def number(value: float) -> str:
    """Three digits, or all of a large one."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """Three digits in the unit that suits what they are rounded to."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if float(shown := number(seconds * scale)) >= 1:
            return f"{shown} {unit}"
    return f"{number(seconds * 1e6)} µs"
