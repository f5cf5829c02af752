"""Progresses of a training run that interrupt it as Ctrl-C does."""

from __future__ import annotations

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
