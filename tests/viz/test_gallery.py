"""The gallery marks each neighbour right or wrong in three ways: frame colour, frame style and glyph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from agmh_fast.errors import InputError
from agmh_fast.viz import png_bytes, retrieval_gallery
from agmh_fast.viz.figure import MUTED, RIGHT, WRONG


def arguments() -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)
    return {
        "queries": pixels[:2],
        "query_names": ["wren", "a bird with a name that goes on and on until nobody reads it any more"],
        "neighbours": torch.from_numpy(pixels[2:].reshape(2, 3, 6, 5, 3)),
        "neighbour_names": [["wren", "wren", "finch"], ["owl", "$5 <owl>", ""]],
        "distances": torch.tensor([[0, 1, 7], [2, 2, 3]]),
        "correct": torch.tensor([[True, True, False], [False, False, True]]),
    }


def test_each_query_has_a_row_with_names_distances_and_marks() -> None:
    figure = retrieval_gallery(**arguments())
    png_bytes(figure, dpi=60)
    panels = figure.axes
    assert [axes.get_title() for axes in panels] == ["query", "✓ 0", "✓ 1", "✗ 7", "query", "✗ 2", "✗ 2", "✓ 3"]
    assert [axes.get_xlabel() for axes in panels[:4]] == ["wren", "wren", "wren", "finch"]
    assert panels[4].get_xlabel().endswith("…")
    assert len(panels[4].get_xlabel().splitlines()) == 3
    assert np.array_equal(panels[1].images[0].get_array(), arguments()["neighbours"][0, 0])


def test_right_and_wrong_differ_in_colour_style_and_glyph() -> None:
    from matplotlib.colors import to_rgba

    _, right, _, wrong = retrieval_gallery(**arguments()).axes[:4]
    assert right.spines["left"].get_edgecolor() == to_rgba(RIGHT)
    assert wrong.spines["left"].get_edgecolor() == to_rgba(WRONG)
    assert right.spines["left"].get_linestyle() != wrong.spines["left"].get_linestyle()
    assert right.get_title()[0] != wrong.get_title()[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.zeros((3, 6, 5, 3), np.uint8)}, "queries and neighbours must be as many, got 3 and 2"),
        ({"queries": np.zeros((2, 6, 5, 3))}, "queries must be uint8 pictures"),
        ({"neighbours": np.zeros((2, 6, 5, 3), np.uint8)}, "neighbours must have 5 axes"),
        ({"distances": [[1, 2]]}, r"distances and correct must have shape \(2, 3\)"),
        ({"query_names": ["wren"]}, "query_names must hold 2 names, got 1"),
        ({"neighbour_names": [["a"], ["b"]]}, "neighbour_names must hold 2 lists of 3 names"),
    ],
)
def test_bad_shapes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        retrieval_gallery(**{**arguments(), **change})


def test_without_knowing_what_is_right_frames_are_neutral_and_places_may_be_empty() -> None:
    from matplotlib.colors import to_rgba

    queries, neighbours = np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 2, 4, 4, 3), np.uint8)
    figure = retrieval_gallery(queries, ["q"], neighbours, [["found", ""]], [[3, -1]])
    shown, empty = figure.axes[1:]
    assert shown.get_title() == "3"
    assert shown.spines["top"].get_edgecolor() == to_rgba(MUTED)
    assert not empty.axison
    assert empty.get_images() == []
