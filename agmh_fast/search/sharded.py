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

from agmh_fast.errors import require, require_int
from agmh_fast.files import as_path, output_folder
from agmh_fast.ops.arrays import array_to_tensor
from agmh_fast.ops.hamming import MAX_K
from agmh_fast.reference.hamming import NO_DISTANCE
from agmh_fast.search.arguments import Array, allowed_items, check_mask_length, check_padding, packed_rows
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
from agmh_fast.search.shards import Shards
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
        self._shards = Shards(Peers(group, timeout), "create", lambda: HammingIndex(bits, device), 0)

    def __len__(self) -> int:
        return len(self._shards)

    def __repr__(self) -> str:
        where = f"rank={self._shards.peers.rank}, ranks={self._shards.peers.size}"
        return f"ShardedHammingIndex(bits={self.bits}, device={str(self.device)!r}, items={len(self)}, {where})"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self._shards.own.bits

    @property
    def device(self) -> torch.device:
        """Where this rank's codes lie and its searches run."""
        return self._shards.own.device

    @property
    def shard(self) -> HammingIndex:
        """This rank's own part, to look at: a change of it would go unnoticed by the others."""
        return self._shards.own

    def add(self, codes: Array, ids: Array | None = None) -> None:
        """Add this rank's own codes (n, ceil(bits / 8)), n of any size on each rank, with `ids` as `HammingIndex.add`.

        Ids are unique over all ranks. Every rank that adds codes gives them, or none does: then they count on from the
        largest ever used on any rank, through rank 0's codes, then rank 1's, and so on.
        """
        self._shards.add(codes, ids)

    def remove(self, ids: Array) -> None:
        """Remove the items with these ids, the same list on every rank, wherever they are: each once, in the index."""
        self._shards.remove(ids)

    def search(
        self, queries: Array, k: int, mask: Array | None = None, max_distance: int | None = None
    ) -> SearchResult:
        """The k nearest items of each query among all ranks' codes, as `HammingIndex.search`; same arguments on all.

        A boolean mask has its entries in the order of all ids, whichever rank they are on. Its first use after a change
        sends every rank's ids to the others once, 8 bytes each.
        """
        held, peers = self._shards, self._shards.peers

        def check() -> tuple[np.ndarray, int, int, np.ndarray | None, np.ndarray | None]:
            rows = self._check_queries(queries)
            count = require_int("k", k, 1, max(MAX_K, len(self)))
            limit = self.bits if max_distance is None else require_int("max_distance", max_distance, 0)
            allowed = self._check_mask(mask, len(rows))
            return rows, count, min(limit, self.bits), allowed, held.ids_to_tell(allowed)

        (rows, wanted, limit, allowed, own_ids), _ = peers.together(
            "search", check, lambda asked: dict(zip(("queries", "k", "max_distance", "mask"), asked[:4], strict=True))
        )
        held.tell(own_ids)
        columns = [min(wanted, count) for count in held.counts]
        found = min(wanted, sum(columns))

        def search_shard() -> tuple[list[Candidates], SearchResult]:
            """Candidates for each rank's queries, and room for the result, so that all hear of it where it is short."""
            own = columns[peers.rank]
            asked, own_mask = self._for_shard(queries, rows), held.own_mask(allowed)
            distances, ids = held.own.search(asked, max(own, 1), own_mask, limit)
            parts = [Candidates(distances[part, :own].flatten(), ids[part, :own].flatten()) for part in shares]
            shape = len(rows), wanted
            return parts, SearchResult(full_like(distances, shape, NO_DISTANCE), full_like(ids, shape, -1))

        shares = self._shares(len(rows))
        (parts, result), _ = peers.together("search", search_shard)
        lengths = [part.stop - part.start for part in shares]
        merged = self._merge(
            parts,
            [lengths[peers.rank] * count for count in columns],
            lambda candidates: merge_nearest(candidates, columns, found),
            [length * found for length in lengths],
        )
        for part, (distances, ids) in zip(shares, merged, strict=True):
            shape = part.stop - part.start, found
            result.distances[part, :found], result.ids[part, :found] = distances.view(shape), ids.view(shape)
        return SearchResult(*as_queries(queries, result))

    def range_search(self, queries: Array, radius: int, mask: Array | None = None) -> RangeResult:
        """All items within `radius` (inclusive) of each query, by (distance, id); other arguments as `search`."""
        held, peers = self._shards, self._shards.peers

        def check() -> tuple[np.ndarray, int, np.ndarray | None, np.ndarray | None]:
            rows = self._check_queries(queries)
            within = min(require_int("radius", radius, 0), self.bits)
            allowed = self._check_mask(mask, len(rows))
            return rows, within, allowed, held.ids_to_tell(allowed)

        (rows, within, allowed, own_ids), _ = peers.together(
            "range_search", check, lambda asked: dict(zip(("queries", "radius", "mask"), asked[:3], strict=True))
        )
        held.tell(own_ids)
        (lims, distances, ids), _ = peers.together(
            "range_search",
            lambda: held.own.range_search(self._for_shard(queries, rows), within, held.own_mask(allowed)),
        )
        with peers.in_step():
            counts = torch.from_numpy(np.stack(peers.gather_array(lims.diff().cpu().numpy(), [len(rows)] * peers.size)))
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
        held = self._shards
        own, _ = held.peers.together(
            "to", lambda: held.own.to(device, device_memory), lambda it: {"device": it.device.type}
        )
        if own is held.own:
            return self
        moved = copy.copy(held)
        moved.own = own
        return self._of(moved)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a folder that all ranks see, the same path on each: a file a shard and `manifest.json`.

        The manifest is written last: a reader, or a crash of any rank, finds the old index or the new one, whole. Files
        of earlier saves are removed then.
        """
        held, peers = self._shards, self._shards.peers
        (folder, _), told = peers.together(
            "save",
            lambda: (output_folder(as_path(path)), secrets.randbits(62)),
            lambda made: {"path": str(made[0])},
            lambda made: (made[1],),
        )
        names = [shard_name(rank, peers.size, told[0][0]) for rank in range(peers.size)]
        manifest = Manifest(self.bits, held.next_id, tuple(map(Shard, names, held.counts)))
        try:
            peers.together("save", lambda: held.own.save(folder / names[peers.rank]))
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
        asked = (path, manifest, peers.rank, peers.size, mmap, device, device_memory)
        return cls._of(Shards(peers, "load", lambda: read_share(*asked), manifest.next_id))

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

        return cls._of(Shards(peers, "from_index", take_share, whole.next_id))

    @classmethod
    def _of(cls, shards: Shards) -> ShardedHammingIndex:
        index = cls.__new__(cls)
        index._shards = shards
        return index

    def to_index(self) -> HammingIndex:
        """One plain index of all codes, on every rank: it must fit in the memory of each."""
        held, peers = self._shards, self._shards.peers
        contents, _ = peers.together("to_index", held.own._contents)
        width = contents.rows.shape[1]
        with peers.in_step():
            ids = np.concatenate(peers.gather_array(contents.ids, held.counts))
            rows = np.concatenate(peers.gather_array(contents.rows.reshape(-1), [width * n for n in held.counts]))
        order = ids.argsort()
        whole = Contents(self.bits, rows.reshape(-1, width)[order], ids[order], held.next_id)
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
        peers = self._shards.peers
        with peers.in_step():
            packed = [part.pack() for part in parts]
            received = peers.exchange(packed, [CANDIDATE_BYTES * count for count in arriving])
            own = merge([Candidates.unpack(data) for data in received])
            everyones = peers.gather(own.pack(), [CANDIDATE_BYTES * count for count in merged])
        return [Candidates.unpack(data) for data in everyones]

    def _shares(self, queries: int) -> list[slice]:
        """Which queries each rank merges."""
        ranks = self._shards.peers.size
        return [share(queries, rank, ranks) for rank in range(ranks)]

    def _for_shard(self, queries: Array, rows: np.ndarray) -> Tensor:
        """The queries where the shard takes them without a copy: tensors, so that results stay on its device."""
        return queries if isinstance(queries, Tensor) else array_to_tensor("queries", rows).to(self.device)

    def _check_queries(self, queries: Array) -> np.ndarray:
        rows = packed_rows("queries", self._shards.on_host("queries", queries), self.bits)
        check_padding("queries", rows, self.bits)
        return rows

    def _check_mask(self, mask: Array | None, queries: int) -> np.ndarray | None:
        """What may be found: bool of all items, in the order of their ids, or int64 ids."""
        allowed, allowed_ids = allowed_items(self._shards.on_host("mask", mask), queries)
        if allowed is not None:
            check_mask_length(allowed.shape[-1], len(self))
        return allowed_ids if allowed is None else allowed
