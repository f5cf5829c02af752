"""What is drawn of precision, recall and mAP."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agmh_fast import InputError, viz


def test_a_curve_is_precision_over_recall():
    curves = {"a": (torch.tensor([1.0, 0.5]), torch.tensor([0.2, 1.0])), "b": ([0.9, 0.4], [0.1, 0.8])}
    axes = viz.precision_recall_curves(curves).axes[0]
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["a", "b"]
    assert np.allclose(lines[0].get_xydata(), [[0.2, 1.0], [1.0, 0.5]])
    assert np.allclose(lines[1].get_xydata(), [[0.1, 0.9], [0.8, 0.4]])
    assert lines[0].get_marker() != lines[1].get_marker()


def test_map_is_drawn_by_code_length_in_order():
    axes = viz.map_by_bits({"ours": {48: 0.8, 12: 0.6, 24: 0.7}, "theirs": {12: 0.5}}).axes[0]
    assert np.allclose(axes.get_lines()[0].get_xydata(), [[12, 0.6], [24, 0.7], [48, 0.8]])
    assert axes.get_xticks().tolist() == [12, 24, 48]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "theirs"]


def test_nothing_to_draw_is_refused():
    with pytest.raises(InputError, match="curves"):
        viz.precision_recall_curves({})
    with pytest.raises(InputError, match="as many"):
        viz.precision_recall_curves({"a": ([1.0], [0.5, 1.0])})
    with pytest.raises(InputError, match="series"):
        viz.map_by_bits({"a": {}})
