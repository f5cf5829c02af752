"""HTML pages of what `agmh-fast evaluate` and `agmh-fast bench` print."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agmh_fast.errors import require
from agmh_fast.recorded import cores, duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from agmh_fast.metrics import RetrievalMetrics

Scored = Mapping[str, Mapping[str, "RetrievalMetrics"]]


def check_report(path: str | None) -> None:
    """Before anything that takes long: raise InputError if a page could not be drawn, or not be written to `path`."""
    if path is None:
        return
    from agmh_fast.viz.figure import new_figure

    new_figure(1, 1)
    target = Path(path)
    require(target.parent.is_dir(), f"report: there is no folder {str(target.parent)!r} to write {target.name!r} in")
    require(not target.is_dir(), f"report: {path!r} is a folder; name a file in it")


def times(speedup: float | None) -> str | None:
    """A ratio as it is read."""
    return None if speedup is None else f"{speedup:.3g}×" if speedup < 999.5 else f"{speedup:,.0f}×"


def score_figures(scored: Scored) -> dict[str, Figure]:
    """Of scores by rule for ties, by name: precision over recall and, with several code lengths, mAP over them."""
    from agmh_fast import viz

    firsts = {name: scores["stable"] for name, scores in scored.items()}
    curves = {name: (score.pr_curve.precision, score.pr_curve.recall) for name, score in firsts.items()}
    figures = {"precision_recall": viz.precision_recall_curves(curves)}
    lines: dict[str, dict[int, str]] = {}
    alone, several = {}, {}
    for name, score in firsts.items():
        # The lengths of one training lie side by side: a line for each such folder.
        beside = lines.setdefault(os.path.dirname(name) or ".", {})
        if beside.setdefault(score.bits, name) != name:
            alone[name] = {score.bits: score.map}
    for folder, runs in lines.items():
        # A folder of runs may be a run itself, which has the name.
        shared = folder if folder not in firsts else f"{folder}/*"
        line = shared if len(runs) > 1 else next(iter(runs.values()))
        several[line] = {bits: firsts[run].map for bits, run in runs.items()}
    if len({score.bits for score in firsts.values()}) > 1:
        figures["map_by_bits"] = viz.map_by_bits(several | alone)
    return figures


_SCORES = """
Several items at one distance have no order of their own, and a score depends on the order that they are given: each row
is a rule for that.
"""
_CURVES = """
Precision and recall of all items within a Hamming radius, one point a radius. A query that finds nothing within it
counts as precision 0.
"""


def write_scores(path: str, scored: Scored, about: Mapping[str, str]) -> None:
    """The page of `agmh-fast evaluate`: scores of each named set of codes, by rule for ties, and what they are of."""
    from agmh_fast import viz

    firsts = {name: scores["stable"] for name, scores in scored.items()}
    figures = score_figures(scored)
    pictures = [viz.Picture(figures["precision_recall"], f"Precision over recall of {', '.join(firsts)}")]
    if "map_by_bits" in figures:
        points = ", ".join(f"{score.map:.3f} at {score.bits} bits" for score in firsts.values())
        pictures.append(viz.Picture(figures["map_by_bits"], f"mAP by code length: {points}"))
    sections = [viz.Section("Precision, recall and code length", _CURVES, pictures)]
    sections += [_scores_section(name, scores, about.get(name)) for name, scores in scored.items()]
    best_name, best = max(firsts.items(), key=lambda item: item[1].map)
    cutoff = 10 if 10 in best.precision_at else min(best.precision_at)
    viz.write_report(
        path,
        "How well codes retrieve",
        {},
        sections,
        lead=(
            f"{best.num_queries:,} queries over {best.num_database:,} database items. "
            f"The numbers below are those of {best_name}, {best.bits} bits, ties in the order of the database."
        ),
        highlights={
            "mAP": round(best.map, 4),
            f"precision of the first {cutoff}": round(best.precision_at[cutoff], 4),
            "precision within radius 2": round(best.precision_radius2, 4),
            "bits of a code": best.bits,
        },
    )


def _scores_section(name: str, scores: Mapping[str, RetrievalMetrics], about: str | None) -> Any:
    from agmh_fast import viz

    first = scores["stable"]
    header = ["ties", "mAP", *(f"P@{c}" for c in first.precision_at), *(f"R@{c}" for c in first.recall_at)]
    rows = [
        [ties, *(f"{value:.4f}" for value in (score.map, *score.precision_at.values(), *score.recall_at.values()))]
        for ties, score in scores.items()
    ]
    text = _SCORES if about is None else f"Of the {about}. {_SCORES}"
    return viz.Section(name, text, tables=[viz.Table(first.definition, header, rows)])


QUICK = "Small sizes, to see that everything runs: these numbers mean nothing."
_BENCH = """
Medians; both sides were shown to give the same before they were timed, in turns. Recorded figures are those that the
package carries, of the machine named above. Everything ran on the CPU.
"""


def origin(run: Mapping[str, Any]) -> str:
    """Where, when and of what a recorded run was made."""
    return f"{run['cpu']}, {cores(run)}, {run['datetime'][:10]}, commit {run['commit'][:10]}"


def write_bench(path: str, found: Mapping[str, Any]) -> None:
    """The page of `agmh-fast bench`, of what `selfbench.run` returned."""
    from agmh_fast import viz

    rows, machine = found["rows"], found["machine"]
    bars = [(f"{row['what']}: {where}", row[key]) for row in rows for where, key in _SIDES.items() if row[key]]
    pictures = []
    if bars:
        figure = viz.bar_chart(bars, "times faster, here and as recorded", lambda value: str(times(value)), log=True)
        shown = "; ".join(f"{name} {times(value)}" for name, value in bars)
        pictures = [viz.Picture(figure, f"Bars of speed-ups: {shown}", wide=True)]
    highlights = {", ".join(row["what"].split(", ")[:2]): times(row["speedup"]) for row in rows if row["speedup"]}
    header = ["what", "here", "times faster", "recorded", "times faster", "against"]
    cells = [
        [
            row["what"], duration(row["seconds"]), times(row["speedup"]),
            duration(row["recorded_seconds"]) if row["recorded_seconds"] is not None else "not recorded",
            times(row["recorded_speedup"]) or "not recorded", row["against"],
        ]
        for row in rows
    ]  # fmt: skip
    recorded = {f"recorded in {run['name']}": origin(run) for run in found["recorded"]}
    viz.write_report(
        path,
        "How fast this machine is",
        {"here": f"{machine['cpu']}, {machine['threads']} threads", **_versions(machine), **recorded, "on a GPU": None},
        [
            viz.Section(
                "Beside the recorded runs", _BENCH, pictures, [viz.Table("Time of a unit of work", header, cells)]
            )
        ],
        lead=QUICK if found["quick"] else _LEAD,
        highlights={} if found["quick"] else highlights,
        caption="Where",
    )


_LEAD = "A minute of measurements by agmh-fast bench, beside the package's own recorded ones."
_SIDES = {"here": "speedup", "recorded": "recorded_speedup"}


def _versions(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name not in ("cpu", "cores", "threads")}
