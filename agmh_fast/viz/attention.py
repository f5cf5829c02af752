"""Where each descriptor looks: attention maps laid over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from agmh_fast.errors import require
from agmh_fast.viz.figure import INK, MUTED, as_array, as_pictures, new_figure, show_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL = 1.35


def attention_gallery(images: Any, maps: Any, names: Sequence[str] | None = None) -> Figure:
    """One row an image: the image, then one panel a descriptor with its attention as a heat overlay.

    images (B, H, W, 3) uint8, maps (B, D, h, w) non-negative; names (B) label the rows. Maps are enlarged bilinearly;
    each is scaled to its own peak, and the number above it says how many times its mean that peak is. Raises
    InputError if shapes do not fit or a map has a negative or non-finite value.
    """
    images, maps = as_pictures("images", images, 4), as_array("maps", maps, 4)
    require(
        len(images) == len(maps) and maps.size > 0,
        f"images and maps must be as many, got {len(images)} and {len(maps)}",
    )
    require(
        bool(np.isfinite(maps).all() and (maps >= 0).all()),
        "maps must be finite and non-negative, as AGMH.attention_maps returns them",
    )
    require(names is None or len(names) == len(images), f"names must hold {len(images)} names")
    rows, columns = maps.shape[:2]
    figure = new_figure(_PANEL * (columns + 1), (_PANEL + 0.35) * rows)
    panels = figure.subplots(rows, columns + 1, squeeze=False)
    for row, image in enumerate(images):
        show_picture(panels[row, 0], image)
        panels[row, 0].set_title("image", fontsize=8.5, color=INK, pad=3)
        if names is not None:
            panels[row, 0].set_xlabel(names[row], fontsize=7.5, color=MUTED, labelpad=3)
        for column, heat in enumerate(maps[row]):
            axes = panels[row, column + 1]
            show_picture(axes, overlay(image, heat))
            axes.set_title(f"descriptor {column + 1}", fontsize=8.5, color=INK, pad=3)
            mean = float(heat.mean())
            axes.set_xlabel(f"peak {heat.max() / mean if mean else 0:.1f}× mean", fontsize=7.5, color=MUTED, labelpad=3)
    return figure


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 under the map `heat` (h, w), enlarged and scaled to its peak; uint8 (H, W, 3)."""
    from matplotlib import colormaps

    small = torch.as_tensor(np.asarray(heat, dtype=np.float64))[None, None]
    large = F.interpolate(small, image.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()
    share = (large / max(float(large.max()), np.finfo(np.float64).tiny))[..., None]
    colours = colormaps["inferno_r"](0.15 + 0.6 * share[..., 0])[..., :3] * 255
    opacity = 0.75 * share
    return np.round(image * (1 - opacity) + colours * opacity).astype(np.uint8)
