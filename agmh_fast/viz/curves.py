"""Losses and retrieval quality over the time of a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agmh_fast.errors import InputError, require
from agmh_fast.viz.figure import BLUE, INK, MUTED, ORANGE, VIOLET, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

_LOSSES = (
    ("pairwise", "pairwise", BLUE),
    ("quantization", "quantization", ORANGE),
    ("attention_dispersion", "attention dispersion", VIOLET),
)


def loss_curves(rows: Rows) -> Figure:
    """The three losses over time, a panel each with its own scale.

    A row holds "seconds" and "pairwise", "quantization", "attention_dispersion"; an absent value, None or NaN leaves
    the point out. Raises InputError if there is no row or a value is not a number.
    """
    unit, scale = _time_unit(rows)
    figure = new_figure(5, 5.4)
    panels = figure.subplots(len(_LOSSES), 1, sharex=True)
    for axes, (key, title, colour) in zip(panels, _LOSSES, strict=True):
        seconds, values = _series(rows, key)
        axes.plot(seconds / scale, values, color=colour, linewidth=1.6, marker=_marker(values), markersize=3)
        dress(axes, f"{title} loss")
    panels[-1].set_xlabel(f"training time ({unit})", color=MUTED)
    return figure


def map_curve(rows: Rows) -> Figure:
    """Mean average precision of the queries over time, from 0 to 1, the last value written beside its point.

    A row holds "seconds" and "map"; rows without a map are left out. Raises InputError as `loss_curves` does.
    """
    unit, scale = _time_unit(rows)
    figure = new_figure(5, 3.4)
    axes = figure.subplots()
    seconds, values = _series(rows, "map")
    axes.plot(seconds / scale, values, color=BLUE, linewidth=1.8, marker="o", markersize=3.5)
    if len(values):
        below = values[-1] > 0.85
        axes.annotate(
            f"{values[-1]:.3f}",
            (seconds[-1] / scale, values[-1]),
            xytext=(0, -8 if below else 8),
            textcoords="offset points",
            ha="right",
            va="top" if below else "bottom",
            color=INK,
            fontweight="bold",
        )
    axes.set_ylim(0, 1)
    dress(axes, "mean average precision")
    axes.set_xlabel(f"training time ({unit})", color=MUTED)
    return figure


def _series(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and finite values of the rows that have `key`."""
    points = []
    for row in rows:
        if row.get(key) in (None, ""):
            continue
        try:
            point = float(row["seconds"]), float(row[key])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"rows must hold numbers under 'seconds' and {key!r}, got {dict(row)}") from error
        if math.isfinite(point[1]):
            points.append(point)
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _time_unit(rows: Rows) -> tuple[str, float]:
    """The unit that suits the last row, and its seconds."""
    require(len(rows) > 0, "rows must hold at least one row of a training run")
    seconds, _ = _series(rows, "seconds")
    last = seconds.max(initial=0.0)
    return ("s", 1.0) if last < 600 else ("min", 60.0) if last < 4 * 3600 else ("h", 3600.0)


def _marker(values: np.ndarray) -> str | None:
    """Points where a line alone would hide how few there are."""
    return "o" if len(values) <= 30 else None
