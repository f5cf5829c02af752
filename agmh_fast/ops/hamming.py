"""Hamming search over packed codes: distances, k nearest, range, histogram, ranking of relevant items.

Order is always (distance, position), ascending, so that there is one right answer, the same from every implementation:
"cuda" and "cpu" (the compiled engine), "torch" (plain operators, any device, see hamming_torch.py), "reference".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agmh_fast.errors import InputError, require, require_int
from agmh_fast.ops import compiled, hamming_torch
from agmh_fast.ops.arrays import numpy_in_numpy_out
from agmh_fast.ops.codes import all_of, check_bits, check_codes, pack_bits
from agmh_fast.ops.registry import Op
from agmh_fast.ops.threads import get_num_threads
from agmh_fast.reference import hamming as reference

MAX_K = 2**31 - 1
# As csrc/hamming/cuda/engine.h has it.
_CUDA_CUTOFFS = 128

distance_op = Op("hamming_distance")
topk_op = Op("hamming_topk")
range_op = Op("hamming_range")
histogram_op = Op("hamming_histogram")
stable_ranking_op = Op("hamming_stable_ranking")
OPS = (distance_op, topk_op, range_op, histogram_op, stable_ranking_op)
# Two of these in one scan.
ranked_histogram_op = Op("hamming_ranked_histogram")


@numpy_in_numpy_out
def hamming_distance(
    q: Tensor, x: Tensor, bits: int | None = None, *, dtype: torch.dtype | None = None, impl: str = "auto"
) -> Tensor:
    """Number of differing bits of every pair: (Q, N), of `dtype`, by default uint8 for bits <= 255, else uint16.

    q (Q, ceil(bits / 8)) and x (N, ceil(bits / 8)): packed uint8 codes on one device; bits: 1..4096, by default 8 a
    byte; dtype: torch.uint8 (bits <= 255), torch.uint16 or torch.int32, for arrays too. Raises InputError for other
    shapes and types and, on CPUs, set padding bits (on GPUs they are ignored).
    """
    q, x, bits = _check_pair(q, x, bits)
    fitting = (torch.uint8, torch.uint16, torch.int32)[bits > 255 :]
    names = ", ".join(map(str, fitting))
    require(dtype is None or dtype in fitting, f"dtype must be one of {names} for {bits} bits, got {dtype}")
    return distance_op(q, x, bits, dtype or fitting[0], impl=impl)


@numpy_in_numpy_out
def hamming_topk(
    q: Tensor,
    x: Tensor,
    k: int,
    bits: int | None = None,
    *,
    mask: Tensor | None = None,
    max_distance: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The k nearest items of each query by (distance, position), ascending: distances (Q, k) int32, ids (Q, k) int64.

    Where fewer than k items may be found the rest holds distance 2³¹ − 1 and id −1. mask: bool, (N,) for all queries or
    (Q, N) one row a query, False leaves an item out, as does a distance above max_distance. Other arguments and errors
    as `hamming_distance`.
    """
    q, x, bits = _check_pair(q, x, bits)
    count = require_int("k", k, 1, max(MAX_K, x.shape[0]))
    limit = bits if max_distance is None else min(require_int("max_distance", max_distance, 0), bits)
    return topk_op(q, x, count, bits, limit, _check_mask(mask, q, x), impl=impl)


