"""Hamming search in plain torch operators, on any device: distances by matrix products of ±1 vectors, exact in float32.

With codes as ±1, q·x = bits − 2·distance, and every partial sum is a whole number below 2²⁴. The work is cut into
chunks, so that memory does not grow with Q·N. Arguments as in reference/hamming.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from agmh_fast.ops.codes import unpack_bits
from agmh_fast.reference.hamming import NO_DISTANCE

# Pairs, and unpacked bits, held at a time.
_CHUNK_PAIRS = 1 << 24
_CHUNK_BITS = 1 << 26
# Of an item that is not to be found: above every key.
_NO_KEY = 2**63 - 1


def hamming_distance(q: Tensor, x: Tensor, bits: int, dtype: torch.dtype = torch.int16) -> Tensor:
    out = q.new_empty(q.shape[0], x.shape[0], dtype=dtype)
    for queries, items, distances in _chunks(q, x, bits):
        out[queries, items] = distances.to(dtype)
    return out


def hamming_topk(
    q: Tensor, x: Tensor, k: int, bits: int, max_distance: int, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    count = x.shape[0]
    distances = q.new_full((q.shape[0], k), NO_DISTANCE, dtype=torch.int32)
    ids = q.new_full((q.shape[0], k), -1, dtype=torch.int64)
    if count == 0:
        return distances, ids
    best: Tensor | None = None
    for queries, items, chunk in _chunks(q, x, bits, beside=min(k, count)):
        # One key a pair orders by (distance, position) and is unique, so that the choice among ties is defined.
        keys = chunk.to(torch.int64) * count + torch.arange(items.start, items.stop, device=q.device)
        if mask is not None or max_distance < bits:
            keys.masked_fill_(~_may_be_found(chunk, max_distance, mask, queries, items), _NO_KEY)
        candidates = keys if best is None else torch.cat([best, keys], dim=1)
        best = candidates.topk(min(k, candidates.shape[1]), dim=1, largest=False, sorted=True).values
        if items.stop == count:
            found = best != _NO_KEY
            distances[queries, : best.shape[1]] = torch.where(found, best // count, NO_DISTANCE).to(torch.int32)
            ids[queries, : best.shape[1]] = torch.where(found, best % count, -1)
            best = None
    return distances, ids


def hamming_range(q: Tensor, x: Tensor, radius: int, bits: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    found = [(torch.zeros(0, dtype=torch.int64, device=q.device),) * 3]
    for queries, items, distances in _chunks(q, x, bits):
        row, column = _may_be_found(distances, radius, mask, queries, items).nonzero(as_tuple=True)
        found.append((row + queries.start, distances[row, column].to(torch.int64), column + items.start))
    row, distance, position = (torch.cat(parts) for parts in zip(*found, strict=True))
    # Chunks of a query come by ascending position, and stable sorts keep that order.
    order = distance.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    lims = torch.zeros(q.shape[0] + 1, dtype=torch.int64, device=q.device)
    lims[1:] = torch.bincount(row, minlength=q.shape[0]).cumsum(0)
    return lims, distance[order].to(torch.int32), position[order]


def hamming_histogram(q: Tensor, x: Tensor, bits: int, labels_q: Tensor | None, labels_x: Tensor | None) -> Tensor:
    channels = 1 if labels_q is None else 2
    counts = torch.zeros(channels, q.shape[0], bits + 1, dtype=torch.int64, device=q.device)
    for queries, items, distances in _chunks(q, x, bits):
        bins = distances.to(torch.int64)
        counts[0, queries].scatter_add_(1, bins, torch.ones_like(bins))
        if labels_q is not None and labels_x is not None:
            relevant = _relevant(labels_q[queries], labels_x[items])
            counts[1, queries].scatter_add_(1, bins, relevant.to(torch.int64))
    return counts[0] if labels_q is None else counts.permute(1, 2, 0).contiguous()


def hamming_stable_ranking(
    q: Tensor, x: Tensor, bits: int, labels_q: Tensor, labels_x: Tensor, k: int, cutoffs: list[int]
) -> tuple[Tensor, Tensor]:
    count = x.shape[0]
    sums = torch.zeros(q.shape[0], dtype=torch.float64, device=q.device)
    counts = torch.zeros(q.shape[0], len(cutoffs), dtype=torch.int64, device=q.device)
    if count == 0:
        return sums, counts
    rank = torch.arange(1, count + 1, dtype=torch.float64, device=q.device)
    rows = max(1, _CHUNK_PAIRS // count)
    for start in range(0, q.shape[0], rows):
        queries = slice(start, min(start + rows, q.shape[0]))
        order = hamming_distance(q[queries], x, bits).sort(dim=1, stable=True).indices
        relevant = _relevant(labels_q[queries], labels_x).gather(1, order)
        so_far = relevant.cumsum(1)
        sums[queries] = (so_far / rank * relevant)[:, :k].sum(1)
        counts[queries] = so_far[:, [cutoff - 1 for cutoff in cutoffs]]
    return sums, counts


def hamming_ranked_histogram(
    q: Tensor, x: Tensor, bits: int, labels_q: Tensor, labels_x: Tensor, k: int, cutoffs: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    sums, counts = hamming_stable_ranking(q, x, bits, labels_q, labels_x, k, cutoffs)
    return sums, counts, hamming_histogram(q, x, bits, labels_q, labels_x)


def _chunks(q: Tensor, x: Tensor, bits: int, beside: int = 0) -> Iterator[tuple[slice, slice, Tensor]]:
    """(queries, items, int32 distances) over all pairs, the items of a block of queries in ascending order.

    beside: values kept for each query between chunks.
    """
    columns = max(1, min(x.shape[0], _CHUNK_BITS // bits, 1 << 16))
    rows = max(1, min(q.shape[0], _CHUNK_BITS // bits, _CHUNK_PAIRS // (columns + beside)))
    for first in range(0, q.shape[0], rows):
        queries = slice(first, min(first + rows, q.shape[0]))
        left = _signs(q[queries], bits)
        for start in range(0, x.shape[0], columns):
            items = slice(start, min(start + columns, x.shape[0]))
            # Autocast would round the products to its own type.
            with torch.autocast(q.device.type, enabled=False):
                products = left @ _signs(x[items], bits).T
            yield queries, items, ((bits - products) * 0.5).to(torch.int32)


def _may_be_found(distances: Tensor, limit: int, mask: Tensor | None, queries: slice, items: slice) -> Tensor:
    """(queries, items) bool: within the limit and not left out by the mask."""
    near = distances <= limit
    return near if mask is None else near & (mask[items] if mask.dim() == 1 else mask[queries, items])


def _signs(codes: Tensor, bits: int) -> Tensor:
    return unpack_bits(codes, bits).to(torch.float32) * 2 - 1


def _relevant(labels_q: Tensor, labels_x: Tensor) -> Tensor:
    """(queries, items) bool: same class, or label sets that meet."""
    if labels_q.dim() == 1:
        return labels_q[:, None] == labels_x[None]
    meet = torch.zeros(labels_q.shape[0], labels_x.shape[0], dtype=torch.bool, device=labels_q.device)
    for word in range(labels_q.shape[1]):
        meet |= (labels_q[:, word, None] & labels_x[None, :, word]) != 0
    return meet
