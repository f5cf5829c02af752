"""Candidates of several shards, and how they become one answer in (distance, id) order. Any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Candidates(NamedTuple):
    """distances (n,) int32 and ids (n,) int64, one query's after the other's."""

    distances: Tensor
    ids: Tensor

    def pack(self) -> Tensor:
        """As bytes, uint8 (12 n,)."""
        # Ids first: both then lie where numbers of their size may.
        return torch.cat([self.ids.view(torch.uint8), self.distances.view(torch.uint8)])

    @classmethod
    def unpack(cls, data: Tensor) -> Candidates:
        """What `pack` made, without a copy."""
        split = data.numel() // CANDIDATE_BYTES * 8
        return cls(data[split:].view(torch.int32), data[:split].view(torch.int64))


CANDIDATE_BYTES = 12


def merge_nearest(shards: Sequence[Candidates], columns: Sequence[int], k: int) -> Candidates:
    """The k nearest of each query, of shard s with its columns[s] nearest of each; k is at most their sum."""
    rows = [
        (part.distances.view(-1, count), part.ids.view(-1, count))
        for part, count in zip(shards, columns, strict=True)
        if count
    ]
    if not rows:
        return shards[0]
    distances, ids = (torch.cat(parts, dim=1) for parts in zip(*rows, strict=True))
    order = ids.argsort(dim=1)
    order = order.gather(1, distances.gather(1, order).argsort(dim=1, stable=True))[:, :k]
    return Candidates(distances.gather(1, order).flatten(), ids.gather(1, order).flatten())


def merge_ranges(shards: Sequence[Candidates], counts: Tensor, bits: int) -> Candidates:
    """All candidates of each query, of shard s with counts[s, q] (shards, Q) int64 of query q; distances <= bits."""
    distances, ids = (torch.cat(parts) for parts in zip(*shards, strict=True))
    queries = torch.arange(counts.shape[1]).repeat(len(shards)).repeat_interleave(counts.flatten())
    order = ids.argsort()
    # One key for both, as one stable sort is less than two.
    key = queries.to(ids.device)[order] * (bits + 1) + distances[order]
    order = order[key.argsort(stable=True)]
    return Candidates(distances[order], ids[order])
