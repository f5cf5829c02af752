"""Retrieval metrics under a stated tie rule, computed from Hamming histograms."""

from __future__ import annotations

from agmh_fast.metrics.evaluation import retrieval
from agmh_fast.metrics.result import PrecisionRecallCurve, RetrievalMetrics

__all__ = ["PrecisionRecallCurve", "RetrievalMetrics", "retrieval"]
