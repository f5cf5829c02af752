"""A ranking by Hamming distance as its tie groups: what every metric needs to know of it but the order of ties."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TieGroups:
    """Items at one distance from a query, nearest first: (Q, bits + 1) float64 each, or (Q,) for one group a query.

    A group has `size` items, `relevant` of them relevant, ranked after `before` items of which `relevant_before` are.
    """

    size: Tensor
    relevant: Tensor
    before: Tensor
    relevant_before: Tensor

    @classmethod
    def from_histogram(cls, histogram: Tensor) -> TieGroups:
        """From (Q, bits + 1, 2) counts at each distance: [..., 0] all items, [..., 1] the relevant ones."""
        size, relevant = (counts.contiguous() for counts in histogram.unbind(-1))
        before, relevant_before = size.cumsum(1) - size, relevant.cumsum(1) - relevant
        return cls(size.double(), relevant.double(), before.double(), relevant_before.double())

    @property
    def end(self) -> Tensor:
        """Items up to the group and with it."""
        return self.before + self.size

    @property
    def relevant_end(self) -> Tensor:
        """Relevant items up to the group and with it."""
        return self.relevant_before + self.relevant

    def holding(self, rank: int) -> TieGroups:
        """Each query's group that holds place `rank`, 1 <= rank <= N."""
        index = (self.end < rank).sum(1, keepdim=True)
        fields = (self.size, self.relevant, self.before, self.relevant_before)
        return TieGroups(*(field.gather(1, index).squeeze(1) for field in fields))

    def hit_range(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Fewest and most relevant items that the first `places` places of the group can hold."""
        return (places - (self.size - self.relevant)).clamp(min=0), torch.minimum(places, self.relevant)


def hits_at(groups: TieGroups, cutoffs: list[int], ties: str) -> Tensor:
    """(Q, cutoffs) relevant items among the first c <= N: of the group that c cuts the mean, the most or the fewest."""
    hits = groups.size.new_empty(len(groups.size), len(cutoffs))
    for column, cutoff in enumerate(cutoffs):
        cut = groups.holding(cutoff)
        places = cutoff - cut.before
        fewest, most = cut.hit_range(places)
        inside = {"expected": cut.relevant * places / cut.size, "optimistic": most, "pessimistic": fewest}[ties]
        hits[:, column] = cut.relevant_before + inside
    return hits
