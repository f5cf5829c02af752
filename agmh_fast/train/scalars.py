"""Losses, mAP and speed of every epoch in scalars.csv and, with tensorboard installed, in event files under events/."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agmh_fast.files import atomic_write

FILE = "scalars.csv"
EVENTS = "events"
_TAGS = {
    "loss/pairwise": "pairwise",
    "loss/quantization": "quantization",
    "loss/attention_dispersion": "attention_dispersion",
    "train/learning_rate": "lr",
    "train/images_per_second": "images_per_second",
    "retrieval/map": "map",
    "retrieval/validation_map": "validation_map",
}


class ScalarLog:
    """Appends rows of a run's history; opened with the history so far, which replaces what the files held."""

    def __init__(self, folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
        self.folder = folder
        text = "step,tag,value,seconds\n" + "".join(_lines(row) for row in history)
        with atomic_write(folder / FILE) as temporary:
            temporary.write_text(text)
        self._file = (folder / FILE).open("a")
        self._events = _event_writer(folder, history[-1]["step"] + 1 if history else 0)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append the scalars of one epoch and flush them."""
        self._file.write(_lines(row))
        self._file.flush()
        if self._events is not None:
            for tag, value in _scalars(row):
                self._events.add_scalar(tag, value, row["step"])

    def close(self) -> None:
        """Write what is still held back, and close the files; raises OSError as on a full disk."""
        try:
            self._file.close()
        finally:
            if self._events is not None:
                self._events.close()


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    return ((tag, row[key]) for tag, key in _TAGS.items() if row.get(key) is not None)


def _lines(row: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows((row["step"], tag, repr(value), f"{row['seconds']:.3f}") for tag, value in _scalars(row))
    return text.getvalue()


def _event_writer(folder: Path, purge_step: int) -> Any:
    """A SummaryWriter that hides events from `purge_step` on, or None without tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / EVENTS), purge_step=purge_step)
