"""Finished runs: their folders, their data, and how well their queries find the database."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agmh_fast import metrics
from agmh_fast.data import RetrievalData
from agmh_fast.errors import require
from agmh_fast.metrics.result import TIE_RULES
from agmh_fast.train.config import TrainConfig
from agmh_fast.train.encoding import encode_set
from agmh_fast.train.loop import load_data
from agmh_fast.train.models import load_codes, load_meta, load_run
from agmh_fast.train.settings import FILE, stored_plan

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class RunScores:
    """Retrieval metrics of a run's model by rule for ties; iteration and selected_by say which model it is."""

    folder: str
    bits: int
    which: str
    selected_by: str
    iteration: int
    scores: dict[str, metrics.RetrievalMetrics]


def run_folders(folder: Folder) -> list[Path]:
    """The folder itself, or of several code lengths the folder of each; raises InputError for a damaged one."""
    top = Path(folder)
    if not (top / FILE).is_file():
        return [top]
    plan = stored_plan(top)
    return [top / f"{bits}bits" for bits in plan.lengths] if len(plan.lengths) > 1 else [top]


def data_of(folder: Folder, which: str = "best", root: Folder | None = None) -> RetrievalData:
    """The dataset that a run learned on; `root` where it lies somewhere else now.

    Raises InputError where it is missing or has other splits than the run's.
    """
    meta = load_meta(folder, which)
    data = load_data(_config_of(meta["config"], root))
    _require_same_splits(data, meta, folder)
    return data


def evaluate_runs(
    folders: Sequence[Folder],
    which: str = "best",
    root: Folder | None = None,
    k: int | None = None,
    workers: int = 0,
    device: str | None = None,
) -> list[RunScores]:
    """Scores of each run: its queries, encoded, over its learned database codes, by every rule for ties.

    Runs of one dataset share it. device: where queries are encoded; None takes CUDA where there is one. Raises
    InputError as `load_run` and `data_of` do.
    """
    shared: dict[TrainConfig, RetrievalData] = {}
    results = []
    for folder in folders:
        meta = load_meta(folder, which)
        config = _config_of(meta["config"], root).replace(device=device)
        if config not in shared:
            shared[config] = load_data(config)
        data = shared[config]
        _require_same_splits(data, meta, folder)
        model, database = load_run(folder, which, config.torch_device), load_codes(folder, which)
        queries = encode_set(model, data.query, workers=workers).cpu()
        labels = data.query.labels, data.database.labels
        scores = {
            ties: metrics.retrieval(queries, database, *labels, bits=model.bits, ties=ties, k=k) for ties in TIE_RULES
        }
        selected = "last" if which == "final" else meta["selected_by"]
        results.append(RunScores(os.fspath(folder), model.bits, which, selected, meta["iteration"], scores))
    return results


def first_labels(labels: Tensor) -> Tensor:
    """The class (N,) int64 of each item; of several the first."""
    return labels if labels.ndim == 1 else labels.to(torch.uint8).argmax(dim=1)


def _require_same_splits(data: RetrievalData, meta: dict[str, Any], folder: Folder) -> None:
    same = data.fingerprints == meta["fingerprints"]
    require(same, f"run: {os.fspath(folder)!r} was trained on other splits of {data.name!r}: give the root of those")


def _config_of(stored: dict[str, Any], root: Folder | None) -> TrainConfig:
    """A run's settings as far as they bear on its data, on this machine."""
    names = ("dataset", "root", "cache", "cache_whole", "skip_broken")
    own = {name: stored[name] for name in names if name in stored}
    return TrainConfig.from_mapping(own if root is None else own | {"root": os.fspath(root)})
