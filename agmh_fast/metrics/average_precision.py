"""Average precision from tie groups, in closed form: no ranking is made and no Q×N matrix.

The sum of the precisions at a group's relevant items is, with n items of which r are relevant, after N₀ items of which
R₀ are, and H(a, m) = Σ_{i=1..m} 1/(a + i):

  random order, first m places   r/n · [(R₀ + 1) H(N₀, m) + (r − 1)/(n − 1) · (m − (N₀ + 1) H(N₀, m))]
  h relevant items side by side  h + (R₀ − a) H(a, h), where a items stand before them

the first after McSherry and Najork (Computing Information Retrieval Performance Measures Efficiently in the Presence of
Tied Scores, ECIR 2008). In AP@k the group that k cuts needs care when AP is divided by the items retrieved, because
their number then depends on the order too: see `_expected_at_cut`, `_best_at_cut` and `_worst_at_cut`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agmh_fast.metrics.tie_groups import TieGroups

# From here on three terms of the asymptotic series leave less than 2e-17.
_SERIES_START = 64
_HARMONIC = [math.fsum(1 / i for i in range(1, n + 1)) for n in range(_SERIES_START + 1)]
# Hoeffding: a hypergeometric number strays by sqrt(s · 23) from its mean with probability below 2·exp(-46) < 3e-20.
_TAIL = 23.0
_WINDOW_ELEMENTS = 2**20


def average_precision(groups: TieGroups, ties: str, k: int | None = None, normalise: str = "retrieved") -> Tensor:
    """(Q,) float64 AP@k; 0 for a query without a relevant item in reach.

    `ties` is "expected", "optimistic" or "pessimistic": the mean, largest or smallest value over all orders inside the
    tie groups, exact also where k cuts one. `normalise` is "retrieved" (divide by the relevant items within k) or
    "attainable" (by min(R, k)); without a k that is below N both divide by all R relevant items.
    """
    total = groups.relevant_end[:, -1]
    sums = precision_sum(groups, ties)
    if k is None or k >= groups.end[0, -1]:
        return sums.sum(1) / total.clamp(min=1)
    cut = groups.holding(k)
    places = k - cut.before
    earlier = sums.where(groups.end < k, 0).sum(1)
    if normalise == "attainable":
        return (earlier + precision_sum(cut, ties, places)) / total.clamp(1, k)
    at_cut = {"expected": _expected_at_cut, "optimistic": _best_at_cut, "pessimistic": _worst_at_cut}[ties]
    return at_cut(cut, places, earlier)


def harmonic_gap(start: Tensor, count: Tensor) -> Tensor:
    """Σ_{i=1..count} 1/(start + i) for whole float64 numbers >= 0, to a few units in the last place.

    A table up to 64; beyond, H_n − γ = ln(n + ½) + 1/24(n + ½)² − … as the log1p of a ratio, so that the difference of
    two large harmonic numbers loses no digits.
    """
    table, end = torch.tensor(_HARMONIC, dtype=torch.float64, device=start.device), start + count
    small = table[end.clamp(max=_SERIES_START).long()] - table[start.clamp(max=_SERIES_START).long()]
    x, y = start.clamp(min=_SERIES_START) + 0.5, end.clamp(min=_SERIES_START) + 0.5
    return small + torch.log1p((y - x) / x) + (_series(y) - _series(x))


def _series(x: Tensor) -> Tensor:
    """H_n − γ − ln x at x = n + ½."""
    u = x.reciprocal().square()
    return u * (1 / 24 - u * (7 / 960 - u * (31 / 8064)))


def precision_sum(groups: TieGroups, ties: str, places: Tensor | None = None) -> Tensor:
    """Sum of the precisions at each group's relevant items, within its first `places` places (None: all of them)."""
    places = groups.size if places is None else places
    if ties == "expected":
        return _random_order(groups.size, groups.relevant, places, groups.before, groups.relevant_before)
    fewest, most = groups.hit_range(places)
    hits, start = (most, groups.before) if ties == "optimistic" else (fewest, groups.before + places - fewest)
    return _side_by_side(hits, start, groups.relevant_before)


def _random_order(size: Tensor, relevant: Tensor, places: Tensor, before: Tensor, relevant_before: Tensor) -> Tensor:
    """Mean over random orders of the sum over relevant items within the first `places` of `size`; 0 for no item."""
    gap = harmonic_gap(before, places)
    others = (relevant - 1) / (size - 1).clamp(min=1)
    return relevant / size.clamp(min=1) * ((relevant_before + 1) * gap + others * (places - (before + 1) * gap))


