"""Figures leave no trace in matplotlib's state and files are whole."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agmh_fast import viz
from agmh_fast.errors import InputError
from agmh_fast.viz.figure import as_array, as_pictures, new_figure


def test_png_decodes_at_the_size_asked_for_and_is_reproducible() -> None:
    data = viz.png_bytes(new_figure(2, 1), dpi=50)
    assert Image.open(BytesIO(data)).size == (100, 50)
    assert data == viz.png_bytes(new_figure(2, 1), dpi=50)
    assert b"http" not in data


def test_save_png_writes_a_whole_file_or_a_clear_error(tmp_path: Path) -> None:
    viz.save_png(new_figure(1, 1), tmp_path / "a.png")
    Image.open(tmp_path / "a.png").verify()
    with pytest.raises(InputError, match="no folder"):
        viz.save_png(new_figure(1, 1), tmp_path / "missing" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_importing_needs_no_matplotlib_and_drawing_imports_no_pyplot() -> None:
    script = """
import sys
import agmh_fast.viz as viz
assert "matplotlib" not in sys.modules
viz.png_bytes(viz.map_curve([{"seconds": 1, "map": 0.5}]))
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_missing_matplotlib_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pictures need matplotlib: pip install"):
        new_figure(1, 1)


def test_arrays_come_from_tensors_arrays_and_lists() -> None:
    for value in (torch.ones(2, 3, requires_grad=True), np.ones((2, 3)), [[1, 1, 1], [1, 1, 1]]):
        assert as_array("maps", value, 2).tolist() == [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(InputError, match=r"maps must have 3 axes, got shape \(2,\)"):
        as_array("maps", [1, 2], 3)
    with pytest.raises(InputError, match="images must be uint8 pictures"):
        as_pictures("images", np.zeros((1, 2, 2, 3)), 4)
    with pytest.raises(InputError, match="images must be uint8 pictures"):
        as_pictures("images", np.zeros((0, 2, 2, 3), np.uint8), 4)
