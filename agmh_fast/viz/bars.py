"""Numbers side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agmh_fast.errors import require
from agmh_fast.viz.figure import BLUE, INK, MUTED, ORANGE, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bar_chart(
    bars: Sequence[tuple[str, float]], label: str, say: Callable[[float], str] = "{:.3g}".format, log: bool = False
) -> Figure:
    """A horizontal bar for each (name, value), its value written by `say` at its end.

    With `log` bars start at 1 on a logarithmic scale, and those below 1 have another colour. Raises InputError if there
    is none.
    """
    require(len(bars) > 0, "bars must hold at least one bar")
    figure = new_figure(8, 1 + 0.22 * len(bars))
    axes = figure.subplots()
    names, values = zip(*bars, strict=True)
    places = range(len(bars))
    start = 1 if log else 0
    colors = [BLUE if value >= start else ORANGE for value in values]
    axes.barh(places, [value - start for value in values], left=start, color=colors, height=0.7)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            say(value),
            (max(value, start), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=INK,
        )
    dress(axes, label)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelsize=7.5, labelcolor=INK)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: say(value))
        axes.minorticks_off()
        axes.axvline(1, color=MUTED, linewidth=0.9)
    axes.margins(x=0.12, y=0.5 / len(bars))
    return figure
