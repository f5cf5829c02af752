"""Attention overlays: one panel a descriptor, heat where the map is high."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agmh_fast.errors import InputError
from agmh_fast.viz import attention_gallery, overlay, png_bytes


def test_each_image_has_a_row_with_a_panel_for_each_descriptor() -> None:
    maps = torch.full((2, 3, 4, 4), 1 / 16)
    maps[0, 1] = 0
    maps[0, 1, 2, 2] = 1
    figure = attention_gallery(np.full((2, 16, 16, 3), 255, np.uint8), maps, ["wren", "owl"])
    png_bytes(figure, dpi=60)
    panels = figure.axes
    row = ["image", "descriptor 1", "descriptor 2", "descriptor 3"]
    assert [axes.get_title() for axes in panels] == row * 2
    assert [panels[0].get_xlabel(), panels[4].get_xlabel()] == ["wren", "owl"]
    # An even map peaks at its mean; one that holds all in one of 16 positions peaks at 16 times its mean.
    assert [axes.get_xlabel() for axes in panels[1:3]] == ["peak 1.0× mean", "peak 16.0× mean"]


def test_overlay_tints_the_peak_most_and_leaves_the_rest() -> None:
    image = np.full((32, 32, 3), 200, np.uint8)
    heat = np.zeros((4, 4))
    heat[0, 3] = 0.5
    shown = overlay(image, heat)
    assert shown.dtype == np.uint8
    assert shown.shape == image.shape
    change = np.abs(shown.astype(int) - 200).sum(axis=2)
    assert change[16:].max() == 0
    assert change[:, :12].max() == 0
    assert change[2, 29] == change.max() > 100


def test_overlay_of_an_empty_map_is_the_image_and_sizes_need_not_divide() -> None:
    image = np.random.default_rng(0).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    assert np.array_equal(overlay(image, np.zeros((4, 7))), image)


def test_bad_input_is_named() -> None:
    image = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="images and maps must be as many, got 1 and 2"):
        attention_gallery(image, torch.ones(2, 3, 4, 4))
    with pytest.raises(InputError, match="maps must have 4 axes"):
        attention_gallery(image, torch.ones(3, 4, 4))
    with pytest.raises(InputError, match="images and maps must be as many"):
        attention_gallery(image, torch.ones(1, 0, 4, 4))
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="maps must be finite and non-negative"):
            attention_gallery(image, torch.full((1, 2, 4, 4), value))
    with pytest.raises(InputError, match="names must hold 1 names"):
        attention_gallery(image, torch.ones(1, 2, 4, 4), ["a", "b"])
