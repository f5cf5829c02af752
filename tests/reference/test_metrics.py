"""The brute-force metrics against values worked out by hand, against enumeration and against the published loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agmh_fast.reference import metrics as reference

# Sums of at most seven fractions, or means over at most 7! of them by math.fsum: a few units in the last place.
EXACT = 1e-14


@st.composite
def tied_queries(draw):
    """Distances and relevance of up to seven items, at most five at one distance; k from 1 to beyond the last."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3).filter(lambda sizes: sum(sizes) <= 7))
    distances = draw(st.permutations([d for d, size in enumerate(sizes) for _ in range(size)]))
    relevant = draw(st.lists(st.booleans(), min_size=len(distances), max_size=len(distances)))
    k = draw(st.one_of(st.none(), st.integers(1, len(distances) + 1)))
    return distances, relevant, k


def test_average_precision_by_hand():
    order = [False, True, True, False, True]
    assert reference.average_precision(order) == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3, abs=EXACT)
    assert reference.average_precision(order, 2) == 1 / 2
    assert reference.average_precision(order, 3, "attainable") == pytest.approx((1 / 2 + 2 / 3) / 3, abs=EXACT)
    assert reference.average_precision(order, 4, "attainable") == pytest.approx((1 / 2 + 2 / 3) / 3, abs=EXACT)
    assert reference.average_precision(order, 1) == 0
    assert reference.average_precision([False, False]) == 0


def test_cutoffs_by_hand():
    order = [True, False, True]
    assert reference.precision_at(order, 2) == 1 / 2
    assert reference.precision_at(order, 10) == 2 / 10
    assert reference.recall_at(order, 1) == 1 / 2
    assert reference.recall_at([False], 1) == 0


def test_tie_rules_by_hand():
    # One relevant item among two at distance 1, behind an irrelevant one at distance 0: at rank 2 or at rank 3.
    distances, relevant = [1, 0, 1], [False, False, True]
    values = {ties: reference.average_precision_of_query(distances, relevant, ties) for ties in RULES}
    assert values == pytest.approx({"stable": 1 / 3, "expected": 5 / 12, "optimistic": 1 / 2, "pessimistic": 1 / 3})
    hits = {ties: reference.hits_at(distances, relevant, 2, ties) for ties in RULES}
    assert hits == {"stable": 0, "expected": 1 / 2, "optimistic": 1, "pessimistic": 0}


def test_one_more_hit_can_lower_the_published_score():
    # k = 4 cuts the last two: the second hit comes within k at rank 4 or not at all, AP@4 is (1 + 2/4)/2 or 1.
    distances, relevant = [0, 1, 1, 2, 2], [True, False, False, True, False]
    assert reference.average_precision_of_query(distances, relevant, "optimistic", 4) == 1
    assert reference.average_precision_of_query(distances, relevant, "pessimistic", 4) == 3 / 4
    assert reference.average_precision_of_query(distances, relevant, "optimistic", 4, "attainable") == 3 / 4


def test_curve_by_hand():
    distances = torch.tensor([[1, 1, 2], [0, 3, 3]])
    relevant = torch.tensor([[True, False, True], [False, False, False]])
    precision, recall = reference.precision_recall_by_radius(distances, relevant, bits=3)
    assert precision.tolist() == pytest.approx([0, 1 / 4, 1 / 3, 1 / 3], abs=EXACT)
    assert recall.tolist() == pytest.approx([0, 1 / 4, 1 / 2, 1 / 2], abs=EXACT)


def test_relevance():
    single = reference.relevance(torch.tensor([1, 2]), torch.tensor([2, 2, 1]))
    assert single.tolist() == [[False, False, True], [True, True, False]]
    multi = reference.relevance(torch.tensor([[1, 0, 1], [0, 0, 0]]), torch.tensor([[0, 1, 1], [0, 1, 0]]))
    assert multi.tolist() == [[True, False], [False, False]]


RULES = ("stable", "expected", "optimistic", "pessimistic")


@pytest.mark.parametrize("normalise", ["retrieved", "attainable"])
@pytest.mark.parametrize("ties", RULES)
@settings(max_examples=40, deadline=None)
@given(query=tied_queries())
def test_average_precision_matches_enumeration(ties, normalise, query):
    distances, relevant, k = query
    value = reference.average_precision_of_query(distances, relevant, ties, k, normalise)
    expected = reference.by_enumeration(
        lambda order: reference.average_precision(order, k, normalise), distances, relevant, ties
    )
    assert value == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("ties", RULES)
@settings(max_examples=40, deadline=None)
@given(query=tied_queries())
def test_hits_match_enumeration(ties, query):
    distances, relevant, k = query
    cutoff = k or 1
    expected = reference.by_enumeration(lambda order: sum(order[:cutoff]), distances, relevant, ties)
    assert reference.hits_at(distances, relevant, cutoff, ties) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("k", [None, 1, 5, 30, 100])
def test_stable_is_the_published_loop(k):
    generator = np.random.default_rng(0)
    distances = generator.integers(0, 6, (20, 30))
    relevant = generator.random((20, 30)) < generator.choice([0.0, 0.1, 0.5], (20, 1))
    total = 0.0
    for row in range(20):
        found = relevant[row][np.argsort(distances[row], kind="stable")][:k]
        if found.any():
            ranks = np.flatnonzero(found) + 1
            total += float(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    ours = reference.mean_average_precision(torch.from_numpy(distances), torch.from_numpy(relevant), "stable", k)
    assert math.isclose(ours, total / 20, abs_tol=EXACT)
