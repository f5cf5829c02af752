"""Training: the alternating optimisation, its settings, checkpoints and models."""

from __future__ import annotations

from agmh_fast.ops.hashing import HashingState
from agmh_fast.train.config import TrainConfig
from agmh_fast.train.encoding import encode_set, evaluate, validate
from agmh_fast.train.loop import TrainResult, fit, load_data
from agmh_fast.train.models import load_codes, load_meta, load_run
from agmh_fast.train.progress import ConsoleProgress, Event, silent
from agmh_fast.train.settings import PUBLISHED, Plan, plan

__all__ = [
    "PUBLISHED",
    "ConsoleProgress",
    "Event",
    "HashingState",
    "Plan",
    "TrainConfig",
    "TrainResult",
    "encode_set",
    "evaluate",
    "fit",
    "load_codes",
    "load_data",
    "load_meta",
    "load_run",
    "plan",
    "silent",
    "validate",
]
