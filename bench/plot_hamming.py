"""Draw how near searches come to the loop that only computes distances, by queries at once, a line for each width.

    python -m pytest bench/test_hamming_cpu.py --benchmark-json=RUN.json
    python bench/plot_hamming.py RUN.json OUT.png

RUN.json may also be a recorded run of bench/results/. Above 1 a search is faster than computing every distance.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import drawing

from agmh_fast.viz.figure import INK, MUTED, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

K = 100
LOOP = "distance loop"
# Searches of a million random items without a mask.
PLAIN = ("test_topk[", "test_share_of_the_limit[")
Lines = dict[int, list[tuple[int, float]]]


def shares(run: Mapping[str, Any]) -> Lines:
    """bits -> (queries, share of the limit) by queries, of the unmasked searches for K items; ValueError without any.

    A run at a smaller scale has fewer items than K may be: it says nothing and has no lines.
    """
    lines: dict[int, dict[int, float]] = defaultdict(dict)
    for bench in run["benchmarks"]:
        row = bench.get("extra_info", bench)
        if bench["name"].startswith(PLAIN) and row.get("limit") == LOOP and row.get("k") == K and row.get("scale") == 1:
            lines[row["bits"]][row["queries"]] = row["of_limit"]
    if not lines:
        raise ValueError("it has no searches of a full-sized database beside the loop of distances")
    return {bits: sorted(points.items()) for bits, points in sorted(lines.items())}


def draw(lines: Lines) -> Figure:
    """The picture; widths run from light to dark, named at the end of their lines."""
    import matplotlib

    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    colors = matplotlib.colormaps["viridis_r"]
    axes.axhline(1, color=INK, linewidth=0.9)
    beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 8.5, "color": INK}
    axes.annotate("every distance,\nnothing else", (1, 1), (6, 0), va="center", annotation_clip=False, **beside)
    for i, (bits, points) in enumerate(lines.items()):
        color = colors(0.15 + 0.85 * i / max(1, len(lines) - 1))
        axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3.5, linewidth=1.6, label=f"{bits}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    queries = sorted({count for points in lines.values() for count, _ in points})
    axes.set_xticks(queries, [str(count) for count in queries])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.minorticks_off()
    axes.set_xlabel("queries at once", fontsize=9, color=MUTED)
    dress(axes, f"Search for k = {K} beside the loop of distances, by bits a code")
    axes.legend(
        title="bits", title_fontsize=8.5, fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    return drawing.run(__doc__, lambda run: draw(shares(run)), arguments)


if __name__ == "__main__":
    sys.exit(main())
