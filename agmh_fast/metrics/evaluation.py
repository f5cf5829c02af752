"""Retrieval metrics of packed codes, from Hamming histograms and counted ranks: no sort and no Q×N matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agmh_fast import functional
from agmh_fast.errors import require, require_int
from agmh_fast.metrics.average_precision import average_precision
from agmh_fast.metrics.result import NORMALISATIONS, TIE_RULES, PrecisionRecallCurve, RetrievalMetrics
from agmh_fast.metrics.tie_groups import TieGroups
from agmh_fast.metrics.tie_scores import tie_scores
from agmh_fast.ops.arrays import array_to_tensor
from agmh_fast.ops.codes import check_bits, check_codes
from agmh_fast.ops.hamming import check_multi_hot, hamming_ranked_histogram

# Scratch does not grow with Q or N: histograms of so many counts are made at a time, and closed forms work on parts of
# them that stay in cache and are too small for torch to hand to a second thread.
_HISTOGRAM_ELEMENTS = 2**20
_CLOSED_FORM_ELEMENTS = 2**15


def retrieval(
    query_codes: Any,
    database_codes: Any,
    query_labels: Any,
    database_labels: Any,
    bits: int | None = None,
    ties: str = "stable",
    k: int | None = None,
    cutoffs: Sequence[int] = (1, 10, 100, 1000),
    normalise: str = "retrieved",
) -> RetrievalMetrics:
    """Score a ranking of the database by Hamming distance: mAP, precision and recall at cutoffs, curve, radius 2.

    query_codes (Q, bytes), database_codes (N, bytes): packed uint8, as `numpy.packbits` and `agmh_fast.pack_codes`
    give them, NumPy or torch, on one device; bits defaults to 8 · bytes.
    query_labels (Q,), database_labels (N,) integers, or multi-hot (Q, classes), (N, classes); an item is relevant to a
    query when they share a label. Labels are moved to the codes' device.

    ties decides between items at equal distance: "stable" ranks them by database position; "expected" is the mean,
    "optimistic" the best and "pessimistic" the worst value over all their orders, in closed form and for each metric by
    itself (McSherry and Najork, ECIR 2008). Hamming distances take bits + 1 values, so this choice can move mAP by
    several points; precision within a radius and the curve do not depend on it.

    k limits AP to the first k items, None takes all. AP@k divides by the relevant items among them ("retrieved", as
    published for ADSH and AGMH) or by min(k, relevant items in all) ("attainable"). Under "retrieved" one more relevant
    item within k can lower AP@k; the mean and both bounds are exact even so.

    A query without a relevant item counts 0 in AP and recall. precision_at[c] divides by c, also where c exceeds N.
    Raises InputError for wrong shapes, dtypes, devices or options, and when there is no query or no database item.
    """
    options = _checked_options(_bits_of(query_codes) if bits is None else bits, ties, k, cutoffs, normalise)
    queries, labels_q = _items("query", query_codes, query_labels, options.bits)
    database, labels_x = _items("database", database_codes, database_labels, options.bits)
    _require_match(queries, database, labels_q, labels_x)

    chunks = _split(len(queries), _HISTOGRAM_ELEMENTS, options.bits)
    scores = _Scores.join([_score(options, queries[rows], database, labels_q[rows], labels_x) for rows in chunks])
    hit_means, recall_means = scores.hits.mean(0), (scores.hits / scores.relevant.clamp(min=1)[:, None]).mean(0)
    curves = torch.stack([scores.precision, scores.recall]) / len(queries)
    as_numpy = isinstance(query_codes, np.ndarray)
    per_query_ap, curve = scores.average_precision, PrecisionRecallCurve(curves[0], curves[1])
    return RetrievalMetrics(
        map=float(per_query_ap.mean()),
        precision_at={c: hits / c for c, hits in zip(options.cutoffs, hit_means.tolist(), strict=True)},
        recall_at=dict(zip(options.cutoffs, recall_means.tolist(), strict=True)),
        pr_curve=PrecisionRecallCurve(*(values.cpu().numpy() for values in curve)) if as_numpy else curve,
        precision_radius2=float(curve.precision[min(2, options.bits)]),
        per_query_ap=per_query_ap.cpu().numpy() if as_numpy else per_query_ap,
        ties=ties,
        k=options.k,
        normalise=normalise,
        bits=options.bits,
        num_queries=len(queries),
        num_database=len(database),
    )


@dataclass(frozen=True)
class _Options:
    """The checked arguments that are not arrays."""

    bits: int
    ties: str
    k: int | None
    cutoffs: list[int]
    normalise: str


class _Scores(NamedTuple):
    """Per query AP (rows,), hits at each cutoff (rows, cutoffs), relevant items (rows,); sums of curves (bits + 1,)."""

    average_precision: Tensor
    hits: Tensor
    relevant: Tensor
    precision: Tensor
    recall: Tensor

    @classmethod
    def join(cls, parts: list[_Scores]) -> _Scores:
        """The scores of all queries from those of consecutive parts."""
        average_precision, hits, relevant, precision, recall = (list(field) for field in zip(*parts, strict=True))
        sums = torch.stack(precision).sum(0), torch.stack(recall).sum(0)
        return cls(torch.cat(average_precision), torch.cat(hits), torch.cat(relevant), *sums)


def _split(count: int, elements: int, bits: int) -> list[slice]:
    """0..count in parts whose rows of bits + 1 numbers come to at most `elements`, but at least one row."""
    rows = max(1, elements // (bits + 1))
    return [slice(begin, begin + rows) for begin in range(0, count, rows)]


def _score(options: _Options, queries: Tensor, database: Tensor, labels_q: Tensor, labels_x: Tensor) -> _Scores:
    """Scores of some queries: (rows, bytes) codes and their labels."""
    places = [min(cutoff, len(database)) for cutoff in options.cutoffs]
    if options.ties == "stable":
        per_query, hits, histogram = _ranked(options, queries, database, labels_q, labels_x, places)
        _, _, relevant, curves = tie_scores(histogram, options.ties, [])
    else:
        histogram = functional.hamming_histogram(queries, database, labels_q, labels_x, bits=options.bits)
        sums, hits, relevant, curves = tie_scores(histogram, options.ties, places)
        cut = options.k is not None and options.k < len(database)
        per_query = _cut(options, histogram) if cut else sums / relevant.clamp(min=1)
    return _Scores(per_query, hits, relevant, curves[0], curves[1])


def _cut(options: _Options, histogram: Tensor) -> Tensor:
    """AP@k (rows,) in closed form, for a k that cuts the ranking."""
    parts = [
        average_precision(TieGroups.from_histogram(histogram[rows]), options.ties, options.k, options.normalise)
        for rows in _split(len(histogram), _CLOSED_FORM_ELEMENTS, options.bits)
    ]
    return torch.cat(parts)


def _ranked(
    options: _Options, queries: Tensor, database: Tensor, labels_q: Tensor, labels_x: Tensor, places: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """AP@k (rows,), hits within each of `places` (rows, places) and histogram, ranked by (distance, position)."""
    count = len(database)
    k = count if options.k is None else min(options.k, count)
    cutoffs = sorted({*places, k, count})
    sums, hits, histogram = hamming_ranked_histogram(
        queries, database, labels_q, labels_x, k=k, cutoffs=cutoffs, bits=options.bits
    )
    column = {cutoff: index for index, cutoff in enumerate(cutoffs)}
    divisor = hits[:, column[k]] if options.normalise == "retrieved" else hits[:, column[count]].clamp(max=k)
    return sums / divisor.clamp(min=1), hits[:, [column[place] for place in places]].double(), histogram


def _checked_options(bits: int, ties: str, k: int | None, cutoffs: Sequence[int], normalise: str) -> _Options:
    """Check every argument that is not an array."""
    require(ties in TIE_RULES, f"ties must be one of {', '.join(TIE_RULES)}; got {ties!r}")
    require(normalise in NORMALISATIONS, f"normalise must be one of {', '.join(NORMALISATIONS)}; got {normalise!r}")
    k = None if k is None else require_int("k", k, 1)
    places = sorted({require_int("cutoffs", cutoff, 1) for cutoff in cutoffs})
    return _Options(check_bits(bits), ties, k, places, normalise)


def _bits_of(query_codes: Any) -> int:
    """Bits of full bytes; of codes that are none, any number: they are refused later, by name."""
    return 8 * max(1, query_codes.shape[1]) if getattr(query_codes, "ndim", 0) == 2 else 8


def _items(name: str, codes: Any, labels: Any, bits: int) -> tuple[Tensor, Tensor]:
    """Codes (n, bytes) and labels (n,) or (n, classes) as tensors on the codes' device, checked against each other."""
    codes_name, labels_name = f"{name}_codes", f"{name}_labels"
    codes = check_codes(codes_name, _tensor(codes_name, codes), bits)
    require(len(codes) > 0, f"{codes_name} has no rows, and the mean over nothing is undefined; give at least one code")
    labels = _tensor(labels_name, labels).detach().to(codes.device)
    require(
        (labels.dim() == 2 and labels.shape[1] > 0)
        or (labels.dim() == 1 and not labels.is_floating_point() and not labels.is_complex()),
        f"{labels_name} must be (n,) integers or (n, classes) multi-hot; got {tuple(labels.shape)} {labels.dtype}",
    )
    require(
        len(labels) == len(codes),
        f"{labels_name} must have one row for each row of {codes_name}: {len(codes)}, got {len(labels)}",
    )
    check_multi_hot(labels_name, labels)
    return codes, labels.long() if labels.dim() == 1 else labels


def _tensor(name: str, array: Any) -> Tensor:
    """NumPy or torch as a tensor over the same memory."""
    if isinstance(array, np.ndarray):
        return array_to_tensor(name, array)
    require(isinstance(array, Tensor), f"{name} must be a NumPy array or a torch tensor, got {type(array).__name__}")
    return array


def _require_match(queries: Tensor, database: Tensor, labels_q: Tensor, labels_x: Tensor) -> None:
    """Queries and database must be comparable."""
    require(
        queries.device == database.device,
        f"database_codes must be on the device of query_codes: {queries.device}, got {database.device}",
    )
    require(
        labels_q.shape[1:] == labels_x.shape[1:],
        "database_labels must have the form of query_labels, (n,) or (n, classes) with the same classes: "
        f"query_labels is {tuple(labels_q.shape)}, database_labels is {tuple(labels_x.shape)}",
    )
