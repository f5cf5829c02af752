"""How many threads the compiled engine may use."""

from __future__ import annotations

import os

import torch

from agmh_fast.errors import require_int

_threads: int | None = None


def set_num_threads(threads: int | None) -> None:
    """Let the compiled engine use at most `threads` threads a call; None: as many as torch.

    Results do not depend on it. It holds for this process: one forked from it goes by torch again, which gives each
    worker of a DataLoader one thread.
    """
    global _threads
    _threads = None if threads is None else require_int("threads", threads, 1, 4096)


# Under torch.compile a constant: how a result is computed, not what it is.
@torch.compiler.assume_constant_result
def get_num_threads() -> int:
    """Threads that the compiled engine may use: what `set_num_threads` said, else `torch.get_num_threads()`."""
    return torch.get_num_threads() if _threads is None else _threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: set_num_threads(None))
