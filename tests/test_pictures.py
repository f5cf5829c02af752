"""The pictures of the documentation are what docs/draw.py draws."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from agmh_fast.viz.figure import svg_bytes

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_picture_can_be_drawn_again(draw):
    import matplotlib

    drawn = {name: svg_bytes(figure()) for name, figure in draw.DRAWN.items()}
    stored = {path.stem: path.read_bytes() for path in draw.PICTURES.glob("*.svg")}
    assert drawn.keys() == stored.keys()
    if matplotlib.__version__ == draw.MATPLOTLIB:
        assert [name for name in drawn if drawn[name] != stored[name]] == [], "make pictures"


def test_every_picture_is_shown_with_a_text(draw):
    shown = re.findall(r"!\[([^\]]+)\]\(pictures/([\w-]+)\.svg\)", (DOCS / "how-it-works.md").read_text())
    assert sorted(name for _, name in shown) == sorted(draw.DRAWN)
    assert all(len(text) > 60 for text, _ in shown)
