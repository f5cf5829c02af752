"""Figures that need no display, no pyplot and no change of matplotlib's settings."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agmh_fast.errors import InputError, require
from agmh_fast.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2328", "#59636e", "#d8dee4"
BLUE, ORANGE, VIOLET = "#0b5cad", "#b35900", "#6f42c1"
RIGHT, WRONG = "#1a7f37", "#c1121f"
FIGURE_DPI = 180


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches on white. Raises InputError if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("pictures need matplotlib: pip install 'agmh-fast[viz]'") from error
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure, dpi: int = FIGURE_DPI) -> bytes:
    """The figure as a PNG file in memory; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """The figure as an SVG file in memory, letters as outlines; equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "agmh_fast"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save_png(figure: Figure, path: str | os.PathLike[str], dpi: int = FIGURE_DPI) -> None:
    """Write the figure to the PNG file `path`, whole or not at all. Raises InputError if it cannot be written."""
    data = png_bytes(figure, dpi)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def as_array(name: str, value: Any, ndim: int) -> np.ndarray:
    """A tensor, array or nested list as an array of `ndim` axes; raises InputError otherwise."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    require(array.ndim == ndim, f"{name} must have {ndim} axes, got shape {tuple(array.shape)}")
    return array


def as_pictures(name: str, value: Any, ndim: int) -> np.ndarray:
    """Like `as_array`, for uint8 colour pictures (..., H, W, 3)."""
    array = as_array(name, value, ndim)
    require(
        array.dtype == np.uint8 and array.shape[-1] == 3 and array.size > 0,
        f"{name} must be uint8 pictures (..., H, W, 3), at least one, got {array.dtype} {tuple(array.shape)}",
    )
    return array


def show_picture(axes: Axes, picture: np.ndarray, frame: str = GRID, style: Any = "-", width: float = 0.8) -> None:
    """Draw a picture (H, W, 3 or 4) with a frame and no ticks."""
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=frame, linewidth=width, linestyle=style)


def dress(axes: Axes, title: str) -> None:
    """Title at the left, light grid, no box."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.grid(color=GRID, linewidth=0.7)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
