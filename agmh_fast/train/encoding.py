"""Codes of a whole split, and how well queries find their class among the learned database codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from agmh_fast import metrics
from agmh_fast.data import ImageSet, batches
from agmh_fast.errors import require
from agmh_fast.modules import AGMH
from agmh_fast.ops.codes import pack_codes
from agmh_fast.ops.hashing import HashingState
from agmh_fast.train.memory import kept_memory
from agmh_fast.train.ranks import Ranks


def encode_set(
    model: AGMH, images: ImageSet, batch_size: int = 256, workers: int = 0, items: Tensor | None = None
) -> Tensor:
    """Packed codes (N, ceil(bits/8)) uint8 of all images in order, on the model's device, by the deterministic view.
    With `items` (n,) int64 those of these images alone.

    batch_size: images encoded at a time; workers: processes that load them. What encodes is a copy made for it
    (`AGMH.for_encoding`). Raises InputError for an empty split and for NaN in an embedding.
    """
    require(len(images) > 0, "images must hold at least one image to encode")
    order = torch.arange(len(images)) if items is None else items
    return torch.cat([codes for _, codes in encoded_batches(model.for_encoding(), images, order, batch_size, workers)])


def encoded_batches(
    model: AGMH, images: ImageSet, order: Tensor | Sequence[int], batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of positions (B,) int64 and their images' packed codes (B, ceil(bits/8)) uint8, a batch at a time."""
    device = model.hash_weight.device
    with kept_memory(device):
        for items, views in batches(images, order, batch_size, workers=workers, device=device):
            yield items, model.encode(views.to(device))


def encode_shared(model: AGMH, images: ImageSet, items: Tensor, batch_size: int, workers: int, ranks: Ranks) -> Tensor:
    """`encode_set` of these items by all ranks, each its share; the codes are on every rank."""
    own, device = items[ranks.share(len(items))], model.hash_weight.device
    empty = torch.empty(0, (model.bits + 7) // 8, dtype=torch.uint8, device=device)
    codes = encode_set(model, images, batch_size, workers, own) if len(own) else empty
    return ranks.gather(codes, len(items))


def evaluate(
    model: AGMH,
    state: HashingState,
    query: ImageSet,
    ties: str = "stable",
    batch_size: int = 256,
    workers: int = 0,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> metrics.RetrievalMetrics:
    """Retrieval metrics of encoded queries over the learned database codes `state.codes`, the published protocol.

    Each of `ranks` encodes its share of the queries; the metrics are on every one. ties as in `metrics.retrieval`,
    batch_size, workers and errors as in `encode_set`.
    """
    codes = encode_shared(model, query, torch.arange(len(query)), batch_size, workers, ranks)
    return metrics.retrieval(codes, pack_codes(state.codes), query.labels, state.labels, bits=state.bits, ties=ties)


def validate(
    model: AGMH,
    state: HashingState,
    database: ImageSet,
    held_out: Tensor,
    ties: str = "stable",
    batch_size: int = 256,
    workers: int = 0,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> metrics.RetrievalMetrics:
    """Retrieval metrics of the database images `held_out` (v,) int64, encoded, over the learned codes of the others.

    Arguments and errors as `evaluate`.
    """
    others = torch.ones(len(state), dtype=torch.bool, device=state.groups.device)
    others[held_out.to(others.device)] = False
    codes = encode_shared(model, database, held_out, batch_size, workers, ranks)
    labels = state.labels[held_out.to(others.device)], state.labels[others]
    return metrics.retrieval(codes, pack_codes(state.codes[others]), *labels, bits=state.bits, ties=ties)
