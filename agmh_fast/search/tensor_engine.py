"""The engine of an index over torch tensors: what `agmh_fast._engine.Index` is over NumPy arrays, on any device.

A search works on the items of the moment it began, of which nothing is ever overwritten: a change makes new ones, or
writes behind them, and puts them in place when all is done. So nothing waits, and after an exception the index is as it
was.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from agmh_fast.errors import InputError, require
from agmh_fast.ops.arrays import array_to_tensor
from agmh_fast.ops.codes import check_codes, check_tensor_padding
from agmh_fast.ops.hamming import range_op, topk_op
from agmh_fast.search.arguments import Array, check_mask_length
from agmh_fast.search.ascending import AscendingIds
from agmh_fast.search.device_arguments import DeviceArguments
from agmh_fast.search.device_order import Done
from agmh_fast.search.devices import memory_errors
from agmh_fast.search.id_lists import MAX_ID
from agmh_fast.search.repeats import Repeats

# Rows that are copied at a time from one memory to another.
_PIECE = 1 << 22


class Items(NamedTuple):
    """What an index holds at one moment: padded rows (N, bytes) uint8 in the order of their ids."""

    rows: Tensor
    ids: AscendingIds
    next_id: int
    done: Done


class Moment(NamedTuple):
    """What `TensorEngine.restore` goes back to: the items, and the buffers that they lie in with room behind them."""

    items: Items
    rows: Tensor
    stored_ids: Tensor


def row_bytes(bits: int) -> int:
    """Bytes of a row as the CUDA kernels read it: one word of 32 bits, or whole words of 64."""
    return 4 if bits <= 32 else -(-bits // 64) * 8


class TensorEngine:
    """Codes with ids on one device; arguments come checked from search/index.py, what depends on contents is checked.

    Searches may run on any streams: each comes after the last change, without the host's waiting, but for one now and
    then that looks for repeated codes (repeats.py).
    """

    mapped = False

    def __init__(self, bits: int, device: torch.device) -> None:
        self.bits = bits
        self.arguments = DeviceArguments(device)
        self._device = device
        self._changes = threading.Lock()
        self._repeats = Repeats(bits)
        with memory_errors(device):
            self._rows = torch.empty(0, row_bytes(bits), dtype=torch.uint8, device=device)
            self._stored_ids = torch.empty(0, dtype=torch.int64, device=device)
            self._items = Items(self._rows, AscendingIds(device), 0, Done(device))

    def __len__(self) -> int:
        return self._items.ids.count

    def snapshot(self) -> tuple[Tensor, Tensor, int]:
        """(padded rows, ids, next_id) of this moment; rows and stored ids are views of what the index reads."""
        items = self._present()
        with memory_errors(self._device):
            return items.rows, items.ids.tensor(), items.next_id

    def moment(self) -> Moment:
        """The present one. It is what is there already: it takes memory only once a change has replaced tensors."""
        with self._changes:
            return Moment(self._items, self._rows, self._stored_ids)

    def restore(self, moment: Moment) -> None:
        """Undo what was changed since that moment, before any search has seen it. Nothing is copied or allocated."""
        with self._changes:
            # The next change comes after those undone: it may write where one of them, on another stream, still does.
            self._items = moment.items._replace(done=self._items.done)
            self._rows, self._stored_ids = moment.rows, moment.stored_ids
            self._repeats.forget()

    @classmethod
    def of(cls, bits: int, device: torch.device, rows: Array, ids: Array, next_id: int) -> TensorEngine:
        """A copy of another engine's `snapshot`, wherever that lies."""
        engine = cls(bits, device)
        rows, ids = (part if isinstance(part, Tensor) else array_to_tensor("codes", part) for part in (rows, ids))
        with memory_errors(device):
            buffer = engine._rows.new_empty(len(rows), row_bytes(bits))
            for start in range(0, len(rows), _PIECE):
                _write(buffer[start : start + _PIECE], rows[start : start + _PIECE])
            engine._replace(buffer, AscendingIds.of(ids.to(device, copy=True)), next_id)
        return engine

    def add(self, codes: Tensor, ids: Tensor | None) -> None:
        if not len(codes):
            return
        with self._changes, memory_errors(self._device):
            check_tensor_padding("codes", codes, self.bits)
            items = self._present()
            next_id = items.next_id
            if ids is not None:
                ids, order = _ascending(ids)
                _, held = items.ids.find(ids)
                if bool(held.any()):
                    taken = int(ids[held][0])
                    raise InputError(f"ids: {taken} is in the index already; remove it first or give another")
                codes = codes[order]
                first, last = ids[[0, -1]].tolist()
            else:
                if len(codes) > MAX_ID - next_id + 1:
                    raise InputError(f"ids: none are left above {next_id - 1}; give ids yourself")
                first, last = next_id, next_id + len(codes) - 1
            next_id = max(next_id, last + 1)
            if ids is not None and items.ids.count and first <= items.ids.last:
                self._merge(items, codes, ids, next_id)
            else:
                self._append(items, codes, ids, (first, last), next_id)

    def remove(self, ids: Tensor) -> None:
        with self._changes, memory_errors(self._device):
            ids, _ = _ascending(ids)
            if not len(ids):
                return
            items = self._present()
            places, held = items.ids.find(ids)
            if not bool(held.all()):
                raise InputError(f"ids: {int(ids[~held][0])} is not in the index; nothing was removed")
            kept = torch.ones(items.ids.count, dtype=torch.bool, device=self._device)
            kept[places] = False
            self._replace(items.rows[kept], AscendingIds.of(items.ids.tensor()[kept]), items.next_id)

    def search(
        self, queries: Tensor, k: int, limit: int, mask: Tensor | None, allowed: Tensor | None, threads: int
    ) -> tuple[Tensor, Tensor]:
        with memory_errors(self._device):
            items = self._present()
            queries, mask = self._check_search(items, queries, mask, allowed)
            first = None if mask is not None else self._repeats.first(items.rows, len(queries), k)
            rows = items.rows if first is None else first.rows
            distances, positions = topk_op(queries, rows, k, self.bits, limit, mask)
            return distances, items.ids.at(positions if first is None else first.at(positions))

    def range_search(
        self, queries: Tensor, radius: int, mask: Tensor | None, allowed: Tensor | None, threads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        with memory_errors(self._device):
            items = self._present()
            queries, mask = self._check_search(items, queries, mask, allowed)
            lims, distances, positions = range_op(queries, items.rows, radius, self.bits, mask)
            return lims, distances, items.ids.at(positions)

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each id stands among those of the engine, and whether it is there (else the place means nothing)."""
        with memory_errors(self._device):
            places, held = self._present().ids.find(torch.from_numpy(ids).to(self._device))
            return places.cpu().numpy(), held.cpu().numpy()

    def _present(self) -> Items:
        """The items, to be used on the current stream from now on."""
        items = self._items
        stored = () if items.ids.stored is None else (items.ids.stored,)
        items.done.come_after(items.rows, *stored)
        return items

    def _check_search(
        self, items: Items, queries: Tensor, mask: Tensor | None, allowed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        queries = check_codes("queries", queries, self.bits)
        if mask is not None:
            check_mask_length(mask.shape[-1], items.ids.count)
        return queries, mask if allowed is None else items.ids.mask(allowed)

    def _append(self, items: Items, codes: Tensor, ids: Tensor | None, ends: tuple[int, int], next_id: int) -> None:
        """Add codes whose ids are above all others: behind the rows that searches may be reading."""
        (first, last), count = ends, items.ids.count
        total = count + len(codes)
        lowest = items.ids.first if count else first
        stored = None
        if last - lowest != total - 1:
            self._stored_ids = _extended(self._stored_ids, items.ids.tensor(), total)
            new = ids if ids is not None else torch.arange(len(codes), device=self._device) + first
            self._stored_ids[count:total] = new
            stored = self._stored_ids[:total]
        self._rows = _extended(self._rows, items.rows, total)
        _write(self._rows[count:total], codes)
        known = AscendingIds(self._device, total, lowest, last, stored)
        self._items = Items(self._rows[:total], known, next_id, Done(self._device))
        self._repeats.forget()

    def _merge(self, items: Items, codes: Tensor, ids: Tensor, next_id: int) -> None:
        """Add codes whose ids come between others."""
        count, total = items.ids.count, items.ids.count + len(codes)
        old = items.ids.tensor()
        of_new = items.ids.places_of(ids) + torch.arange(len(codes), device=self._device)
        of_old = torch.searchsorted(ids, old) + torch.arange(count, device=self._device)
        rows, merged = self._rows.new_empty(total, self._rows.shape[1]), old.new_empty(total)
        rows[of_old], merged[of_old] = items.rows, old
        merged[of_new] = ids
        packed = rows.new_empty(len(codes), rows.shape[1])
        _write(packed, codes)
        rows[of_new] = packed
        self._replace(rows, AscendingIds.of(merged), next_id)

    def _replace(self, rows: Tensor, ids: AscendingIds, next_id: int) -> None:
        """Put new tensors in the place of the old, which go when the last search in them ends."""
        stored = self._stored_ids.new_empty(0) if ids.stored is None else ids.stored
        done = Done(self._device)
        self._rows, self._stored_ids, self._items = rows, stored, Items(rows, ids, next_id, done)
        self._repeats.forget()


class HostPieces:
    """A tensor on a device as NumPy arrays, a slice at a time."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __len__(self) -> int:
        return len(self._tensor)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._tensor[rows].contiguous().cpu().numpy()


def _ascending(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The ids sorted, and the order that sorts them; InputError for one that is negative, too large or repeated."""
    ids, order = ids.sort()
    wrong = (ids < 0) | (ids > MAX_ID)
    twice = torch.zeros_like(wrong)
    twice[1:] = ids[1:] == ids[:-1]
    bad = (wrong | twice).nonzero()
    if len(bad):
        at = int(bad[0])
        outside = f"ids must be from 0 to 2**63 - 2, got {int(ids[at])}"
        require(not bool(wrong[at]), outside)
        raise InputError(f"ids: {int(ids[at])} is given twice; ids must be unique")
    return ids, order


def _extended(buffer: Tensor, present: Tensor, needed: int) -> Tensor:
    """A buffer with `needed` entries that begins with those of `present`: the same one, or a larger copy of it."""
    count = len(present)
    if needed <= len(buffer) and (not count or present.data_ptr() == buffer.data_ptr()):
        return buffer
    try:
        # So that many small additions copy each code a few times and no more.
        larger = buffer.new_empty(max(needed, count + count // 2), *buffer.shape[1:])
    except RuntimeError:
        larger = buffer.new_empty(needed, *buffer.shape[1:])
    larger[:count] = present
    return larger


def _write(rows: Tensor, codes: Tensor) -> None:
    """Codes, packed or padded to any width, into padded rows."""
    width = min(codes.shape[1], rows.shape[1])
    rows[:, :width] = codes[:, :width]
    rows[:, width:] = 0
