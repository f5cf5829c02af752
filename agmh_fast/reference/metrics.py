"""Retrieval metrics by brute force, straight from their definitions.

A query ranks N database items by Hamming distance. `distances` holds one query's N distances and `relevant` whether
each item shares a label with the query, both in database order. Items at one distance form a tie group; a tie rule says
which of the orders that keep the groups in place counts:

  stable       ties in database order
  expected     the mean over all orders (McSherry and Najork, ECIR 2008)
  optimistic   the best value that any order gives
  pessimistic  the worst value that any order gives

`order` arguments are relevance in ranked order. AP@k adds the precision at each relevant item among the first k and
divides by the relevant items among them ("retrieved", as ADSH and AGMH publish it) or by the number that could be
there, min(R, k) for R relevant items in all ("attainable"). A query with nothing to divide by scores 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Order = Sequence[bool]


def relevance(query_labels: Tensor, database_labels: Tensor) -> Tensor:
    """(Q, N) bool, True where a label is shared: labels (Q,) and (N,), or multi-hot (Q, classes) and (N, classes)."""
    if query_labels.dim() == 1:
        return query_labels[:, None] == database_labels[None, :]
    return query_labels.double() @ database_labels.double().T > 0


def average_precision(order: Order, k: int | None = None, normalise: str = "retrieved") -> float:
    """AP@k of one ranked list; all of it when k is None."""
    top = order[:k]
    hits = [rank for rank, relevant in enumerate(top, start=1) if relevant]
    divisor = len(hits) if normalise == "retrieved" else min(sum(order), len(top))
    return math.fsum(count / rank for count, rank in enumerate(hits, start=1)) / divisor if hits else 0.0


def precision_at(order: Order, cutoff: int) -> float:
    """Relevant items among the first `cutoff`, divided by `cutoff` also where the database is smaller."""
    return sum(order[:cutoff]) / cutoff


def recall_at(order: Order, cutoff: int) -> float:
    """Relevant items among the first `cutoff` over all relevant items."""
    return sum(order[:cutoff]) / sum(order) if any(order) else 0.0


def stable_order(distances: Sequence[int], relevant: Order) -> list[bool]:
    """Relevance by (distance, position)."""
    positions = sorted(range(len(distances)), key=lambda position: (distances[position], position))
    return [bool(relevant[position]) for position in positions]


def tie_groups(distances: Sequence[int], relevant: Order) -> list[list[bool]]:
    """Relevance of the items at each distance that occurs, nearest first."""
    return [
        [bool(r) for d, r in zip(distances, relevant, strict=True) if d == distance]
        for distance in sorted(set(distances))
    ]


def every_order(distances: Sequence[int], relevant: Order) -> Iterator[list[bool]]:
    """Each order that keeps the tie groups in place, all equally likely; their number is Π (group size)!."""
    groups = tie_groups(distances, relevant)
    for permutations in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [r for group in permutations for r in group]


def by_enumeration(metric: Callable[[Order], float], distances: Sequence[int], relevant: Order, ties: str) -> float:
    """`metric` under a tie rule by trying every order: for tiny cases, and for any metric of a ranked list."""
    if ties == "stable":
        return metric(stable_order(distances, relevant))
    values = [metric(order) for order in every_order(distances, relevant)]
    return {"expected": math.fsum(values) / len(values), "optimistic": max(values), "pessimistic": min(values)}[ties]


def expected_precision_sum(
    size: int, relevant: int, before: int, relevant_before: int, first: int | None = None
) -> float:
    """Mean, over the orders of a tie group, of the sum of precisions at relevant items among its `first` (None: all).

    r/n Σ_i (R₀ + (i − 1)(r − 1)/(n − 1) + 1)/(N₀ + i) for n = `size` items, r of them `relevant`, ranked after N₀ items
    with R₀ relevant ones: place i is relevant with probability r/n, and then so is each place before it with
    probability (r − 1)/(n − 1).
    """
    others = (relevant - 1) / (size - 1) if size > 1 else 0.0
    places = range(1, (size if first is None else first) + 1)
    return relevant / size * math.fsum((relevant_before + (i - 1) * others + 1) / (before + i) for i in places)


def expected_average_precision(
    distances: Sequence[int], relevant: Order, k: int | None = None, normalise: str = "retrieved"
) -> float:
    """Mean of AP@k over all orders, without trying them.

    Where k cuts a tie group, the number h of its relevant items that come within k is hypergeometric; given h, they lie
    in any order among the places that are left. The mean over h covers a divisor that depends on h.
    """
    k = len(relevant) if k is None else min(k, len(relevant))
    before, relevant_before, precisions = 0, 0, 0.0
    for group in tie_groups(distances, relevant):
        size, hits, places = len(group), sum(group), k - before
        if places <= size:
            break
        precisions += expected_precision_sum(size, hits, before, relevant_before)
        before, relevant_before = before + size, relevant_before + hits
    expected = 0.0
    for h in range(max(0, places - (size - hits)), min(hits, places) + 1):
        divisor = relevant_before + h if normalise == "retrieved" else min(sum(relevant), k)
        if divisor:
            chance = math.comb(hits, h) * math.comb(size - hits, places - h) / math.comb(size, places)
            inside = expected_precision_sum(places, h, before, relevant_before)
            expected += chance * (precisions + inside) / divisor
    return expected


def extreme_average_precision(
    distances: Sequence[int], relevant: Order, ties: str, k: int | None = None, normalise: str = "retrieved"
) -> float:
    """Largest ("optimistic") or smallest ("pessimistic") AP@k over all orders.

    Relevant items go first, or last, in every group that lies within k. Where k cuts a group, every number h of its
    relevant items that can come within k is tried: divided by the items retrieved, one more hit can lower AP@k.
    """
    k = len(relevant) if k is None else min(k, len(relevant))
    best = ties == "optimistic"
    order: list[bool] = []
    for group in tie_groups(distances, relevant):
        size, hits, places = len(group), sum(group), k - len(order)
        if places <= size:
            break
        order += sorted(group, reverse=best)
    values = []
    for h in range(max(0, places - (size - hits)), min(hits, places) + 1):
        inside = sorted([True] * h + [False] * (places - h), reverse=best)
        rest = [True] * (sum(relevant) - sum(order) - h)
        values.append(average_precision(order + inside + rest, k, normalise))
    return max(values) if best else min(values)


def average_precision_of_query(
    distances: Sequence[int], relevant: Order, ties: str, k: int | None = None, normalise: str = "retrieved"
) -> float:
    """AP@k of one query under a tie rule."""
    if ties == "stable":
        return average_precision(stable_order(distances, relevant), k, normalise)
    if ties == "expected":
        return expected_average_precision(distances, relevant, k, normalise)
    return extreme_average_precision(distances, relevant, ties, k, normalise)


def hits_at(distances: Sequence[int], relevant: Order, cutoff: int, ties: str) -> float:
    """Relevant items among the first `cutoff` under a tie rule: in the cut group the mean, the most or the fewest."""
    if ties == "stable":
        return float(sum(stable_order(distances, relevant)[:cutoff]))
    if ties != "expected":
        groups = [sorted(group, reverse=ties == "optimistic") for group in tie_groups(distances, relevant)]
        return float(sum([r for group in groups for r in group][:cutoff]))
    hits, left = 0.0, cutoff
    for group in tie_groups(distances, relevant):
        hits += sum(group) * min(left, len(group)) / len(group)
        left = max(0, left - len(group))
    return hits


def within_radius(distances: Sequence[int], relevant: Order, radius: int) -> tuple[float, float]:
    """Precision and recall of the items at distance <= radius; precision is 0 where there is none, so is recall."""
    retrieved = [bool(r) for d, r in zip(distances, relevant, strict=True) if d <= radius]
    precision = sum(retrieved) / len(retrieved) if retrieved else 0.0
    return precision, sum(retrieved) / sum(relevant) if any(relevant) else 0.0


def precision_recall_by_radius(distances: Tensor, relevant: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Precision and recall (bits + 1,) at every radius 0..bits, means over queries; distances, relevant (Q, N)."""
    curves = [
        [within_radius(d, r, radius) for radius in range(bits + 1)]
        for d, r in zip(distances.tolist(), relevant.tolist(), strict=True)
    ]
    precision, recall = torch.tensor(curves, dtype=torch.float64).mean(0).unbind(-1)
    return precision, recall


def mean_average_precision(
    distances: Tensor, relevant: Tensor, ties: str = "stable", k: int | None = None, normalise: str = "retrieved"
) -> float:
    """Mean of AP@k over queries; distances (Q, N) int, relevant (Q, N) bool."""
    pairs = zip(distances.tolist(), relevant.tolist(), strict=True)
    values = [average_precision_of_query(d, r, ties, k, normalise) for d, r in pairs]
    return math.fsum(values) / len(values)
