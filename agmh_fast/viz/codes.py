"""Codes as points of a plane: their two principal components, or t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agmh_fast.errors import InputError, require
from agmh_fast.viz.figure import INK, MUTED, as_array, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROJECTIONS = ("pca", "tsne")

_NAMED = 20
# t-SNE takes minutes for more, and paints them over each other.
_TSNE_CODES = 5000


def check_projection(projection: str) -> None:
    """Raise InputError for an unknown projection, and for t-SNE without scikit-learn."""
    require(projection in PROJECTIONS, f"projection must be one of {', '.join(PROJECTIONS)}, got {projection!r}")
    if projection == "tsne":
        _tsne()


def _tsne() -> Any:
    """scikit-learn's t-SNE."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise InputError("t-SNE needs scikit-learn: pip install 'agmh-fast[tsne]', or take pca") from error
    return TSNE


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


def neighbour_embedding(codes: Any, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Coordinates (N, 2) float32 of codes (N, bits) by t-SNE, which keeps neighbours together and distances not.

    By scikit-learn, from the principal components; for ±1 codes the squared distances that it takes are four times
    Hamming's. perplexity: neighbours that count, at most a third of the others. seed: same picture on the same machine.
    Source: van der Maaten and Hinton, JMLR 2008. Raises InputError for bad shapes, and without scikit-learn.
    """
    points = as_array("codes", codes, 2).astype(np.float32)
    require(len(points) >= 4 and points.shape[1] > 0, f"codes must be (N, bits), N of 4 or more, got {points.shape}")
    require(perplexity > 0, f"perplexity must be above 0, got {perplexity!r}")
    tsne = _tsne()
    # The two components themselves: scikit-learn's start is a division by zero where all codes are equal.
    start = principal_components(points)[0]
    start = start / max(float(start[:, 0].std()), np.finfo(np.float32).tiny) * 1e-4
    fitted = tsne(perplexity=min(perplexity, (len(points) - 1) / 3), init=start.astype(np.float32), random_state=seed)
    return fitted.fit_transform(points)


def code_scatter(codes: Any, labels: Any, class_names: Sequence[str], projection: str = "pca") -> Figure:
    """The codes (N, bits) in a plane, a colour a class: that of their two principal components ("pca"), or of "tsne".

    labels (N,) index class_names; up to 20 classes are named. Of more than 5000 codes t-SNE takes so many, evenly
    spread over their order. Raises InputError for bad shapes and an unknown projection, and as `neighbour_embedding`.
    """
    check_projection(projection)
    codes, labels = as_array("codes", codes, 2), as_array("labels", labels, 1)
    require(len(labels) == len(codes), f"labels must hold {len(codes)} classes, got {len(labels)}")
    if projection == "pca":
        points, shares = principal_components(codes)
        title = f"codes by their principal components ({shares.sum():.0%} of the variance)"
        names = [f"{name} ({share:.0%})" for name, share in zip(("first", "second"), shares, strict=True)]
    else:
        taken = np.linspace(0, len(codes) - 1, min(len(codes), _TSNE_CODES)).round().astype(np.int64)
        points, labels = neighbour_embedding(codes[taken]), labels[taken]
        title = "codes by t-SNE" + (f" ({len(taken)} of {len(codes)})" if len(taken) < len(codes) else "")
        names = ["", ""]
    figure = _scatter(points, labels, class_names)
    axes = figure.axes[0]
    dress(axes, title)
    axes.set_xlabel(names[0], color=MUTED)
    axes.set_ylabel(names[1], color=MUTED)
    if projection == "tsne":
        # Distances in it mean nothing.
        axes.tick_params(labelbottom=False, labelleft=False)
    return figure


def _scatter(points: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Points (N, 2) coloured and, where they are few, named by class."""
    named = len(class_names) <= _NAMED
    figure = new_figure(7.5 if named else 5.5, 5)
    axes = figure.subplots()
    for label in np.unique(labels):
        chosen = points[labels == label]
        colour = _colour(label / max(len(class_names), 1))
        name = class_names[label] if named else None
        axes.scatter(chosen[:, 0], chosen[:, 1], s=14, color=colour, alpha=0.7, linewidths=0, label=name)
    if named:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _colour(place: float) -> tuple[float, float, float]:
    """A hue from a circle, `place` from 0 to 1."""
    from matplotlib.colors import hsv_to_rgb

    return tuple(hsv_to_rgb((place % 1, 0.75, 0.8)))
