"""An index whose codes are spread over the ranks of a torch.distributed group; docs/sharded.md says what it costs.

Every rank searches its own shard. Queries are then divided: a rank gets all shards' candidates for its share of them,
merges these by (distance, id), and sends the result to all. The answer is that of one index of all codes, on any number
of ranks.
"""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agmh_fast.errors import InputError, require, require_int
from agmh_fast.files import as_path, output_folder
from agmh_fast.ops.arrays import array_to_tensor
from agmh_fast.ops.hamming import MAX_K
from agmh_fast.reference.hamming import NO_DISTANCE
from agmh_fast.search.arguments import Array, allowed_items, check_mask_length, check_padding, id_list, packed_rows
from agmh_fast.search.id_lists import check_unused
from agmh_fast.search.index import HammingIndex, RangeResult, SearchResult
from agmh_fast.search.index_file import Contents
from agmh_fast.search.merging import (
    CANDIDATE_BYTES,
    Candidates,
    as_queries,
    full_like,
    merge_nearest,
    merge_ranges,
)
from agmh_fast.search.peers import TIMEOUT, Peers
from agmh_fast.search.shard_files import Manifest, Shard, read_manifest, read_share, shard_name, write_manifest
from agmh_fast.shares import share

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ShardedHammingIndex:
    """A `HammingIndex` over a torch.distributed group: the same methods and answers, codes on every rank.

    Every method except `len` and the properties is a collective call: all ranks of `group` (None: all there are) make
    the same calls in the same order, from one thread each. `search` and `range_search` take the same arguments on all
    ranks and give all of them the whole answer; `add` takes each rank's own codes. That is checked: bad or differing
    arguments on one rank are an error on every rank, which names it, and leave the index as it was.

    A rank that died is a `LostRankError` on the others at once, one that hangs after `timeout` seconds, which should be
    more than the longest search and the longest wait for a slow rank; index and group cannot be used afterwards.

    The group needs gloo for what is on the CPU, as `init_process_group("gloo")` or ("cpu:gloo,cuda:nccl") give it. With
    the latter, candidates on GPUs go from one to another, a GPU for each rank; without it through host memory. Queries,
    ids and masks that are tensors lie on the index's device, and its calls wait for that. An index cannot be pickled.
    """

    def __init__(
        self,
        bits: int,
        device: str | torch.device = "cpu",
        group: ProcessGroup | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._start(Peers(group, timeout), "create", lambda: HammingIndex(bits, device), 0)

    def _start(self, peers: Peers, call: str, make: Callable[[], HammingIndex], next_id: int) -> None:
        """Take `make()` as this rank's shard once every rank has one, all of the same width."""
        shard, told = peers.together(
            call, make, lambda shard: {"bits": shard.bits, "device": shard.device.type}, lambda shard: (len(shard),)
        )
        self._peers, self._shard, self._next_id = peers, shard, next_id
        self._counts = [count for (count,) in told]
        self._places: np.ndarray | None = None

    def __len__(self) -> int:
        return sum(self._counts)

    def __repr__(self) -> str:
        where = f"rank={self._peers.rank}, ranks={self._peers.size}"
        return f"ShardedHammingIndex(bits={self.bits}, device={str(self.device)!r}, items={len(self)}, {where})"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self._shard.bits

    @property
    def device(self) -> torch.device:
        """Where this rank's codes lie and its searches run."""
        return self._shard.device

    @property
    def shard(self) -> HammingIndex:
        """This rank's own part, to look at: a change of it would go unnoticed by the others."""
        return self._shard

    def add(self, codes: Array, ids: Array | None = None) -> None:
        """Add this rank's own codes (n, ceil(bits / 8)), n of any size on each rank, with `ids` as `HammingIndex.add`.

        Ids are unique over all ranks. Every rank that adds codes gives them, or none does: then they count on from the
        largest ever used on any rank, through rank 0's codes, then rank 1's, and so on.
        """
        peers = self._peers

        def check() -> tuple[Array, np.ndarray | None]:
            rows = self._shard._arguments.codes(codes, self.bits)
            numbers = None if ids is None else id_list("ids", self._on_host("ids", ids))
            fit = numbers is None or len(numbers) == len(rows)
            require(
                fit,
                f"ids must have one entry for each of {len(rows)} codes, got {0 if numbers is None else len(numbers)}",
            )
            return rows, numbers

        (rows, given), told = peers.together("add", check, None, lambda new: (len(new[0]), new[1] is not None))
        with_ids = [rank for rank, (count, has_ids) in enumerate(told) if count and has_ids]
        without = [rank for rank, (count, has_ids) in enumerate(told) if count and not has_ids]
        if with_ids and without:
            raise InputError(f"ids must come from every rank or from none: rank {without[0]} gave codes without ids")
        counts = [count for count, _ in told]
        next_id = self._next_id + sum(counts)
        require(bool(with_ids) or next_id <= 2**63 - 1, f"ids: none are left after {self._next_id - 1}; give ids")
        with peers.in_step():
            everyones: list[np.ndarray] = []
            if with_ids:
                everyones = self._gather(np.zeros(0, np.int64) if given is None else given, counts)
                numbers = everyones[peers.rank]
                next_id = max([self._next_id, *(int(part.max()) + 1 for part in everyones if len(part))])
            else:
                start = self._next_id + sum(counts[: peers.rank])
                numbers = np.arange(start, start + len(rows), dtype=np.int64)
        before = len(self._shard)

        def store() -> None:
            check_unused(self._shard._places, everyones, peers.rank)
            self._shard.add(rows, numbers)

        try:
            _, told = peers.together("add", store, None, lambda _: (len(self._shard),))
        except BaseException:
            if len(self._shard) > before:
                with peers.in_step():
                    self._shard.remove(numbers)
            raise
        self._next_id = next_id
        self._changed(told)

    def remove(self, ids: Array) -> None:
        """Remove the items with these ids, the same list on every rank, wherever they are: each once, in the index."""
        peers = self._peers

        def check() -> tuple[np.ndarray, np.ndarray, Array]:
            numbers = id_list("ids", self._on_host("ids", ids))
            values, times = np.unique(numbers, return_counts=True)
            if len(numbers) > len(values):
                raise InputError(f"ids: {values[times > 1][0]} is given twice; ids must be unique")
            places, held = self._shard._places(numbers)
            return numbers, held, self._shard._codes_at(places[held])

        (numbers, held, codes), _ = peers.together("remove", check, lambda asked: {"ids": asked[0]})
        with peers.in_step():
            everyones = self._gather(np.packbits(held), [(len(numbers) + 7) // 8] * peers.size)
            known = np.unpackbits(np.bitwise_or.reduce(everyones), count=len(numbers)).astype(bool)
            mine, missing = numbers[held], numbers[~known]
        if len(missing):
            raise InputError(f"ids: {missing[0]} is not in the index; nothing was removed")
        before = len(self._shard)
        try:
            _, told = peers.together("remove", lambda: self._shard.remove(mine), None, lambda _: (len(self._shard),))
        except BaseException:
            if len(self._shard) < before:
                with peers.in_step():
                    self._shard.add(codes, mine)
            raise
        self._changed(told)

    def search(
        self, queries: Array, k: int, mask: Array | None = None, max_distance: int | None = None
    ) -> SearchResult:
        """The k nearest items of each query among all ranks' codes, as `HammingIndex.search`; same arguments on all.

        A boolean mask has its entries in the order of all ids, whichever rank they are on. Its first use after a change
        sends every rank's ids to the others once, 8 bytes each.
        """

        def check() -> tuple[np.ndarray, int, int, np.ndarray | None, np.ndarray | None]:
            rows = self._check_queries(queries)
            count = require_int("k", k, 1, max(MAX_K, len(self)))
            limit = self.bits if max_distance is None else require_int("max_distance", max_distance, 0)
            allowed = self._check_mask(mask, len(rows))
            return rows, count, min(limit, self.bits), allowed, self._ids_to_tell(allowed)

        (rows, wanted, limit, allowed, own_ids), _ = self._peers.together(
            "search", check, lambda asked: dict(zip(("queries", "k", "max_distance", "mask"), asked[:4], strict=True))
        )
        self._tell(own_ids)
        columns = [min(wanted, count) for count in self._counts]
        found = min(wanted, sum(columns))

        def search_shard() -> tuple[list[Candidates], SearchResult]:
            """Candidates for each rank's queries, and room for the result, so that all hear of it where it is short."""
            own = columns[self._peers.rank]
            asked, own_mask = self._for_shard(queries, rows), self._own_mask(allowed)
            distances, ids = self._shard.search(asked, max(own, 1), own_mask, limit)
            parts = [Candidates(distances[part, :own].flatten(), ids[part, :own].flatten()) for part in shares]
            shape = len(rows), wanted
            return parts, SearchResult(full_like(distances, shape, NO_DISTANCE), full_like(ids, shape, -1))

        shares = self._shares(len(rows))
        (parts, result), _ = self._peers.together("search", search_shard)
        lengths = [part.stop - part.start for part in shares]
        merged = self._merge(
            parts,
            [lengths[self._peers.rank] * count for count in columns],
            lambda candidates: merge_nearest(candidates, columns, found),
            [length * found for length in lengths],
        )
        for part, (distances, ids) in zip(shares, merged, strict=True):
            shape = part.stop - part.start, found
            result.distances[part, :found], result.ids[part, :found] = distances.view(shape), ids.view(shape)
        return SearchResult(*as_queries(queries, result))

    def range_search(self, queries: Array, radius: int, mask: Array | None = None) -> RangeResult:
        """All items within `radius` (inclusive) of each query, by (distance, id); other arguments as `search`."""
        peers = self._peers

        def check() -> tuple[np.ndarray, int, np.ndarray | None, np.ndarray | None]:
            rows = self._check_queries(queries)
            within = min(require_int("radius", radius, 0), self.bits)
            allowed = self._check_mask(mask, len(rows))
            return rows, within, allowed, self._ids_to_tell(allowed)

        (rows, within, allowed, own_ids), _ = peers.together(
            "range_search", check, lambda asked: dict(zip(("queries", "radius", "mask"), asked[:3], strict=True))
        )
        self._tell(own_ids)
        (lims, distances, ids), _ = peers.together(
            "range_search",
            lambda: self._shard.range_search(self._for_shard(queries, rows), within, self._own_mask(allowed)),
        )
        with peers.in_step():
            counts = torch.from_numpy(np.stack(self._gather(lims.diff().cpu().numpy(), [len(rows)] * peers.size)))
            shares = self._shares(len(rows))
            ends = [(int(lims[part.start]), int(lims[part.stop])) for part in shares]
            mine = counts[:, shares[peers.rank]]
            merged = self._merge(
                [Candidates(distances[start:stop], ids[start:stop]) for start, stop in ends],
                mine.sum(dim=1).tolist(),
                lambda candidates: merge_ranges(candidates, mine, self.bits),
                [int(counts[:, part].sum()) for part in shares],
            )
        all_lims = torch.nn.functional.pad(counts.sum(dim=0).cumsum(dim=0), (1, 0)).to(ids.device)
        return RangeResult(*as_queries(queries, (all_lims, *(torch.cat(parts) for parts in zip(*merged, strict=True)))))

    def to(self, device: str | torch.device, device_memory: int | None = None) -> ShardedHammingIndex:
        """The index on `device`, the same kind on every rank: itself if it is there already.

        device_memory: as in `HammingIndex.to`, for a rank's own shard.
        """
        shard, _ = self._peers.together(
            "to", lambda: self._shard.to(device, device_memory), lambda it: {"device": it.device.type}
        )
        if shard is self._shard:
            return self
        moved = copy.copy(self)
        moved._shard = shard
        return moved

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a folder that all ranks see, the same path on each: a file a shard and `manifest.json`.

        The manifest is written last: a reader, or a crash of any rank, finds the old index or the new one, whole. Files
        of earlier saves are removed then.
        """
        peers = self._peers
        (folder, _), told = peers.together(
            "save",
            lambda: (output_folder(as_path(path)), secrets.randbits(62)),
            lambda made: {"path": str(made[0])},
            lambda made: (made[1],),
        )
        names = [shard_name(rank, peers.size, told[0][0]) for rank in range(peers.size)]
        manifest = Manifest(self.bits, self._next_id, tuple(map(Shard, names, self._counts)))
        try:
            peers.together("save", lambda: self._shard.save(folder / names[peers.rank]))
        except BaseException:
            (folder / names[peers.rank]).unlink(missing_ok=True)
            raise
        peers.together("save", lambda: write_manifest(folder, manifest) if peers.rank == 0 else None)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        mmap: bool = True,
        device: str | torch.device = "cpu",
        group: ProcessGroup | None = None,
        timeout: float = TIMEOUT,
        device_memory: int | None = None,
    ) -> ShardedHammingIndex:
        """Open a saved index on any number of ranks.

        On as many as saved it every rank opens its own file, mapped if `mmap`, as `HammingIndex.load`. On any other
        number every rank reads an even share of all items into memory. device_memory: as in `HammingIndex.load`, for a
        rank's own shard. Raises InputError for damaged or foreign files.
        """
        peers = Peers(group, timeout)
        manifest, _ = peers.together("load", lambda: read_manifest(path), lambda read: {"path": read})
        index = cls.__new__(cls)
        asked = (path, manifest, peers.rank, peers.size, mmap, device, device_memory)
        index._start(peers, "load", lambda: read_share(*asked), manifest.next_id)
        return index

    @classmethod
    def from_index(
        cls, index: HammingIndex, group: ProcessGroup | None = None, timeout: float = TIMEOUT
    ) -> ShardedHammingIndex:
        """Shards of a plain index, the same on every rank (a mapped file say), which keeps a copy of its even share.

        Rank 0 gets the smallest ids, and so on. That all ranks give the same index is checked by reading it once.
        """
        peers = Peers(group, timeout)

        def check() -> Contents:
            require(isinstance(index, HammingIndex), f"index must be a HammingIndex, got {type(index).__name__}")
            return index._contents()

        names = ("bits of index", "codes of index", "ids of index", "next id of index")
        whole, _ = peers.together("from_index", check, lambda contents: dict(zip(names, contents, strict=True)))

        def take_share() -> HammingIndex:
            own = share(len(whole.ids), peers.rank, peers.size)
            shard = HammingIndex(whole.bits)
            shard.add(whole.rows[own, : (whole.bits + 7) // 8], whole.ids[own])
            return shard.to(index.device, index._device_memory)

        sharded = cls.__new__(cls)
        sharded._start(peers, "from_index", take_share, whole.next_id)
        return sharded

    def to_index(self) -> HammingIndex:
        """One plain index of all codes, on every rank: it must fit in the memory of each."""
        contents, _ = self._peers.together("to_index", self._shard._contents)
        width = contents.rows.shape[1]
        with self._peers.in_step():
            ids = np.concatenate(self._gather(contents.ids, self._counts))
            rows = np.concatenate(self._gather(contents.rows.reshape(-1), [width * count for count in self._counts]))
        order = ids.argsort()
        whole = Contents(self.bits, rows.reshape(-1, width)[order], ids[order], self._next_id)
        return HammingIndex._of(whole, None, self.device)

    def _merge(
        self,
        parts: Sequence[Candidates],
        arriving: Sequence[int],
        merge: Callable[[list[Candidates]], Candidates],
        merged: Sequence[int],
    ) -> list[Candidates]:
        """The answer to every rank's share of the queries.

        parts[r]: this shard's candidates for rank r's queries; arriving[r]: how many come from rank r for ours, which
        `merge` makes one; merged[r]: how many rank r is left with.
        """
        with self._peers.in_step():
            packed = [part.pack() for part in parts]
            received = self._peers.exchange(packed, [CANDIDATE_BYTES * count for count in arriving])
            own = merge([Candidates.unpack(data) for data in received])
            everyones = self._peers.gather(own.pack(), [CANDIDATE_BYTES * count for count in merged])
        return [Candidates.unpack(data) for data in everyones]

    def _gather(self, array: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
        """Everyone's 1-D array of this type, with so many entries each, in the order of ranks."""
        data = torch.from_numpy(array.view(np.uint8).copy())
        parts = self._peers.gather(data, [count * array.itemsize for count in counts])
        return [part.numpy().view(array.dtype) for part in parts]

    def _shares(self, queries: int) -> list[slice]:
        """Which queries each rank merges."""
        return [share(queries, rank, self._peers.size) for rank in range(self._peers.size)]

    def _on_host(self, name: str, values: Array) -> Array:
        """A tensor on this index's device in host memory; anything else lies there already."""
        if not isinstance(values, Tensor):
            return values
        place = f"{name} is on {values.device}, the index on {self.device}: move one of them"
        require(values.device == self.device, place)
        return values.cpu()

    def _for_shard(self, queries: Array, rows: np.ndarray) -> Tensor:
        """The queries where the shard takes them without a copy: tensors, so that results stay on its device."""
        return queries if isinstance(queries, Tensor) else array_to_tensor("queries", rows).to(self.device)

    def _check_queries(self, queries: Array) -> np.ndarray:
        rows = packed_rows("queries", self._on_host("queries", queries), self.bits)
        check_padding("queries", rows, self.bits)
        return rows

    def _check_mask(self, mask: Array | None, queries: int) -> np.ndarray | None:
        """What may be found: bool of all items, in the order of their ids, or int64 ids."""
        allowed, allowed_ids = allowed_items(self._on_host("mask", mask), queries)
        if allowed is not None:
            check_mask_length(allowed.shape[-1], len(self))
        return allowed_ids if allowed is None else allowed

    def _ids_to_tell(self, allowed: np.ndarray | None) -> np.ndarray | None:
        """This shard's ids where the others need them: for the first boolean mask after a change."""
        told = self._places is not None or allowed is None or allowed.dtype != np.bool_
        return None if told else np.asarray(self._on_host("ids", self._shard.ids))

    def _tell(self, own: np.ndarray | None) -> None:
        """Find out where this shard's ids stand among those of all ranks, once every rank has its own at hand."""
        if own is None:
            return
        with self._peers.in_step():
            places = np.zeros(len(own), np.int64)
            for ids in self._gather(own, self._counts):
                places += np.searchsorted(ids, own)
            self._places = places

    def _own_mask(self, allowed: np.ndarray | None) -> np.ndarray | None:
        """What may be found in this shard."""
        listed = allowed is None or allowed.dtype != np.bool_
        return allowed if listed or self._places is None else allowed[..., self._places]  # type: ignore[index]

    def _changed(self, counts: Sequence[tuple[int, ...]]) -> None:
        self._counts = [count for (count,) in counts]
        self._places = None
