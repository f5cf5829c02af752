"""Everything random in a run as a function of (seed, iteration, epoch): a resumed run draws what it would have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_SAMPLE, _ORDER, _MODULES, _HELD_OUT = range(4)


def sample_items(count: int, number: int, seed: int, iteration: int) -> Tensor:
    """`number` different database positions (number,) int64 of 0..count-1 for an outer iteration."""
    return torch.from_numpy(_stream(seed, _SAMPLE, iteration).permutation(count)[:number])


def epoch_order(number: int, seed: int, iteration: int, epoch: int) -> Tensor:
    """A permutation (number,) int64: the order in which an epoch visits the sampled items."""
    return torch.from_numpy(_stream(seed, _ORDER, iteration, epoch).permutation(number))


class EpochOrders:
    """orders[number] is the items (m,) that epoch `number` of a run visits, in that order: its images are so loaded.

    items: those that may be sampled, m = `samples` of them for an outer iteration of `epochs` epochs.
    """

    def __init__(self, items: Tensor, samples: int, epochs: int, seed: int) -> None:
        self.items, self.samples, self.epochs, self.seed = items, samples, epochs, seed
        self._last: tuple[int, Tensor] = -1, items

    def __getitem__(self, number: int) -> Tensor:
        if self._last[0] != number:
            iteration, epoch = divmod(number, self.epochs)
            sampled = self.items[sample_items(len(self.items), self.samples, self.seed, iteration)]
            self._last = number, sampled[epoch_order(self.samples, self.seed, iteration, epoch)]
        return self._last[1]


def held_out_draw(count: int, seed: int) -> tuple[Tensor, float]:
    """A permutation (count,) int64 and a number from 0 up to 1: what the choice of held-out images depends on."""
    stream = _stream(seed, _HELD_OUT)
    return torch.from_numpy(stream.permutation(count)), float(stream.random())


@contextlib.contextmanager
def module_randomness(seed: int, iteration: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Context in which torch's own generators, as dropout uses them, are the epoch's; the caller's come back after."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(_stream(seed, _MODULES, iteration, epoch).integers(2**63)))
        yield


def _stream(seed: int, *key: int) -> np.random.Generator:
    # A spawn key keeps these streams apart from those that images are drawn from.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
