"""What a run tells about itself while it goes on, and the bar or lines that show it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["start", "batch", "epoch", "iteration", "end"]


@dataclass(frozen=True)
class Event:
    """A moment of a run: its start, a batch, an epoch, the end of an outer iteration (after its last epoch), the end.

    iteration and epoch count from 0, step counts the batches done of `steps` in all. row: the epoch's line of the
    history at "epoch" and "iteration", else empty. images: those of the batch at "batch", of all ranks together.
    """

    kind: Kind
    iteration: int
    epoch: int
    step: int
    steps: int
    row: Mapping[str, Any]
    images: int = 0


Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """A progress that shows nothing."""


class ConsoleProgress:
    """A bar on stderr with losses, mAP, speed and time left; without a terminal a plain line an outer iteration."""

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._bar: Any = None
        self._map: float | None = None
        self._losses = ""
        self._started, self._first_step = time.monotonic(), 0
        self._images, self._since = 0, self._started

    def __call__(self, event: Event) -> None:
        if event.kind == "start":
            self._start(event)
        elif event.kind == "batch" and self._bar is not None:
            self._images += event.images
            speed = self._images / max(time.monotonic() - self._since, 1e-9)
            self._bar.set_postfix_str(f"{self._losses}{speed:.0f} images/s", refresh=False)
            self._bar.update(1)
        elif event.kind in ("epoch", "iteration"):
            self._map = event.row.get("map", self._map)
            self._show(event)
        elif event.kind == "end" and self._bar is not None:
            self._bar.close()

    def _start(self, event: Event) -> None:
        self._started, self._first_step = time.monotonic(), event.step
        self._since = self._started
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=event.steps, initial=event.step, unit="batch", dynamic_ncols=True, desc="training")

    def _show(self, event: Event) -> None:
        row = event.row
        losses = {
            "pairwise": f"{row['pairwise']:.3f}",
            "quantization": f"{row['quantization']:.3f}",
            "dispersion": f"{row['attention_dispersion']:.4f}",
        }
        speed = f"{row['images_per_second']:.0f} images/s"
        if self._bar is not None:
            best = {} if self._map is None else {"mAP": f"{self._map:.3f}"}
            self._losses = "".join(f"{name} {value}, " for name, value in (losses | best).items())
            self._bar.set_postfix_str(f"{self._losses}{speed}")
            # What was evaluated since the last batch is not of the next epoch's time.
            self._images, self._since = 0, time.monotonic()
        elif event.kind == "iteration":
            score = f"  mAP {row['map']:.3f}" if "map" in row else ""
            score += f" (validation {row['validation_map']:.3f})" if "validation_map" in row else ""
            shown = "  ".join(f"{name} {value}" for name, value in losses.items())
            place = f"iteration {event.iteration + 1}/{self._iterations}"
            print(f"{place}  {shown}{score}  {speed}  ETA {self._left(event)}", file=sys.stderr, flush=True)

    def _left(self, event: Event) -> str:
        done = event.step - self._first_step
        seconds = round((time.monotonic() - self._started) / max(done, 1) * (event.steps - event.step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d}"
