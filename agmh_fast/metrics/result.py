"""What a retrieval evaluation returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

TIE_RULES = {
    "stable": "ranked by (distance, database position)",
    "expected": "mean over all orders of the items at equal distance",
    "optimistic": "best value over all orders of the items at equal distance",
    "pessimistic": "worst value over all orders of the items at equal distance",
}
NORMALISATIONS = {
    "retrieved": "the relevant items within k",
    "attainable": "min(k, the query's relevant items)",
}


class PrecisionRecallCurve(NamedTuple):
    """Precision and recall of all items within each Hamming radius 0..bits, means over queries: (bits + 1,) float64.

    Both are 0 for a query that retrieves nothing within the radius, recall also for one without a relevant item.
    """

    precision: Any
    recall: Any


@dataclass(frozen=True, eq=False)
class RetrievalMetrics:
    """Means over queries, with the definition they were computed by.

    map: mean of per_query_ap. precision_at, recall_at: {cutoff: value}. pr_curve: by Hamming radius 0..bits.
    precision_radius2: precision within Hamming radius 2, 0 for a query that retrieves nothing there.
    per_query_ap: (Q,) float64, NumPy or torch as the codes were given.
    `ties`, `k` (None: the whole database) and `normalise` are the arguments used; they bear on map, per_query_ap,
    precision_at and recall_at, never on pr_curve and precision_radius2, which take tie groups whole.
    """

    map: float
    precision_at: dict[int, float]
    recall_at: dict[int, float]
    pr_curve: PrecisionRecallCurve = field(repr=False)
    precision_radius2: float
    per_query_ap: Any = field(repr=False)
    ties: str
    k: int | None
    normalise: str
    bits: int
    num_queries: int
    num_database: int

    @property
    def definition(self) -> str:
        """The definition in one sentence, to print beside the numbers."""
        name = "mAP" if self.k is None else f"mAP@{self.k}"
        divisor = "the query's relevant items" if self.k is None else NORMALISATIONS[self.normalise]
        return (
            f"{name} of {self.num_queries} queries over {self.num_database} database items at {self.bits} bits; "
            f"ties: {self.ties} ({TIE_RULES[self.ties]}); AP divides by {divisor}; "
            "a query without a relevant item counts 0"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON; without per_query_ap."""
        return {
            "definition": self.definition,
            "map": self.map,
            "precision_at": {str(cutoff): value for cutoff, value in self.precision_at.items()},
            "recall_at": {str(cutoff): value for cutoff, value in self.recall_at.items()},
            "precision_radius2": self.precision_radius2,
            "pr_curve": {"precision": self.pr_curve.precision.tolist(), "recall": self.pr_curve.recall.tolist()},
            "ties": self.ties,
            "k": self.k,
            "normalise": self.normalise,
            "bits": self.bits,
            "num_queries": self.num_queries,
            "num_database": self.num_database,
        }
