"""Bars begin at nothing, or at 1 where ratios are drawn, and say their values."""

from __future__ import annotations

import pytest

from agmh_fast.errors import InputError
from agmh_fast.viz import bar_chart, png_bytes
from agmh_fast.viz.figure import BLUE, ORANGE


def test_bars_have_their_lengths_names_and_values() -> None:
    axes = bar_chart([("a", 2.0), ("b", 0.5)], "megabytes").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2.0, 0.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["2", "0.5"]
    assert axes.get_title(loc="left") == "megabytes"


def test_ratios_start_at_one_and_slower_ones_are_told_apart() -> None:
    from matplotlib.colors import to_rgba

    figure = bar_chart([("faster", 100.0), ("slower", 0.5)], "times", lambda value: f"{value:g}×", log=True)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(1, 99), (1, -0.5)]
    assert [bar.get_facecolor() for bar in axes.patches] == [to_rgba(BLUE), to_rgba(ORANGE)]
    assert png_bytes(figure, 60).startswith(b"\x89PNG")


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(InputError, match="bars must hold"):
        bar_chart([], "none")
