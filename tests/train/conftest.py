"""A tiny dataset and the settings of a run that takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from patterns import patterns

from agmh_fast.data import RetrievalData
from agmh_fast.train import TrainConfig


@pytest.fixture
def data() -> RetrievalData:
    return patterns()


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
def _one_thread(one_thread):
    """For every test here."""
