"""The state of a run at the end of an epoch, from which it goes on exactly as if it had not stopped.

Neither a generator's state nor the sampled items and their embeddings are stored: draws depend on (seed, iteration,
epoch) alone, and the embeddings that the discrete step needs are those of an iteration's last epoch, which fills
every row.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agmh_fast.data import ImageSet, RetrievalData
from agmh_fast.errors import InputError, first_line, require
from agmh_fast.files import atomic_write

FILE = "checkpoint.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A run before epoch `epoch` of outer iteration `iteration`, both from 0."""

    config: str
    dataset: dict[str, Any]
    iteration: int
    epoch: int
    seconds: float
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    codes: Tensor
    history: list[dict[str, Any]]
    best: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write the checkpoint of `folder`, whole or not at all; raises OSError as on a full disk."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        with atomic_write(folder / FILE) as temporary, temporary.open("wb") as file:
            try:
                torch.save(values, file)
            except RuntimeError as error:
                # torch finds its archive cut, and hides why.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read the checkpoint of `folder`: tensors and plain values only, nothing is unpickled. Raises InputError."""
        path = folder / FILE
        require(
            path.is_file(), f"output: there is no {FILE} in {str(folder)!r} to resume: leave out resume to start a run"
        )
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            return cls(**values)
        except Exception as error:
            how = "delete it and start again"
            raise InputError(f"output: cannot read {str(path)!r}, {how}: {first_line(error)}") from error


def stored_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run in `folder`, by field; raises InputError as `Checkpoint.load` does."""
    return json.loads(Checkpoint.load(folder).config)


def describe_data(data: RetrievalData) -> dict[str, Any]:
    """What tells one dataset from another: its name, sizes and label checksums of its splits, their fingerprints."""
    splits = {"database": _describe(data.database), "query": _describe(data.query)}
    return {"name": data.name, **splits, "fingerprints": data.fingerprints}


def _describe(images: ImageSet) -> list[int]:
    return [len(images), zlib.crc32(images.labels.cpu().contiguous().numpy().tobytes())]
