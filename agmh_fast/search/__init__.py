"""Exact Hamming search over a growing collection of codes."""

from agmh_fast.search.index import HammingIndex, RangeResult, SearchResult

__all__ = ["HammingIndex", "RangeResult", "SearchResult"]
