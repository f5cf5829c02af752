"""Closed-form average precision and hits from tie groups, against the brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agmh_fast.metrics.average_precision import average_precision, harmonic_gap
from agmh_fast.metrics.tie_groups import TieGroups, hits_at
from agmh_fast.reference import metrics as reference

# AP is a sum of at most a few hundred group sums, each good to a few eps times its relevant items, over all of them.
CLOSE = 1e-12
CLOSED_FORM = ("expected", "optimistic", "pessimistic")
NORMALISATIONS = ("retrieved", "attainable")


def ranked_list(histogram):
    """Distances and relevance of one query with these (bits + 1, 2) counts, relevant items last in each group."""
    distances, relevant = [], []
    for distance, (size, hits) in enumerate(histogram):
        distances += [distance] * size
        relevant += [False] * (size - hits) + [True] * hits
    return distances, relevant


def groups_of(histograms):
    return TieGroups.from_histogram(torch.tensor(histograms, dtype=torch.int64))


@st.composite
def histograms(draw, largest=12):
    """One query's counts: empty groups, groups without and only with relevant items; at least one item."""
    sizes = draw(st.lists(st.one_of(st.just(0), st.integers(0, largest)), min_size=2, max_size=5).filter(any))
    return [(size, draw(st.sampled_from([0, size, draw(st.integers(0, size))]))) for size in sizes]


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ties", CLOSED_FORM)
@settings(max_examples=150, deadline=None)
@given(histogram=histograms(), data=st.data())
def test_average_precision_matches_reference(ties, normalise, histogram, data):
    distances, relevant = ranked_list(histogram)
    k = data.draw(st.one_of(st.none(), st.integers(1, len(distances) + 2)))
    value = average_precision(groups_of([histogram]), ties, k, normalise).item()
    expected = reference.average_precision_of_query(distances, relevant, ties, k, normalise)
    assert value == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@settings(max_examples=60, deadline=None)
@given(histogram=histograms(largest=3).filter(lambda h: sum(size for size, _ in h) <= 7), data=st.data())
def test_average_precision_matches_every_order(normalise, histogram, data):
    distances, relevant = ranked_list(histogram)
    k = data.draw(st.integers(1, len(distances)))
    orders = list(reference.every_order(distances, relevant))
    values = [reference.average_precision(order, k, normalise) for order in orders]
    groups = groups_of([histogram])
    assert average_precision(groups, "expected", k, normalise).item() == pytest.approx(
        sum(values) / len(values), abs=CLOSE
    )
    assert average_precision(groups, "optimistic", k, normalise).item() == pytest.approx(max(values), abs=CLOSE)
    assert average_precision(groups, "pessimistic", k, normalise).item() == pytest.approx(min(values), abs=CLOSE)


@pytest.mark.parametrize("ties", CLOSED_FORM)
@settings(max_examples=100, deadline=None)
@given(histogram=histograms(), data=st.data())
def test_hits_match_reference(ties, histogram, data):
    distances, relevant = ranked_list(histogram)
    cutoffs = data.draw(st.lists(st.integers(1, len(distances)), max_size=4))
    expected = [reference.hits_at(distances, relevant, cutoff, ties) for cutoff in cutoffs]
    assert hits_at(groups_of([histogram]), cutoffs, ties)[0].tolist() == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ties", CLOSED_FORM)
def test_queries_do_not_mix(ties, normalise):
    generator = torch.Generator().manual_seed(1)
    relevant = torch.randint(0, 5, (40, 7), generator=generator)
    other = torch.randint(0, 5, (40, 7), generator=generator)
    # One database: every query counts the same number of items.
    other[:, 0] += 60 - (relevant + other).sum(1)
    histogram = torch.stack([relevant + other, relevant], dim=2)
    for k in (None, 1, 17, 59, 60):
        together = average_precision(TieGroups.from_histogram(histogram), ties, k, normalise)
        alone = [average_precision(TieGroups.from_histogram(row[None]), ties, k, normalise) for row in histogram]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("k", [None, 1, 3, 50, 299])
def test_wide_groups(k):
    # The cut group's number of hits has a support of up to 150 and one hit in a hundred; the window must hold its mass.
    histogram = [(20, 3), (0, 0), (300, 150), (100, 1)]
    distances, relevant = ranked_list(histogram)
    for ties in CLOSED_FORM:
        value = average_precision(groups_of([histogram]), ties, k).item()
        assert value == pytest.approx(reference.average_precision_of_query(distances, relevant, ties, k), abs=CLOSE)


def test_rows_of_the_window_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr("agmh_fast.metrics.average_precision._WINDOW_ELEMENTS", 5)
    histogram = torch.tensor([[[10, 4], [30, 20]], [[5, 0], [35, 30]], [[40, 2], [0, 0]]])
    expected = [reference.average_precision_of_query(*ranked_list(row), "expected", 15) for row in histogram.tolist()]
    values = average_precision(TieGroups.from_histogram(histogram), "expected", 15)
    assert values.tolist() == pytest.approx(expected, abs=CLOSE)


def test_window_holds_the_mass_of_a_large_group():
    # 1000 of 20 000 items come within k, 300 ± 14 of them relevant: the window is 306 wide, the support 1001.
    histogram = [(0, 0), (20_000, 6000)]
    value = average_precision(groups_of([histogram]), "expected", 1000).item()
    expected = reference.average_precision_of_query(*ranked_list(histogram), "expected", 1000)
    assert value == pytest.approx(expected, abs=CLOSE)


def test_harmonic_gap_keeps_its_digits():
    # Three roundings of log1p, ratio and sum, where both ends are large; the table adds one of H(64) < 5.
    for start in (0, 1, 5, 63, 64, 65, 1000, 123_456, 10**6, 10**8):
        for count in (0, 1, 2, 59, 64, 5000):
            exact = math.fsum(1 / (start + i) for i in range(1, count + 1))
            value = harmonic_gap(torch.tensor(float(start)).double(), torch.tensor(float(count)).double()).item()
            assert value == pytest.approx(exact, rel=8 * 2**-52, abs=0 if start >= 64 else 2**-50)
