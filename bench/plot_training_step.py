"""Draw a step of training as stacked bars, its parts beside each other for the published step and ours.

    python -m pytest bench/test_training_step.py --benchmark-json=RUN.json
    python bench/plot_training_step.py RUN.json OUT.png

RUN.json may also be a recorded run of bench/results/.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import drawing

from agmh_fast.viz.figure import INK, MUTED, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Parts = dict[str, dict[str, float]]


def parts_of(run: Mapping[str, Any]) -> Parts:
    """contestant -> part -> seconds, of the last step at full size, of the largest batch; ValueError without."""
    for bench in reversed(run["benchmarks"]):
        row = bench.get("extra_info", bench)
        rivals = row.get("contestants", {})
        if row.get("scale") == 1 and rivals and all("parts_s" in facts for facts in rivals.values()):
            return {name: facts["parts_s"] for name, facts in rivals.items()}
    raise ValueError("it has no step of training at full size")


def draw(parts: Parts) -> Figure:
    """The picture: a bar a contestant, a colour a part, seconds of the whole at its end."""
    import matplotlib

    figure = new_figure(7.6, 0.9 + 0.5 * len(parts))
    axes = figure.subplots()
    colors = matplotlib.colormaps["viridis"]
    names, kinds = list(parts), list(next(iter(parts.values())))
    starts = [0.0] * len(names)
    for number, kind in enumerate(kinds):
        widths = [parts[name][kind] for name in names]
        axes.barh(names, widths, left=starts, color=colors(number / (len(kinds) - 1)), label=kind, height=0.62)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, total in enumerate(starts):
        axes.annotate(
            f"{total:.2f} s", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5, color=INK
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(starts))
    axes.set_xlabel("seconds of a step, forward and backward", fontsize=9, color=MUTED)
    dress(axes, "A step of training and its parts")
    axes.margins(x=0)
    axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    return drawing.run(__doc__, lambda run: draw(parts_of(run)), arguments)


if __name__ == "__main__":
    sys.exit(main())
