"""Principal components against the covariance's eigenvectors, and the picture of codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agmh_fast import InputError, viz


def test_components_are_the_eigenvectors_of_the_covariance():
    codes = np.sign(np.random.default_rng(0).normal(size=(60, 8)) + np.arange(8) / 3)
    points, shares = viz.principal_components(codes, 3)
    values, axes = np.linalg.eigh(np.cov(codes.T))
    # Both solve an 8×8 problem of condition below 100 in float64.
    assert np.allclose(shares, values[::-1][:3] / values.sum(), rtol=0, atol=1e-12)
    expected = (codes - codes.mean(0)) @ axes[:, ::-1][:, :3]
    assert np.allclose(np.abs(points), np.abs(expected), rtol=0, atol=1e-11)
    assert np.allclose(points.T @ points, np.diag(np.diag(points.T @ points)), atol=1e-10)


def test_the_sign_is_defined():
    codes = torch.tensor([[1.0, -1.0], [-1.0, -1.0], [1.0, -1.0]])
    assert np.allclose(viz.principal_components(codes)[0], [[2 / 3, 0], [-4 / 3, 0], [2 / 3, 0]])
    assert np.allclose(viz.principal_components(-codes)[0], [[-2 / 3, 0], [4 / 3, 0], [-2 / 3, 0]])


def test_equal_codes_and_a_single_bit_are_points_too():
    points, shares = viz.principal_components(np.ones((4, 6)))
    assert np.array_equal(points, np.zeros((4, 2)))
    assert np.array_equal(shares, [0, 0])
    points, shares = viz.principal_components(np.array([[1.0], [-1.0]]))
    assert np.array_equal(points, [[1, 0], [-1, 0]])
    assert np.array_equal(shares, [1, 0])


@pytest.mark.parametrize("classes", [3, 30])
def test_a_few_classes_are_named(classes):
    codes = np.random.default_rng(0).choice([-1, 1], (40, 8))
    names = [f"kind {number}" for number in range(classes)]
    axes = viz.code_scatter(codes, np.arange(40) % classes, names).axes[0]
    assert len(axes.collections) == classes
    assert sum(len(group.get_offsets()) for group in axes.collections) == 40
    named = axes.get_legend()
    assert (named is None) == (classes > 20)
    if named is not None:
        assert [text.get_text() for text in named.get_texts()] == names


def test_bad_shapes_are_refused():
    for codes in (np.zeros(3), np.zeros((0, 4))):
        with pytest.raises(InputError, match="codes must"):
            viz.principal_components(codes)
    with pytest.raises(InputError, match="labels must hold 4 classes"):
        viz.code_scatter(np.ones((4, 2)), [0], ["a"])
