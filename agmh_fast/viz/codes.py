"""Codes as points of a plane: their two principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agmh_fast.errors import require
from agmh_fast.viz.figure import INK, MUTED, as_array, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 20


def principal_components(codes: Any, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (N, count) of codes (N, bits), of any numbers, and the share of the variance in each (count,).

    By a singular value decomposition of the centred codes, in float64. The sign of a component is that with which its
    largest weight is positive. Components beyond the codes' rank are 0. Raises InputError for bad shapes.
    """
    points = as_array("codes", codes, 2).astype(np.float64)
    require(points.size > 0 and count >= 1, f"codes must be (N, bits), got {points.shape}, and count 1 or more")
    centred = points - points.mean(axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:count]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    coordinates, shares = np.zeros((len(points), count)), np.zeros(count)
    coordinates[:, : len(axes)] = centred @ axes.T
    shares[: len(axes)] = values[:count] ** 2 / max((values**2).sum(), np.finfo(np.float64).tiny)
    return coordinates, shares


def code_scatter(codes: Any, labels: Any, class_names: Sequence[str]) -> Figure:
    """The codes (N, bits) in the plane of their two principal components, a colour a class.

    labels (N,) index class_names; up to 20 classes are named. Raises InputError for bad shapes.
    """
    points, shares = principal_components(codes)
    labels = as_array("labels", labels, 1)
    require(len(labels) == len(points), f"labels must hold {len(points)} classes, got {len(labels)}")
    named = len(class_names) <= _NAMED
    figure = new_figure(7.5 if named else 5.5, 5)
    axes = figure.subplots()
    for label in np.unique(labels):
        chosen = points[labels == label]
        colour = _colour(label / max(len(class_names), 1))
        name = class_names[label] if named else None
        axes.scatter(chosen[:, 0], chosen[:, 1], s=14, color=colour, alpha=0.7, linewidths=0, label=name)
    dress(axes, f"codes by their principal components ({shares.sum():.0%} of the variance)")
    axes.set_xlabel(f"first ({shares[0]:.0%})", color=MUTED)
    axes.set_ylabel(f"second ({shares[1]:.0%})", color=MUTED)
    if named:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _colour(place: float) -> tuple[float, float, float]:
    """A hue from a circle, `place` from 0 to 1."""
    from matplotlib.colors import hsv_to_rgb

    return tuple(hsv_to_rgb((place % 1, 0.75, 0.8)))