@numpy_in_numpy_out
def hamming_range(
    q: Tensor, x: Tensor, radius: int, bits: int | None = None, *, mask: Tensor | None = None, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """All items within `radius`, inclusive, of each query by (distance, position), as (lims, distances, ids).

    Query i has entries lims[i] to lims[i + 1]; lims (Q + 1,) int64, distances (T,) int32, ids (T,) int64. mask as
    in `hamming_topk`, other arguments and errors as `hamming_distance`.
    """
    q, x, bits = _check_pair(q, x, bits)
    within = min(require_int("radius", radius, 0), bits)
    return range_op(q, x, within, bits, _check_mask(mask, q, x), impl=impl)


@numpy_in_numpy_out
def hamming_histogram(
    q: Tensor,
    x: Tensor,
    labels_q: Tensor | None = None,
    labels_x: Tensor | None = None,
    *,
    bits: int | None = None,
    impl: str = "auto",
) -> Tensor:
    """Items at each distance from each query: (Q, bits + 1) int64.

    With labels (Q, bits + 1, 2), [..., 0] counting all items and [..., 1] relevant ones. Labels: (rows,) integers,
    relevant if equal, or (rows, classes) multi-hot of 0 and 1, relevant if a class is shared; on a CPU anything else is
    an InputError. Other arguments and errors as `hamming_distance`.
    """
    q, x, bits = _check_pair(q, x, bits)
    require((labels_q is None) == (labels_x is None), "labels_q and labels_x: give both or neither")
    if labels_q is not None:
        labels_q, labels_x = _check_labels(labels_q, labels_x, q, x)
    return histogram_op(q, x, bits, labels_q, labels_x, impl=impl)


@numpy_in_numpy_out
def hamming_stable_ranking(
    q: Tensor,
    x: Tensor,
    labels_q: Tensor,
    labels_x: Tensor,
    *,
    k: int | None = None,
    cutoffs: Sequence[int] = (),
    bits: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """What average precision needs when ties keep the order of positions: (precision sums, relevant counts).

    Precision sums (Q,) float64: over relevant items of rank <= k (None: all) the share of relevant items up to that
    rank. Relevant counts (Q, len(cutoffs)) int64: relevant items of rank <= each cutoff; cutoffs ascend, each at least
    1. Ranks start at 1. Labels as in `hamming_histogram`, other arguments and errors as `hamming_distance`.
    """
    return stable_ranking_op(*_check_ranking(q, x, labels_q, labels_x, k, cutoffs, bits), impl=impl)


@numpy_in_numpy_out
def hamming_ranked_histogram(
    q: Tensor,
    x: Tensor,
    labels_q: Tensor,
    labels_x: Tensor,
    *,
    k: int | None = None,
    cutoffs: Sequence[int] = (),
    bits: int | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`hamming_stable_ranking` and, from the same scan, `hamming_histogram`: (precision sums, relevant counts, counts).

    Precision sums (Q,) float64, relevant counts (Q, len(cutoffs)) int64, counts (Q, bits + 1, 2) int64. Arguments and
    errors as `hamming_stable_ranking`.
    """
    return ranked_histogram_op(*_check_ranking(q, x, labels_q, labels_x, k, cutoffs, bits), impl=impl)


def _check_ranking(
    q: Tensor, x: Tensor, labels_q: Tensor, labels_x: Tensor, k: int | None, cutoffs: Sequence[int], bits: int | None
) -> tuple[Tensor, Tensor, int, Tensor, Tensor, int, list[int]]:
    q, x, bits = _check_pair(q, x, bits)
    labels_q, labels_x = _check_labels(labels_q, labels_x, q, x)
    k = x.shape[0] if k is None else min(require_int("k", k, 1), x.shape[0])
    places = [min(require_int("cutoffs", cutoff, 1), max(x.shape[0], 1)) for cutoff in cutoffs]
    require(places == sorted(places), f"cutoffs must ascend, got {list(cutoffs)}")
    return q, x, bits, labels_q, labels_x, k, places


def _check_pair(q: object, x: object, bits: object) -> tuple[Tensor, Tensor, int]:
    if bits is None:
        width = x.shape[-1] if isinstance(x, Tensor) and x.dim() == 2 else 1
        require(1 <= width <= 512, f"x must have 1 to 512 bytes a row, got {width}")
        bits = 8 * width
    bits = check_bits(bits)
    x, q = check_codes("x", x, bits), check_codes("q", q, bits)
    require(q.device == x.device, f"q is on {q.device}, x on {x.device}: move one of them")
    return q, x, bits


def _check_mask(mask: object, q: Tensor, x: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise InputError(f"mask must be a NumPy array or a torch tensor, got {type(mask).__name__}")
    require(mask.dtype == torch.bool, f"mask must be bool, got {mask.dtype}")
    fits = mask.shape in ((x.shape[0],), (q.shape[0], x.shape[0]))
    shapes = f"({x.shape[0]},) or ({q.shape[0]}, {x.shape[0]})"
    require(fits, f"mask must be {shapes}, an entry for each item, got shape {tuple(mask.shape)}")
    require(mask.device == x.device, f"mask is on {mask.device}, the codes on {x.device}: move one of them")
    return mask.contiguous()


def _check_labels(labels_q: object, labels_x: object, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Contiguous int64 labels: (rows,) classes, or (rows, words) label sets with one bit a class."""
    checked = []
    for name, labels, codes in (("labels_q", labels_q, q), ("labels_x", labels_x, x)):
        if not isinstance(labels, Tensor):
            raise InputError(f"{name} must be a NumPy array or a torch tensor, got {type(labels).__name__}")
        require(labels.dim() in (1, 2), f"{name} must be (rows,) or (rows, classes), got shape {tuple(labels.shape)}")
        require(
            labels.shape[0] == codes.shape[0],
            f"{name} must have one row for each of the {codes.shape[0]} codes, got {labels.shape[0]}",
        )
        place = f"{name} is on {labels.device}, the codes on {codes.device}: move one of them"
        require(labels.device == codes.device, place)
        require(not labels.is_complex(), f"{name} must be integers or multi-hot, got {labels.dtype}")
        require(
            labels.dim() == 2 or not labels.is_floating_point(),
            f"{name} must be integers, got {labels.dtype}; multi-hot labels are (rows, classes)",
        )
        check_multi_hot(name, labels)
        checked.append(labels)
    of_queries, of_items = checked
    require(
        of_queries.shape[1:] == of_items.shape[1:],
        f"labels_q {tuple(of_queries.shape)} and labels_x {tuple(of_items.shape)} must be of one kind, of equal width",
    )
    if of_queries.dim() == 1:
        return of_queries.to(torch.int64).contiguous(), of_items.to(torch.int64).contiguous()
    require(of_queries.shape[1] > 0, "labels_q and labels_x must have at least one class")
    return _label_sets(of_queries), _label_sets(of_items)


def check_multi_hot(name: str, labels: Tensor) -> None:
    """Raise InputError for labels (rows, classes) that hold more than 0 and 1.

    On a GPU, where looking at values would stall the stream, and inside torch.compile, what is not 0 counts as 1.
    """
    seen = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if seen and labels.dim() == 2 and labels.dtype != torch.bool:
        require(all_of(labels, 0, 1), f"{name} must hold only 0 and 1, being (rows, classes)")


def _label_sets(labels: Tensor) -> Tensor:
    """(rows, classes) multi-hot -> (rows, words) int64, one bit a class."""
    packed = pack_bits(labels != 0)
    words = torch.nn.functional.pad(packed, (0, -packed.shape[1] % 8))
    return words.contiguous().view(torch.int64)


def _cpu_obstacle(q: Tensor, *_: object) -> str | None:
    return compiled.cpu_obstacle("the codes", q)


def _cuda_obstacle(q: Tensor, *_: object) -> str | None:
    if q.device.type != "cuda":
        return f"the codes are on {q.device}"
    if compiled.missing() is not None:
        return compiled.missing()
    return None if compiled.has_cuda_kernel("hamming_distance") else compiled.WITHOUT_CUDA


def _cuda_ranking_obstacle(q: Tensor, *rest: Any) -> str | None:
    if len(rest) == 6 and len(rest[-1]) > _CUDA_CUTOFFS:
        return f"it takes at most {_CUDA_CUTOFFS} cutoffs"
    return _cuda_obstacle(q)


@distance_op.register("cpu", obstacle=_cpu_obstacle)
@distance_op.register("cuda", obstacle=_cuda_obstacle)
def _distance(q: Tensor, x: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    return torch.ops.agmh_fast.hamming_distance(q, x, bits, dtype.itemsize, get_num_threads())


@topk_op.register("cpu", obstacle=_cpu_obstacle)
@topk_op.register("cuda", obstacle=_cuda_obstacle)
def _topk(q: Tensor, x: Tensor, k: int, bits: int, max_distance: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.ops.agmh_fast.hamming_topk(q, x, bits, k, max_distance, mask, get_num_threads())


@range_op.register("cpu", obstacle=_cpu_obstacle)
@range_op.register("cuda", obstacle=_cuda_obstacle)
def _range(q: Tensor, x: Tensor, radius: int, bits: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.agmh_fast.hamming_range(q, x, bits, radius, mask, get_num_threads())


@histogram_op.register("cpu", obstacle=_cpu_obstacle)
@histogram_op.register("cuda", obstacle=_cuda_obstacle)
def _histogram(q: Tensor, x: Tensor, bits: int, labels_q: Tensor | None, labels_x: Tensor | None) -> Tensor:
    return torch.ops.agmh_fast.hamming_histogram(q, x, bits, labels_q, labels_x, get_num_threads())


@stable_ranking_op.register("cpu", obstacle=_cpu_obstacle)
@stable_ranking_op.register("cuda", obstacle=_cuda_ranking_obstacle)
def _stable_ranking(
    q: Tensor, x: Tensor, bits: int, labels_q: Tensor, labels_x: Tensor, k: int, cutoffs: list[int]
) -> tuple[Tensor, Tensor]:
    sums, counts, _ = _ranked_histogram(q, x, bits, labels_q, labels_x, k, cutoffs)
    return sums, counts


@ranked_histogram_op.register("cpu", obstacle=_cpu_obstacle)
@ranked_histogram_op.register("cuda", obstacle=_cuda_ranking_obstacle)
def _ranked_histogram(
    q: Tensor, x: Tensor, bits: int, labels_q: Tensor, labels_x: Tensor, k: int, cutoffs: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.agmh_fast.hamming_stable_ranking(q, x, bits, labels_q, labels_x, k, cutoffs, get_num_threads())


ranked_histogram_op.register("torch")(hamming_torch.hamming_ranked_histogram)


@ranked_histogram_op.register("reference")
def _ranked_histogram_reference(
    q: Tensor, x: Tensor, bits: int, labels_q: Tensor, labels_x: Tensor, k: int, cutoffs: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    sums, within = reference.hamming_stable_ranking(q, x, bits, labels_q, labels_x, k, cutoffs)
    return sums, within, reference.hamming_histogram(q, x, bits, labels_q, labels_x)


for _op in OPS:
    _op.register("torch")(getattr(hamming_torch, _op.name))
    _op.register("reference")(getattr(reference, _op.name))


@compiled.on_load
def _describe() -> None:
    """Shapes and dtypes of the compiled ops, for torch.compile."""

    @torch.library.register_fake("agmh_fast::hamming_distance")
    def distance(q: Tensor, x: Tensor, bits: int, itemsize: int, threads: int) -> Tensor:
        dtype = {1: torch.uint8, 2: torch.uint16, 4: torch.int32}[itemsize]
        return q.new_empty(q.shape[0], x.shape[0], dtype=dtype)

    @torch.library.register_fake("agmh_fast::hamming_topk")
    def topk(
        q: Tensor, x: Tensor, bits: int, k: int, max_distance: int, mask: Tensor | None, threads: int
    ) -> tuple[Tensor, Tensor]:
        return q.new_empty(q.shape[0], k, dtype=torch.int32), q.new_empty(q.shape[0], k, dtype=torch.int64)

    @torch.library.register_fake("agmh_fast::hamming_range")
    def within(
        q: Tensor, x: Tensor, bits: int, radius: int, mask: Tensor | None, threads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = torch.library.get_ctx().new_dynamic_size()
        lims = q.new_empty(q.shape[0] + 1, dtype=torch.int64)
        return lims, q.new_empty(found, dtype=torch.int32), q.new_empty(found, dtype=torch.int64)

    @torch.library.register_fake("agmh_fast::hamming_histogram")
    def histogram(
        q: Tensor, x: Tensor, bits: int, labels_q: Tensor | None, labels_x: Tensor | None, threads: int
    ) -> Tensor:
        shape = (q.shape[0], bits + 1) if labels_q is None else (q.shape[0], bits + 1, 2)
        return q.new_empty(shape, dtype=torch.int64)

    @torch.library.register_fake("agmh_fast::hamming_stable_ranking")
    def stable_ranking(
        q: Tensor,
        x: Tensor,
        bits: int,
        labels_q: Tensor,
        labels_x: Tensor,
        depth: int,
        cutoffs: list[int],
        threads: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums = q.new_empty(q.shape[0], dtype=torch.float64)
        within = q.new_empty(q.shape[0], len(cutoffs), dtype=torch.int64)
        return sums, within, q.new_empty(q.shape[0], bits + 1, 2, dtype=torch.int64)