def _side_by_side(hits: Tensor, start: Tensor, relevant_before: Tensor) -> Tensor:
    """Σ_{j=1..hits} (relevant_before + j)/(start + j)."""
    return hits + (relevant_before - start) * harmonic_gap(start, hits)


def _divide(sums: Tensor, retrieved: Tensor) -> Tensor:
    """Mean precision over the items retrieved; with none the sum is 0, and so is the result."""
    return sums / retrieved.clamp(min=1)


def _best_at_cut(cut: TieGroups, places: Tensor, earlier: Tensor) -> Tensor:
    """Largest AP@k: at the fewest or at the most hits.

    Hits placed first have growing precisions (R₀ + j)/(N₀ + j), so the mean over hits falls while the next one is below
    it and rises from then on: its maximum is at an end.
    """
    values = [
        _divide(earlier + _side_by_side(hits, cut.before, cut.relevant_before), cut.relevant_before + hits)
        for hits in cut.hit_range(places)
    ]
    return torch.maximum(*values)


def _worst_at_cut(cut: TieGroups, places: Tensor, earlier: Tensor) -> Tensor:
    """Smallest AP@k, with h hits in the last places of the cut group.

    The hit after h adds g(h) = (R₀ + 1)/(a) + H(a, h), a = N₀ + m − h, to the sum of the precisions. g grows with h, so
    the mean over hits falls, then rises: bisection finds the first h where the next hit does not lower it.
    """
    low, high = cut.hit_range(places)

    def sums(hits: Tensor) -> Tensor:
        return earlier + _side_by_side(hits, cut.before + places - hits, cut.relevant_before)

    for _ in range(int((high - low).max()).bit_length()):
        middle = ((low + high) / 2).floor()
        start = cut.before + places - middle
        gain = (cut.relevant_before + 1) / start.clamp(min=1) + harmonic_gap(start, middle)
        rises = gain * (cut.relevant_before + middle) >= sums(middle)
        high = torch.where(rises, middle, high)
        low = torch.where(rises, low, torch.minimum(middle + 1, high))
    return _divide(sums(low), cut.relevant_before + low)


def _expected_at_cut(cut: TieGroups, places: Tensor, earlier: Tensor) -> Tensor:
    """Mean AP@k: the number h of hits within the cut group's first m places is hypergeometric; given h, they lie in
    random order, so the mean is Σ_h P(h) (earlier + sum of m places with h hits) / (R₀ + h).

    h runs over the window around its mean outside of which it lies with probability below 3e-20.
    """
    fewest, most = cut.hit_range(places)
    mean = cut.relevant * places / cut.size
    strays = torch.minimum(
        torch.minimum(places, cut.size - places), torch.minimum(cut.relevant, cut.size - cut.relevant)
    )
    reach = (strays * _TAIL).sqrt().ceil()
    low, high = torch.maximum(fewest, (mean - reach).floor()), torch.minimum(most, (mean + reach).ceil())
    width = int((high - low).max()) + 1
    rows = max(1, _WINDOW_ELEMENTS // width)
    expected = torch.empty_like(mean)
    for begin in range(0, len(mean), rows):
        part = slice(begin, begin + rows)
        column = [field[part, None] for field in (cut.size, cut.relevant, cut.before, cut.relevant_before, places)]
        size, relevant, before, relevant_before, m = column
        h = low[part, None] + torch.arange(width, dtype=torch.float64, device=mean.device)
        chance = _hypergeometric(h, h <= high[part, None], size, relevant, m)
        value = _divide(earlier[part, None] + _random_order(m, h, m, before, relevant_before), relevant_before + h)
        expected[part] = (chance * value).sum(1)
    return expected


def _hypergeometric(h: Tensor, inside: Tensor, size: Tensor, relevant: Tensor, draws: Tensor) -> Tensor:
    """(rows, width) chances of h relevant items among `draws` of `size`, over consecutive h, `inside` the window.

    From the ratio of neighbours, P(h)/P(h − 1) = (r − h + 1)(m − h + 1) / (h (n − r − m + h)), scaled to sum to 1.
    """
    ratio = (relevant - h + 1) * (draws - h + 1) / (h * (size - relevant - draws + h))
    ratio[:, 0] = 1
    log_chance = ratio.where(inside, 0).log().cumsum(1)
    return torch.softmax(log_chance, dim=1)
