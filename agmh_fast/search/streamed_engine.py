"""The engine of an index whose codes stay in host memory, or in a mapped file, and pass by a device at every search.

Bytes on the device, for Q queries of n items:

    2 · piece                    buffers: piece = room / 2, 64 MiB at most, of rows as they lie in host memory
    piece · padded / row         where rows of up to 16 bits are padded to 4 bytes
    Q · n' , 64 MiB at most      a mask with a row a query; n' bytes else, n' being the rows of a piece
    80 · Q' · (k + k')           candidates while they are merged: k' = min(k, n'), Q' · (k + k') <= 2²² or Q' = 1
    scratch                      of hamming_topk or hamming_range, csrc/hamming/cuda/README.md
    12 · Q · k                   the result; 120 a result of a range search, whose lists are merged when all are there

It does not grow with n. In host memory: the pinned buffers, 2 · piece, and what the index itself takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agmh_fast.ops.codes import check_codes
from agmh_fast.ops.hamming import range_op, topk_op
from agmh_fast.search.arguments import check_mask_length
from agmh_fast.search.device_arguments import StreamArguments
from agmh_fast.search.devices import memory_errors
from agmh_fast.search.id_lists import find_ids
from agmh_fast.search.index_file import Rows
from agmh_fast.search.merging import Candidates, Nearest, merge_ranges
from agmh_fast.search.pieces import pieces

# Bytes of a piece, and of its mask: enough to keep the way to the device busy.
_PIECE = 1 << 26
# Candidates that are merged at a time.
_CANDIDATES = 1 << 22


class StreamedEngine:
    """Codes with ids in `host`, an `agmh_fast._engine.Index`, that are searched on a device.

    room: bytes of the device for codes. A search waits for the device; it works on the items of the moment it began,
    and a change made meanwhile copies them first. Arguments come checked from search/index.py.
    """

    def __init__(self, bits: int, device: torch.device, host: Any, room: int) -> None:
        self.bits = bits
        self.arguments = StreamArguments(device)
        self._device, self._host, self._room = device, host, room

    @property
    def mapped(self) -> bool:
        """Whether the codes are those of a file."""
        return self._host.mapped

    def __len__(self) -> int:
        return len(self._host)

    def snapshot(self) -> tuple[np.ndarray, np.ndarray, int]:
        """(padded rows, ids, next_id) of this moment, read-only, in host memory."""
        return self._host.snapshot()

    def add(self, codes: np.ndarray, ids: np.ndarray | None) -> None:
        self._host.add(codes, ids)

    def remove(self, ids: np.ndarray) -> None:
        self._host.remove(ids)

    def search(
        self, queries: Tensor, k: int, limit: int, mask: Tensor | None, allowed: np.ndarray | None, threads: int
    ) -> tuple[Tensor, Tensor]:
        with memory_errors(self._device):
            queries = check_codes("queries", queries, self.bits)
            shown = _Shown(self._host, mask, allowed)
            nearest = Nearest(len(queries), k, self._device)
            for start, rows, kept in self._pieces(shown, len(queries)):
                columns = min(k, len(rows))
                step = max(1, _CANDIDATES // (k + columns))
                for first in range(0, len(queries), step):
                    some = slice(first, first + step)
                    seen = kept if kept is None or kept.dim() == 1 else kept[some]
                    nearest.add(some, start, topk_op(queries[some], rows, columns, self.bits, limit, seen))
                nearest.advance(columns)
            return nearest.distances, shown.ids_at(nearest.positions)

    def range_search(
        self, queries: Tensor, radius: int, mask: Tensor | None, allowed: np.ndarray | None, threads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        with memory_errors(self._device):
            queries = check_codes("queries", queries, self.bits)
            shown = _Shown(self._host, mask, allowed)
            nothing = torch.zeros(0, dtype=torch.int64, device=self._device)
            counts = [torch.zeros(len(queries), dtype=torch.int64)]
            found = [Candidates(nothing.to(torch.int32), nothing)]
            for start, rows, kept in self._pieces(shown, len(queries)):
                lims, distances, positions = range_op(queries, rows, radius, self.bits, kept)
                counts.append(lims.diff().cpu())
                found.append(Candidates(distances, positions + start))
            each = torch.stack(counts)
            distances, positions = merge_ranges(found, each, self.bits)
            lims = torch.nn.functional.pad(each.sum(0).cumsum(0), (1, 0))
            return lims.to(self._device), distances, shown.ids_at(positions)

    def _pieces(self, shown: _Shown, queries: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """(position of the first, rows, mask of them) on the device."""
        width = shown.rows.shape[1]
        count = min(_PIECE, self._room // 2) // width
        if shown.mask is not None and shown.mask.dim() == 2:
            count = min(count, _PIECE // max(queries, 1))
        count = max(count, 1)
        held = None if shown.mask is None else _PieceOfMask(shown.mask, count, self._device)
        for span, rows in pieces(shown.shown, width, count, self._device):
            yield span.start, rows, None if held is None else held.at(span)


class _PieceOfMask:
    """A mask's part for the piece at hand: each takes the place of the one before, on the stream that searched it."""

    def __init__(self, mask: Tensor, count: int, device: torch.device) -> None:
        entries = mask.shape[:-1].numel() * min(count, mask.shape[-1])
        self._mask, self._part = mask, torch.empty(entries, dtype=torch.bool, device=device)

    def at(self, span: slice) -> Tensor:
        """Contiguous, on the device."""
        part = self._mask[..., span]
        return self._part[: part.numel()].view(part.shape).copy_(part)


class _Shown:
    """What a search may find: the rows of a moment, under a mask, or those with allowed ids, in the order of ids."""

    def __init__(self, host: Any, mask: Tensor | None, allowed: np.ndarray | None) -> None:
        self.rows, self._ids, _ = host.snapshot()
        self.mask = mask
        if mask is not None:
            check_mask_length(mask.shape[-1], len(self._ids))
        self.shown: Rows = self.rows
        if allowed is not None:
            places, held = find_ids(self._ids, allowed)
            selection = np.unique(places[held])
            self.shown, self._ids = _Selected(self.rows, selection), self._ids[selection]

    def ids_at(self, positions: Tensor) -> Tensor:
        """The ids of what is at these positions; −1 stays."""
        ids = self._ids
        if not len(ids):
            return positions
        if ids[-1] - ids[0] == len(ids) - 1:
            return torch.where(positions >= 0, positions + int(ids[0]), -1)
        places = positions.cpu().numpy()
        named = np.where(places >= 0, ids[np.maximum(places, 0)], -1)
        return torch.from_numpy(named).to(positions.device)


class _Selected:
    """Some rows, gathered a piece at a time."""

    def __init__(self, rows: np.ndarray, positions: np.ndarray) -> None:
        self._rows, self._positions = rows, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, span: slice) -> np.ndarray:
        return self._rows[self._positions[span]]
