"""What interrupts a run: Ctrl-C, by a progress of training, and a full disk."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

from agmh_fast.train import Event


class Stopper:
    """Stops when the run has done a given number of batches, those before it was resumed included."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: Event) -> None:
        if event.kind == "batch" and event.step == self.step:
            raise KeyboardInterrupt


class Countdown:
    """Stops after so many batches, of however many runs."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, event: Event) -> None:
        self.left -= event.kind == "batch"
        if self.left == 0:
            raise KeyboardInterrupt


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Context in which no file of this process may grow beyond `size` bytes: it fails as it would on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
