"""Exact Hamming search, one query at a time, in integers only. Order: (distance, position), ascending.

Arguments: q (Q, ceil(bits / 8)) and x (N, ceil(bits / 8)) packed uint8. Labels are (rows,) int64, one class each, or
(rows, words) int64, label sets as bits; an item is relevant to a query if the classes are equal or the sets meet. Masks
say what may be found: (N,) bool for all queries, or (Q, N).
"""

from __future__ import annotations

import torch
from torch import Tensor

from agmh_fast.reference.codes import unpack_bits

NO_DISTANCE = 2**31 - 1


def hamming_distance(q: Tensor, x: Tensor, bits: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """Number of differing bits of every pair: (Q, N)."""
    items = unpack_bits(x, bits)
    rows = [(items != query).sum(1) for query in unpack_bits(q, bits)]
    matrix = torch.stack(rows) if rows else torch.zeros(0, len(x), dtype=torch.int64, device=x.device)
    return matrix.to(dtype)


def hamming_topk(
    q: Tensor, x: Tensor, k: int, bits: int, max_distance: int | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k nearest: distances (Q, k) int32 and ids (Q, k) int64; 2³¹ − 1 and −1 where fewer may be found."""
    distances = torch.full((len(q), k), NO_DISTANCE, dtype=torch.int32, device=x.device)
    ids = torch.full((len(q), k), -1, dtype=torch.int64, device=x.device)
    limit = bits if max_distance is None else max_distance
    for row, query in enumerate(hamming_distance(q, x, bits)):
        nearest, order = query.sort(stable=True)
        found = (nearest <= limit) & _kept(mask, row)[order] if mask is not None else nearest <= limit
        count = min(int(found.sum()), k)
        distances[row, :count] = nearest[found][:k]
        ids[row, :count] = order[found][:k]
    return distances, ids


def hamming_range(
    q: Tensor, x: Tensor, radius: int, bits: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """All items within `radius`, inclusive: lims (Q + 1,) int64; query i has entries lims[i] to lims[i + 1]."""
    distances, ids, lims = [], [], [0]
    for row, query in enumerate(hamming_distance(q, x, bits)):
        nearest, order = query.sort(stable=True)
        within = (nearest <= radius) & _kept(mask, row)[order] if mask is not None else nearest <= radius
        distances.append(nearest[within])
        ids.append(order[within])
        lims.append(lims[-1] + int(within.sum()))
    nothing = torch.zeros(0, dtype=torch.int32, device=x.device)
    return torch.tensor(lims, device=x.device), torch.cat([nothing, *distances]), torch.cat([nothing.long(), *ids])


def hamming_histogram(q: Tensor, x: Tensor, bits: int, labels_q: Tensor | None, labels_x: Tensor | None) -> Tensor:
    """Items at each distance: (Q, bits + 1) int64; with labels (Q, bits + 1, 2), all items and relevant items."""
    counts = torch.zeros(len(q), bits + 1, 2, dtype=torch.int64, device=x.device)
    for row, query in enumerate(hamming_distance(q, x, bits).long()):
        counts[row, :, 0] = torch.bincount(query, minlength=bits + 1)
        if labels_q is not None and labels_x is not None:
            relevant = is_relevant(labels_q[row], labels_x)
            counts[row, :, 1] = torch.bincount(query[relevant], minlength=bits + 1)
    return counts[:, :, 0].contiguous() if labels_q is None else counts


def hamming_stable_ranking(
    q: Tensor, x: Tensor, bits: int, labels_q: Tensor, labels_x: Tensor, k: int, cutoffs: list[int]
) -> tuple[Tensor, Tensor]:
    """Precision summed over relevant items of rank <= k, (Q,) float64; relevant items by each cutoff, (Q, c) int64."""
    sums = torch.zeros(len(q), dtype=torch.float64, device=x.device)
    counts = torch.zeros(len(q), len(cutoffs), dtype=torch.int64, device=x.device)
    for row, query in enumerate(hamming_distance(q, x, bits)):
        relevant = is_relevant(labels_q[row], labels_x)[query.sort(stable=True).indices]
        precision = relevant.cumsum(0).double() / torch.arange(1, len(x) + 1, device=x.device)
        sums[row] = precision[:k][relevant[:k]].sum()
        for column, cutoff in enumerate(cutoffs):
            counts[row, column] = relevant[:cutoff].sum()
    return sums, counts


def _kept(mask: Tensor, query: int) -> Tensor:
    return mask if mask.dim() == 1 else mask[query]


def is_relevant(of_query: Tensor, of_items: Tensor) -> Tensor:
    """(N,) bool: same class, or label sets that meet."""
    if of_items.dim() == 1:
        return of_items == of_query
    return ((of_items & of_query) != 0).any(1)
