"""One rank's shard of an index, and what it knows of the others': a change is made on every rank, or on none.

Whatever may be wrong with a change is looked for on every rank before anything is stored on any. What can still fail is
memory, on which the ranks that had enough go back.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from agmh_fast.errors import InputError, require
from agmh_fast.ops.codes import check_tensor_padding
from agmh_fast.search.arguments import Array, check_padding, id_list
from agmh_fast.search.devices import memory_errors
from agmh_fast.search.id_lists import check_ids, check_unused
from agmh_fast.search.index import HammingIndex
from agmh_fast.search.peers import Peers
from agmh_fast.search.tensor_engine import Moment


class Shards:
    """own: this rank's shard, `make()` once every rank has one, all of the same width; counts: items on each rank.

    next_id: the next id to give. `add`, `remove` and `tell` are calls that all ranks make, as `together` of `peers` is.
    """

    def __init__(self, peers: Peers, call: str, make: Callable[[], HammingIndex], next_id: int) -> None:
        own, told = peers.together(
            call, make, lambda own: {"bits": own.bits, "device": own.device.type}, lambda own: (len(own),)
        )
        self.peers, self.own, self.next_id = peers, own, next_id
        self.counts = [count for (count,) in told]
        self._places: np.ndarray | None = None

    def __len__(self) -> int:
        return sum(self.counts)

    def add(self, codes: Array, ids: Array | None) -> None:
        """As `ShardedHammingIndex.add`."""
        peers = self.peers
        (rows, given), told = peers.together(
            "add", lambda: self._checked(codes, ids), None, lambda new: (len(new[0]), new[1] is not None)
        )
        with_ids = [rank for rank, (count, has_ids) in enumerate(told) if count and has_ids]
        without = [rank for rank, (count, has_ids) in enumerate(told) if count and not has_ids]
        if with_ids and without:
            raise InputError(f"ids must come from every rank or from none: rank {without[0]} gave codes without ids")
        counts = [count for count, _ in told]
        if with_ids:
            everyones = self._unused(np.zeros(0, np.int64) if given is None else given, counts)
            numbers = everyones[peers.rank]
            next_id = max([self.next_id, *(int(part.max()) + 1 for part in everyones if len(part))])
        else:
            next_id = self.next_id + sum(counts)
            require(next_id <= 2**63 - 1, f"ids: none are left after {self.next_id - 1}; give ids")
            start = self.next_id + sum(counts[: peers.rank])
            with peers.in_step():
                numbers = np.arange(start, start + len(rows), dtype=np.int64)
        moment = self.own._moment()
        self._change("add", moment, lambda: self.own.add(rows, numbers), lambda: self.own.remove(numbers))
        self.next_id = next_id

    def remove(self, ids: Array) -> None:
        """As `ShardedHammingIndex.remove`."""
        peers, moment = self.peers, self.own._moment()

        def check() -> tuple[np.ndarray, np.ndarray, Array]:
            numbers = id_list("ids", self.on_host("ids", ids))
            check_ids(numbers)
            places, held = self.own._places(numbers)
            return numbers, held, self.own._codes_at(places[held]) if moment is None else None

        (numbers, held, codes), _ = peers.together("remove", check, lambda asked: {"ids": asked[0]})
        with peers.in_step():
            everyones = peers.gather_array(np.packbits(held), [(len(numbers) + 7) // 8] * peers.size)
            known = np.unpackbits(np.bitwise_or.reduce(everyones), count=len(numbers)).astype(bool)
            mine, missing = numbers[held], numbers[~known]
        if len(missing):
            raise InputError(f"ids: {missing[0]} is not in the index; nothing was removed")
        self._change("remove", moment, lambda: self.own.remove(mine), lambda: self.own.add(codes, mine))

    def on_host(self, name: str, values: Array) -> Array:
        """A tensor on this index's device in host memory; anything else lies there already."""
        if not isinstance(values, Tensor):
            return values
        place = f"{name} is on {values.device}, the index on {self.own.device}: move one of them"
        require(values.device == self.own.device, place)
        return values.cpu()

    def ids_to_tell(self, allowed: np.ndarray | None) -> np.ndarray | None:
        """This shard's ids where the others need them: for the first boolean mask after a change."""
        told = self._places is not None or allowed is None or allowed.dtype != np.bool_
        return None if told else np.asarray(self.on_host("ids", self.own.ids))

    def tell(self, own: np.ndarray | None) -> None:
        """Find out where this shard's ids stand among those of all ranks, once every rank has its own at hand."""
        if own is None:
            return
        with self.peers.in_step():
            places = np.zeros(len(own), np.int64)
            for ids in self.peers.gather_array(own, self.counts):
                places += np.searchsorted(ids, own)
            self._places = places

    def own_mask(self, allowed: np.ndarray | None) -> np.ndarray | None:
        """What may be found in this shard, of bool in the order of all ids, or int64 ids."""
        listed = allowed is None or allowed.dtype != np.bool_
        return allowed if listed or self._places is None else allowed[..., self._places]  # type: ignore[index]

    def _checked(self, codes: Array, ids: Array | None) -> tuple[Array, np.ndarray | None]:
        """This rank's new codes, as its shard takes them, and their ids in host memory."""
        rows = self.own._arguments.codes(codes, self.own.bits)
        with memory_errors(self.own.device):
            (check_tensor_padding if isinstance(rows, Tensor) else check_padding)("codes", rows, self.own.bits)
        if ids is None:
            return rows, None
        numbers = id_list("ids", self.on_host("ids", ids))
        fit = len(numbers) == len(rows)
        require(fit, f"ids must have one entry for each of {len(rows)} codes, got {len(numbers)}")
        check_ids(numbers)
        return rows, numbers

    def _unused(self, given: np.ndarray, counts: list[int]) -> list[np.ndarray]:
        """The ids given on each rank, once it is known that no rank holds one of them and that they differ."""
        with self.peers.in_step():
            everyones = self.peers.gather_array(given, counts)
        self.peers.together("add", lambda: check_unused(self.own._places, everyones, self.peers.rank))
        return everyones

    def _change(self, call: str, moment: Moment | None, change: Callable[[], None], undo: Callable[[], None]) -> None:
        """Do `change` of this shard on every rank, or on none: back to `moment`, where there is none by `undo`."""
        before = len(self.own)
        try:
            _, told = self.peers.together(call, change, None, lambda _: (len(self.own),))
        except BaseException:
            with self.peers.in_step():
                if moment is not None:
                    self.own._restore(moment)
                elif len(self.own) != before:
                    undo()
            raise
        self.counts, self._places = [count for (count,) in told], None
