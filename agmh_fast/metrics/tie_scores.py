"""What metrics take from histograms where a rule decides between ties: one compiled pass, or plain torch operators."""

from __future__ import annotations

import torch
from torch import Tensor

from agmh_fast.metrics.average_precision import precision_sum
from agmh_fast.metrics.tie_groups import TieGroups, hits_at
from agmh_fast.ops import compiled
from agmh_fast.ops.registry import Op
from agmh_fast.ops.threads import get_num_threads

tie_scores_op = Op("tie_scores")

# "stable" knows the order of ties, so that its sums and hits come from ranks and not from here.
_RULES = ("expected", "optimistic", "pessimistic", "stable")
# Torch works on parts that stay in cache and are too small for it to hand to a second thread.
_PART_ELEMENTS = 2**15


def tie_scores(
    histogram: Tensor, ties: str, cutoffs: list[int], *, impl: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(precision sums, hits, relevant items, curves) of (Q, bits + 1, 2) counts, all float64.

    Precision sums (Q,): of the precisions at all relevant items. Hits (Q, cutoffs): relevant items among the first
    cutoffs[c] <= N; cutoffs ascend. Both are means, largest or smallest values over all orders of ties, as `ties` says;
    for "stable" sums are 0 and there must be no cutoffs. Relevant items (Q,). Curves (2, bits + 1): precision and
    recall within each distance, summed over the queries.
    """
    return tie_scores_op(histogram.contiguous(), ties, cutoffs, impl=impl)


def _cpu_obstacle(histogram: Tensor, *_: object) -> str | None:
    return compiled.cpu_obstacle("the counts", histogram)


@tie_scores_op.register("cpu", obstacle=_cpu_obstacle)
def _compiled(histogram: Tensor, ties: str, cutoffs: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.ops.agmh_fast.tie_scores(histogram, _RULES.index(ties), cutoffs, get_num_threads())


@tie_scores_op.register("torch")
def _torch(histogram: Tensor, ties: str, cutoffs: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = max(1, _PART_ELEMENTS // histogram.shape[1])
    sums, hits, relevant, curves = [], [], [], []
    for part in histogram.split(rows):
        groups = TieGroups.from_histogram(part)
        total, of_all = groups.relevant_end[:, -1], groups.relevant_end
        sums.append(torch.zeros_like(total) if ties == "stable" else precision_sum(groups, ties).sum(1))
        hits.append(hits_at(groups, cutoffs, ties))
        relevant.append(total)
        precision, recall = of_all / groups.end.clamp(min=1), of_all / total.clamp(min=1)[:, None]
        curves.append(torch.stack([precision.sum(0), recall.sum(0)]))
    return torch.cat(sums), torch.cat(hits), torch.cat(relevant), torch.stack(curves).sum(0)


@compiled.on_load
def _describe() -> None:
    """Shapes and dtypes of the compiled op, for torch.compile."""

    @torch.library.register_fake("agmh_fast::tie_scores")
    def scores(counts: Tensor, rule: int, cutoffs: list[int], threads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shapes = ((counts.shape[0],), (counts.shape[0], len(cutoffs)), (counts.shape[0],), (2, counts.shape[1]))
        sums, hits, relevant, curves = (counts.new_empty(shape, dtype=torch.float64) for shape in shapes)
        return sums, hits, relevant, curves
