"""Codes of a whole split, and how well queries find their class among the learned database codes."""

from __future__ import annotations

import torch
from torch import Tensor

from agmh_fast import metrics
from agmh_fast.data import ImageSet, batches
from agmh_fast.errors import require
from agmh_fast.modules import AGMH
from agmh_fast.ops.codes import pack_codes
from agmh_fast.ops.hashing import HashingState


def encode_set(
    model: AGMH, images: ImageSet, batch_size: int = 256, workers: int = 0, items: Tensor | None = None
) -> Tensor:
    """Packed codes (N, ceil(bits/8)) uint8 of all images in order, on the model's device, by the deterministic view.
    With `items` (n,) int64 those of these images alone.

    What encodes is a copy made for it (`AGMH.for_encoding`). Raises InputError for an empty split and for NaN in an
    embedding.
    """
    require(len(images) > 0, "images must hold at least one image to encode")
    model, device = model.for_encoding(), model.hash_weight.device
    loaded = batches(images, torch.arange(len(images)) if items is None else items, batch_size, workers=workers)
    return torch.cat([model.encode(x.to(device, non_blocking=True)) for _, x in loaded])


def evaluate(
    model: AGMH, state: HashingState, query: ImageSet, ties: str = "stable", batch_size: int = 256, workers: int = 0
) -> metrics.RetrievalMetrics:
    """Retrieval metrics of encoded queries over the learned database codes `state.codes`, the published protocol."""
    codes = encode_set(model, query, batch_size, workers)
    return metrics.retrieval(codes, pack_codes(state.codes), query.labels, state.labels, bits=state.bits, ties=ties)


def validate(
    model: AGMH,
    state: HashingState,
    database: ImageSet,
    held_out: Tensor,
    ties: str = "stable",
    batch_size: int = 256,
    workers: int = 0,
) -> metrics.RetrievalMetrics:
    """Retrieval metrics of the database images `held_out` (v,) int64, encoded, over the learned codes of the others."""
    others = torch.ones(len(state), dtype=torch.bool, device=state.groups.device)
    others[held_out.to(others.device)] = False
    codes = encode_set(model, database, batch_size, workers, held_out)
    labels = state.labels[held_out.to(others.device)], state.labels[others]
    return metrics.retrieval(codes, pack_codes(state.codes[others]), *labels, bits=state.bits, ties=ties)
