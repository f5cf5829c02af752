"""Problems for every implementation of the Hamming ops, and how answers are compared."""

from __future__ import annotations

import torch

import agmh_fast as af
from agmh_fast.ops import hamming

WIDTHS = [1, 8, 12, 16, 24, 32, 33, 48, 64, 100, 256, 257, 768, 1024, 4096]
IMPLS = ["cpu", "torch"]


def codes(rows, bits, distinct=None):
    """Random codes; with few distinct ones nearly everything is tied."""
    values = af.pack_codes(torch.randn(distinct or rows, bits))
    return values if distinct is None else values[torch.randint(distinct, (rows,))]


def assert_same(first, second):
    """Integers equal; sums of at most 1000 terms of at most 1, added in another order, within 1000 · 1000 · 2⁻⁵³."""
    for a, b in zip(as_tuple(first), as_tuple(second), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if a.dtype.is_floating_point:
            torch.testing.assert_close(a, b, rtol=0, atol=1e6 * 2**-53)
        else:
            assert torch.equal(a, b)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def calls_on(q, x, bits, k, radius):
    """All ops on one problem, as functions of the implementation."""
    labels = torch.randint(3, (len(q),)), torch.randint(3, (len(x),))
    sets = torch.rand(len(q), 70) < 0.03, torch.rand(len(x), 70) < 0.03
    shared, each = torch.rand(len(x)) < 0.6, torch.rand(len(q), len(x)) < 0.2
    return [
        lambda impl: hamming.hamming_topk(q, x, k, bits, mask=shared, impl=impl),
        lambda impl: hamming.hamming_topk(q, x, k, bits, mask=each, max_distance=radius, impl=impl),
        lambda impl: hamming.hamming_topk(q, x, k, bits, max_distance=radius // 2, impl=impl),
        lambda impl: hamming.hamming_range(q, x, radius, bits, mask=shared, impl=impl),
        lambda impl: hamming.hamming_range(q, x, radius, bits, mask=each, impl=impl),
        lambda impl: hamming.hamming_distance(q, x, bits, impl=impl),
        lambda impl: hamming.hamming_distance(q, x, bits, dtype=torch.uint16, impl=impl),
        lambda impl: hamming.hamming_distance(q, x, bits, dtype=torch.int32, impl=impl),
        lambda impl: hamming.hamming_topk(q, x, k, bits, impl=impl),
        lambda impl: hamming.hamming_range(q, x, radius, bits, impl=impl),
        lambda impl: hamming.hamming_histogram(q, x, bits=bits, impl=impl),
        lambda impl: hamming.hamming_histogram(q, x, *labels, bits=bits, impl=impl),
        lambda impl: hamming.hamming_histogram(q, x, *sets, bits=bits, impl=impl),
        lambda impl: hamming.hamming_stable_ranking(q, x, *labels, k=k, cutoffs=[1, 7, 10**6], bits=bits, impl=impl),
        lambda impl: hamming.hamming_ranked_histogram(q, x, *labels, k=k, cutoffs=[5], bits=bits, impl=impl),
        lambda impl: hamming.hamming_stable_ranking(q, x, *sets, bits=bits, impl=impl),
    ]
