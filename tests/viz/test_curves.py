"""Curves show every finite value there is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agmh_fast.errors import InputError
from agmh_fast.viz import loss_curves, map_curve, png_bytes


def rows(count: int = 5, step: float = 10.0) -> list[dict[str, Any]]:
    return [
        {
            "seconds": step * i,
            "iteration": i,
            "epoch": 0,
            "pairwise": 15.0 - i,
            "quantization": 0.4,
            "attention_dispersion": 0.01 / (i + 1),
            "map": 0.1 * i if i % 2 == 0 else None,
        }
        for i in range(count)
    ]


def test_losses_have_a_panel_each_with_the_values_of_the_rows() -> None:
    figure = loss_curves(rows())
    panels = figure.axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["pairwise loss", "quantization loss", "attention dispersion loss"]
    seconds, values = panels[0].lines[0].get_data()
    assert np.array_equal(seconds, [0, 10, 20, 30, 40])
    assert np.array_equal(values, [15, 14, 13, 12, 11])
    assert panels[0].get_ylim() != panels[2].get_ylim()
    assert panels[-1].get_xlabel() == "training time (s)"
    png_bytes(figure)


def test_map_leaves_out_rows_without_one_and_writes_the_last() -> None:
    (axes,) = map_curve(rows()).axes
    seconds, values = axes.lines[0].get_data()
    assert np.array_equal(seconds, [0, 20, 40])
    np.testing.assert_allclose(values, [0, 0.2, 0.4])
    assert [text.get_text() for text in axes.texts] == ["0.400"]
    assert axes.get_ylim() == (0, 1)


@pytest.mark.parametrize(("step", "unit", "last"), [(60, "s", 240), (300, "min", 20), (7200, "h", 8)])
def test_time_has_the_unit_that_suits_it(step: float, unit: str, last: float) -> None:
    axes = map_curve(rows(step=step)).axes[0]
    assert axes.get_xlabel() == f"training time ({unit})"
    assert np.asarray(axes.lines[0].get_xdata())[-1] == pytest.approx(last)


def test_values_as_a_csv_file_gives_them() -> None:
    table = [{"seconds": "1.5", "map": "0.25"}, {"seconds": "2.5", "map": ""}, {"seconds": "3", "map": "nan"}]
    seconds, values = map_curve(table).axes[0].lines[0].get_data()
    assert (list(seconds), list(values)) == ([1.5], [0.25])


def test_a_run_without_any_value_still_draws() -> None:
    png_bytes(map_curve([{"seconds": 1.0, "map": None}]))
    png_bytes(loss_curves([{"seconds": 1.0, "pairwise": math.inf}]))


def test_bad_rows_are_named() -> None:
    with pytest.raises(InputError, match="rows must hold at least one row"):
        loss_curves([])
    with pytest.raises(InputError, match="rows must hold numbers under 'seconds' and 'map'"):
        map_curve([{"seconds": 1, "map": "high"}])
    with pytest.raises(InputError, match="rows must hold numbers under 'seconds' and 'map'"):
        map_curve([{"map": 0.5}])
