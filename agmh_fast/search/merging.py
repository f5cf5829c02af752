"""Candidates of several shards, and how they become one answer in (distance, id) order, on any device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agmh_fast.reference.hamming import NO_DISTANCE
from agmh_fast.search.arguments import Array


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


class Nearest:
    """The k nearest of each query among all pieces of a database so far, which come in the order of positions.

    distances (Q, k) int32 and positions (Q, k) int64 on `device`: 2³¹ − 1 and −1 where there are none yet.
    """

    def __init__(self, queries: int, k: int, device: torch.device) -> None:
        self.distances = torch.full((queries, k), NO_DISTANCE, dtype=torch.int32, device=device)
        self.positions = torch.full((queries, k), -1, dtype=torch.int64, device=device)
        self._columns = 0  # that hold anything

    def add(self, queries: slice, start: int, found: tuple[Tensor, Tensor]) -> None:
        """What a search of the piece that begins at position `start` found for some queries, in order."""
        distances, positions = found
        known, k = self._columns, self.distances.shape[1]
        distances = torch.cat([self.distances[queries, :known], distances], dim=1)
        positions = torch.cat([self.positions[queries, :known], torch.where(positions >= 0, positions + start, -1)], 1)
        # Whatever was known has the smaller positions, so that a stable sort by distance is one by both.
        order = distances.argsort(dim=1, stable=True)[:, :k]
        self.distances[queries, : order.shape[1]] = distances.gather(1, order)
        self.positions[queries, : order.shape[1]] = positions.gather(1, order)

    def advance(self, columns: int) -> None:
        """All queries have been given so many results of the piece at hand."""
        self._columns = min(self._columns + columns, self.distances.shape[1])


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


def full_like(kind: Tensor, shape: tuple[int, ...], value: int) -> Tensor:
    """Filled with one value, of the type and on the device of `kind`; raises MemoryError where it does not fit."""
    try:
        return torch.full(shape, value, dtype=kind.dtype, device=kind.device)
    except RuntimeError as error:
        raise MemoryError(f"no room for a result of shape {shape}") from error


def as_queries(queries: Array, result: Iterable[Tensor]) -> Iterable[Array]:
    """Tensors for tensors, else NumPy arrays."""
    return result if isinstance(queries, Tensor) else (part.cpu().numpy() for part in result)
