"""A state of the hashing objective for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from agmh_fast.train import HashingState


def make_state(
    kind: str, count: int, bits: int, m: int, seed: int = 0, gamma: float = 3.7
) -> tuple[HashingState, Tensor]:
    """A state of `count` items at the start of an iteration, and its m sampled positions. kind: "single" labels of five
    classes, or "multi" labels.
    """
    labels = torch.randint(0, 5, (count,)) if kind == "single" else torch.rand(count, 5) < 0.3
    state = HashingState(labels, bits, gamma=gamma, seed=seed)
    sampled = torch.randperm(count)[:m]
    state.begin_iteration(sampled)
    return state, sampled
