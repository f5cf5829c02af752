"""Ids in ascending order, each once, on a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AscendingIds:
    """`count` ids from `first` to `last`: `stored` (count,) int64, or None where they are consecutive.

    Nothing but `of` waits for the device.
    """

    device: torch.device
    count: int = 0
    first: int = 0
    last: int = -1
    stored: Tensor | None = None

    @classmethod
    def of(cls, ids: Tensor) -> AscendingIds:
        """Over a tensor of ascending ids, which is let go of where they are consecutive."""
        if not len(ids):
            return cls(ids.device)
        first, last = ids[[0, -1]].tolist()
        consecutive = last - first == len(ids) - 1
        return cls(ids.device, len(ids), first, last, None if consecutive else ids)

    def tensor(self) -> Tensor:
        """(count,) int64."""
        if self.stored is not None:
            return self.stored
        # Not from first to last + 1, which may be 2⁶³.
        return torch.arange(self.count, device=self.device) + self.first

    def at(self, positions: Tensor) -> Tensor:
        """The ids at these positions; −1 stays."""
        if self.stored is None:
            return torch.where(positions >= 0, positions + self.first, -1) if self.first else positions
        return torch.where(positions >= 0, self.stored[positions.clamp(min=0)], -1)

    def find(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Where each value stands, and whether it is there (where not, the place means nothing)."""
        if self.stored is None:
            return values - self.first, (values >= self.first) & (values <= self.last)
        places = torch.searchsorted(self.stored, values)
        return places, self.stored[places.clamp(max=self.count - 1)] == values

    def places_of(self, values: Tensor) -> Tensor:
        """How many ids are below each value."""
        if self.stored is None:
            return (values.clamp(self.first, self.last + 1) - self.first) if self.count else torch.zeros_like(values)
        return torch.searchsorted(self.stored, values)

    def mask(self, values: Tensor) -> Tensor:
        """(count,) bool: which ids are among these values, in any order, repeated or not held at all."""
        places, held = self.find(values)
        # One place more, for values that are not held: a choice by `held` would have to wait for their number.
        marked = torch.zeros(self.count + 1, dtype=torch.bool, device=self.device)
        marked.index_fill_(0, torch.where(held, places, self.count), True)
        return marked[: self.count]
