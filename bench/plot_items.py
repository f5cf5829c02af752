"""Time of a query by the number of items, a line for each number of queries at once, beside the loop of distances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from plot_hamming import LOOP, PLAIN, K

from agmh_fast.viz.figure import BLUE, MUTED, ORANGE, VIOLET, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS = 64
Lines = dict[int, list[tuple[float, ...]]]


def times(benches: Sequence[Mapping[str, Any]]) -> Lines:
    """queries -> (items, seconds a query, of the loop) by items, of unmasked searches that differ in them."""
    lines: dict[int, dict[int, tuple[float, ...]]] = defaultdict(dict)
    for row in benches:
        searched = row["name"].startswith((*PLAIN, "test_items[")) and row.get("limit") == LOOP
        if searched and (row["bits"], row["k"], row.get("scale")) == (BITS, K, 1):
            seconds = (row["contestants"][side]["p50_s"] for side in ("agmh_fast", "limit"))
            lines[row["queries"]][row["items"]] = tuple(seconds)
    return {
        queries: [(items, *seconds) for items, seconds in sorted(points.items())]
        for queries, points in sorted(lines.items())
        if len(points) > 1
    }


def draw(lines: Lines) -> Figure:
    """The picture; dashed is the loop that computes every distance and keeps none."""
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    for (queries, points), color in zip(lines.items(), (BLUE, ORANGE, VIOLET), strict=False):
        items, ours, loop = zip(*points, strict=True)
        name = f"{queries} {'query' if queries == 1 else 'queries'} at once"
        axes.plot(items, [1e6 * each for each in ours], color=color, marker="o", markersize=3.5, label=name)
        axes.plot(items, [1e6 * each for each in loop], color=color, linestyle="--", linewidth=0.9)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xlabel("items", fontsize=9, color=MUTED)
    dress(axes, f"Microseconds a query, {BITS} bits, k = {K}; dashed: every distance and nothing else")
    axes.legend(fontsize=8.5, frameon=False)
    return figure
