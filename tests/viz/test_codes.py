"""Principal components against the covariance's eigenvectors, and the picture of codes."""

from __future__ import annotations

import sys

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


def test_tsne_keeps_neighbours_together_and_is_the_same_again():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    # Three codes of 48 bits that differ by some 24, each copy with 2 bits flipped: classes are far apart.
    codes = rng.choice([-1, 1], (3, 48))[labels]
    for row in codes:
        row[rng.choice(48, 2, replace=False)] *= -1
    points = viz.neighbour_embedding(torch.from_numpy(codes), perplexity=10)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(60, np.inf))
    assert (labels[apart.argmin(1)] == labels).all()
    assert np.array_equal(points, viz.neighbour_embedding(codes, perplexity=10))
    axes = viz.code_scatter(codes, labels, ["a", "b", "c"], "tsne").axes[0]
    assert axes.get_title(loc="left") == "codes by t-SNE"
    assert sum(len(group.get_offsets()) for group in axes.collections) == 60
    assert np.isfinite(viz.neighbour_embedding(np.ones((5, 6)))).all()


def test_tsne_of_many_codes_takes_some(monkeypatch):
    from agmh_fast.viz import codes as module

    seen = []
    monkeypatch.setattr(module, "neighbour_embedding", lambda codes: seen.append(codes) or codes[:, :2])
    monkeypatch.setattr(module, "_TSNE_CODES", 4)
    axes = viz.code_scatter(np.arange(30).reshape(10, 3), np.zeros(10, int), ["a"], "tsne").axes[0]
    assert seen[0][:, 0].tolist() == [0, 9, 18, 27]
    assert axes.get_title(loc="left") == "codes by t-SNE (4 of 10)"


def test_tsne_says_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(InputError, match=r"^t-SNE needs scikit-learn: pip install 'agmh-fast\[tsne\]', or take pca$"):
        viz.neighbour_embedding(np.ones((4, 2)))
    for codes in (np.ones((3, 2)), np.ones((4, 0))):
        with pytest.raises(InputError, match="codes must be"):
            viz.neighbour_embedding(codes)
    with pytest.raises(InputError, match="projection must be one of pca, tsne, got 'umap'"):
        viz.code_scatter(np.ones((4, 2)), np.zeros(4), ["a"], "umap")
