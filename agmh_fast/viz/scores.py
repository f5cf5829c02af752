"""Retrieval quality: precision against recall, and mAP against code length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agmh_fast.errors import require
from agmh_fast.viz.figure import BLUE, INK, MUTED, ORANGE, RIGHT, VIOLET, WRONG, as_array, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (BLUE, ORANGE, VIOLET, RIGHT, WRONG, MUTED)
_MARKERS = ("o", "s", "^", "D", "v", "P")


def precision_recall_curves(curves: Mapping[str, tuple[Any, Any]]) -> Figure:
    """A line a name, through the precision and recall (bits + 1,) of all items within each Hamming radius.

    A value is a `PrecisionRecallCurve` or a pair. Radii within which a query finds nothing count as precision 0, as in
    the numbers. Raises InputError if there is none or shapes differ.
    """
    require(len(curves) > 0, "curves must hold at least one curve")
    figure = new_figure(5, 4)
    axes = figure.subplots()
    for number, (name, (precision, recall)) in enumerate(curves.items()):
        precision, recall = as_array("precision", precision, 1), as_array("recall", recall, 1)
        require(precision.shape == recall.shape, f"precision and recall of {name!r} must be as many")
        axes.plot(recall, precision, **_style(number), label=name)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    dress(axes, "precision over recall, by Hamming radius")
    axes.set_xlabel("recall", color=MUTED)
    _name_lines(axes)
    return figure


def map_by_bits(series: Mapping[str, Mapping[int, float]]) -> Figure:
    """A line a name: mAP, from 0 to 1, at each code length, in bits. Raises InputError if there is no point."""
    require(any(series.values()), "series must hold at least one mAP")
    figure = new_figure(5, 3.6)
    axes = figure.subplots()
    lengths = sorted({bits for scores in series.values() for bits in scores})
    for number, (name, scores) in enumerate(series.items()):
        axes.plot(sorted(scores), [scores[bits] for bits in sorted(scores)], **_style(number), label=name)
    axes.set_ylim(0, 1)
    axes.set_xticks(lengths)
    dress(axes, "mean average precision")
    axes.set_xlabel("bits of a code", color=MUTED)
    _name_lines(axes)
    return figure


def _style(number: int) -> dict[str, Any]:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    return {"color": colour, "marker": marker, "linewidth": 1.6, "markersize": 3.5}


def _name_lines(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
