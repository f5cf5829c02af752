"""Codes that come again and again: of each code the first K items are searched instead of all.

With K >= k that gives the k nearest of all items, bit for bit: an item is not among them if k others have its code and
stand before it. Short codes of a large index are the usual case: up to 2^bits · K items are scanned instead of N.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from agmh_fast.search.device_order import Done, capturing

# As on the CPU (csrc/hamming/groups.cpp, index.cpp): up to so many bits a table counts codes; items from which on, and
# queries after which it is tried; items that say whether it is worth to look at all.
_TABLE_BITS = 16
_LEAST_ITEMS, _QUERIES = 4096, 64
_TRIAL = 4096
# A scan of more than one item in so many is no better than one of all.
_WORTH = 4
# Items that are sorted at a time.
_CHUNK = 1 << 24


class First(NamedTuple):
    """Of each code the first items: rows (m, bytes) uint8 and their positions among all, (m,) int64, ascending."""

    rows: Tensor
    positions: Tensor
    done: Done

    def at(self, places: Tensor) -> Tensor:
        """Positions among all items; −1 stays."""
        return torch.where(places >= 0, self.positions[places.clamp(min=0)], -1)


class Repeats:
    """What is known of the repeated codes of the rows at hand, found out when so many queries were asked that it pays.

    Takes N / 4 · (row bytes + 8) bytes for each of 16, 256, 4096 … that a k was at most, where it pays.
    """

    def __init__(self, bits: int) -> None:
        self._bits, self._lock = bits, threading.Lock()
        self._rows: Tensor | None = None
        self._asked = 0
        self._patience: dict[int, int] = {}
        self._known: dict[int, First | None] = {}

    def first(self, rows: Tensor, queries: int, k: int) -> First | None:
        """What a search for k may scan instead of `rows`; None where it is to scan these.

        May wait for the device, but not while a CUDA graph is captured. The rows of another moment are another tensor.
        """
        most = 16
        while most < k:
            most *= 16
        if len(rows) < max(_LEAST_ITEMS, _WORTH * most):
            return None
        with self._lock:
            if self._rows is not rows:
                self._rows, self._asked, self._known = rows, 0, {}
            self._asked += queries
            due = most not in self._known and self._asked >= self._patience.get(most, _QUERIES)
            if due and not capturing(rows.device):
                self._known[most] = self._find(rows, most)
            found = self._known.get(most)
        if found is not None:
            found.done.come_after(found.rows, found.positions)
        return found

    def forget(self) -> None:
        """Let go of the rows: the index has others now."""
        with self._lock:
            self._rows, self._known = None, {}

    def _find(self, rows: Tensor, most: int) -> First | None:
        try:
            positions = first_of_each(rows, self._bits, most)
        except torch.OutOfMemoryError:
            positions = None
        # Where it did not pay, much has to be asked before it is tried again.
        self._patience[most] = _QUERIES if positions is not None else 8 * self._asked
        return None if positions is None else First(rows[positions], positions, Done(rows.device))


def first_of_each(rows: Tensor, bits: int, most: int) -> Tensor | None:
    """Ascending positions of the items that fewer than `most` of the same code stand before.

    None where they are more than a quarter. rows: (N, bytes) as a TensorEngine has them.
    """
    if bits <= _TABLE_BITS:
        return _first(
            lambda span: rows[span, 0].long() << 8 | rows[span, 1].long(), len(rows), 1 << 16, most, rows.device
        )
    words = rows.view(torch.int32 if rows.shape[1] == 4 else torch.int64)
    sample = words[torch.arange(_TRIAL, device=rows.device) * len(rows) // _TRIAL]
    if len(sample.unique(dim=0)) > _TRIAL // 2:
        return None
    distinct, code = words.unique(dim=0, return_inverse=True)
    return _first(lambda span: code[span], len(rows), len(distinct), most, rows.device)


def _first(
    codes: Callable[[slice], Tensor], count: int, distinct: int, most: int, device: torch.device
) -> Tensor | None:
    """codes(span): numbers below `distinct`, int64, of the items there."""
    seen = torch.zeros(distinct, dtype=torch.int64, device=device)
    found, total = [], 0
    for start in range(0, count, _CHUNK):
        code = codes(slice(start, start + _CHUNK))
        ordered, order = code.sort(stable=True)
        run = torch.searchsorted(ordered, ordered)  # where the run of each code begins
        before = torch.arange(len(code), device=device) - run + seen[ordered]
        found.append(order[before < most] + start)
        total += len(found[-1])
        if total > count // _WORTH:
            return None
        seen += code.bincount(minlength=distinct)
    return torch.cat(found).sort().values
