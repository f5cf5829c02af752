"""A tiny dataset and the settings of a run that takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from agmh_fast.data import RetrievalData
from agmh_fast.train import TrainConfig

CLASSES = 3


class Patterns:
    """Noisy copies of one random 16×16 pattern a class; a random view adds more noise."""

    def __init__(self, per_class: int, seed: int) -> None:
        patterns = torch.randn(CLASSES, 1, 16, 16, generator=torch.Generator().manual_seed(99))
        self.labels = torch.arange(CLASSES).repeat(per_class)
        noise = torch.randn(len(self.labels), 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.images = patterns[self.labels] + 0.5 * noise

    def __len__(self) -> int:
        return len(self.images)

    def load(self, items: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        images = self.images[items]
        if generator is None:
            return images
        return images + 0.2 * torch.randn(images.shape, generator=generator)


@pytest.fixture
def data() -> RetrievalData:
    names = tuple(f"pattern {i}" for i in range(CLASSES))
    return RetrievalData("patterns", names, Patterns(6, 1), Patterns(2, 2), (0.0,), (1.0,))


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """Settings of two outer iterations of two epochs over 13 of 18 items; an epoch's last batch is smaller."""
    settings = {
        "dataset": "patterns",
        "bits": 12,
        "num_descriptors": 2,
        "descriptor_dim": 8,
        "num_heads": 2,
        "memory_size": 4,
        "max_iter": 2,
        "max_epoch": 2,
        "num_samples": 13,
        "batch_size": 4,
        "lr": 0.005,
        # The published 200 goes with thousands of items: here it would only copy the random codes of the start.
        "gamma": 1.0,
        "schedule": "cosine",
        "eval_every": 1,
        "select": "test",
        "device": "cpu",
        "checkpoint_seconds": 0,
    }
    return lambda **changes: TrainConfig(**(settings | changes))


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny operations gain nothing from threads, and lose much where other processes keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
