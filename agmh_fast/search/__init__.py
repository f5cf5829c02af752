"""Exact Hamming search over a growing collection of codes, on one machine or over many."""

from agmh_fast.search.index import HammingIndex, RangeResult, SearchResult
from agmh_fast.search.peers import LostRankError
from agmh_fast.search.sharded import ShardedHammingIndex

__all__ = ["HammingIndex", "LostRankError", "RangeResult", "SearchResult", "ShardedHammingIndex"]
