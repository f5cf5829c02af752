"""The compiled pass over histograms against the plain operators, which test_average_precision.py proves."""

from __future__ import annotations

import pytest
import torch

import agmh_fast as af
from agmh_fast.metrics.tie_scores import tie_scores, tie_scores_op

RULES = ("stable", "expected", "optimistic", "pessimistic")
# AP's sums are of at most some thousand relevant items, each good to a few units of 2^-53; all others are quotients of
# whole numbers, summed over as many queries.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def random_histogram(queries, bins, items, seed=0):
    """(queries, bins, 2) counts of `items` items, some groups empty and some queries without a relevant item."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(queries, bins, generator=generator) ** 3
    distances = torch.multinomial(weights, items, replacement=True, generator=generator)
    relevant = torch.rand(queries, items, generator=generator) < torch.rand(queries, 1, generator=generator) - 0.2
    counts = torch.zeros(2, queries, bins, dtype=torch.int64)
    counts[0].scatter_add_(1, distances, torch.ones_like(distances))
    counts[1].scatter_add_(1, distances, relevant.long())
    return counts.permute(1, 2, 0).contiguous()


@pytest.mark.parametrize("ties", RULES)
@pytest.mark.parametrize(("queries", "bins", "items"), [(1, 2, 1), (5, 9, 60), (600, 49, 3000), (3, 65, 9000)])
def test_compiled_equals_torch(ties, queries, bins, items):
    histogram = random_histogram(queries, bins, items)
    cutoffs = [] if ties == "stable" else sorted({1, min(10, items), min(1000, items), items})
    assert tie_scores_op.explain(histogram, ties, cutoffs).chosen == "cpu"
    ours, plain = (tie_scores(histogram, ties, cutoffs, impl=impl) for impl in ("cpu", "torch"))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("ties", RULES)
def test_threads_change_nothing(ties):
    histogram = random_histogram(1100, 17, 200)
    results = []
    for threads in (1, 3):
        af.set_num_threads(threads)
        try:
            results.append(tie_scores(histogram, ties, [] if ties == "stable" else [3, 200], impl="cpu"))
        finally:
            af.set_num_threads(None)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_opcheck_of_the_compiled_op():
    histogram = random_histogram(4, 9, 30)
    for rule, cutoffs in [(0, [1, 5]), (3, [])]:
        torch.library.opcheck(torch.ops.agmh_fast.tie_scores.default, (histogram, rule, cutoffs, 1))


@pytest.mark.parametrize(
    ("histogram", "rule", "cutoffs"),
    [
        (torch.zeros(2, 3, 2), 0, []),
        (torch.zeros(2, 3, dtype=torch.int64), 0, []),
        (torch.zeros(2, 3, 2, dtype=torch.int64), 4, []),
        (torch.zeros(2, 3, 2, dtype=torch.int64), 3, [1]),
        (torch.zeros(2, 3, 2, dtype=torch.int64), 0, [3, 1]),
    ],
)
def test_bad_arguments_of_the_compiled_op(histogram, rule, cutoffs):
    with pytest.raises(RuntimeError):
        torch.ops.agmh_fast.tie_scores(histogram, rule, cutoffs, 1)
