"""agmh_fast: AGMH fine-grained hashing and exact Hamming search, faster, with results proved against a reference.

Importing this package needs neither a GPU, nor Triton, nor the compiled modules; what needs one says so when it is
used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from agmh_fast._version import __version__
from agmh_fast.errors import InputError

if TYPE_CHECKING:
    from agmh_fast import data, functional, metrics, modules, official, reference, search, train, viz
    from agmh_fast.functional import HashingLoss, explain
    from agmh_fast.modules import AGMH, AGMHOutput
    from agmh_fast.ops.codes import pack_codes, unpack_codes
    from agmh_fast.ops.threads import get_num_threads, set_num_threads
    from agmh_fast.search import HammingIndex, ShardedHammingIndex

# Loaded on first use: a search needs no torchvision, and a model needs no index.
_MODULES = ("data", "functional", "metrics", "modules", "official", "reference", "search", "train", "viz")
_NAMES = {
    "AGMH": "agmh_fast.modules",
    "AGMHOutput": "agmh_fast.modules",
    "HammingIndex": "agmh_fast.search",
    "HashingLoss": "agmh_fast.functional",
    "ShardedHammingIndex": "agmh_fast.search",
    "explain": "agmh_fast.functional",
    "get_num_threads": "agmh_fast.ops.threads",
    "pack_codes": "agmh_fast.ops.codes",
    "set_num_threads": "agmh_fast.ops.threads",
    "unpack_codes": "agmh_fast.ops.codes",
}

__all__ = [
    "AGMH",
    "AGMHOutput",
    "HammingIndex",
    "HashingLoss",
    "InputError",
    "ShardedHammingIndex",
    "__version__",
    "data",
    "explain",
    "functional",
    "get_num_threads",
    "metrics",
    "modules",
    "official",
    "pack_codes",
    "reference",
    "search",
    "set_num_threads",
    "train",
    "unpack_codes",
    "viz",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"agmh_fast.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'agmh_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
