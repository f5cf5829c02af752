"""What the bench of Hamming search on a GPU is made of: which rows fit, their bounds, who answers, what is asserted."""

from __future__ import annotations

import functools
import importlib
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from back_ends import back_end
from hamming_peers import Peer
from measuring import Clock, synchronize
from targets import Target
from torch import Tensor

from agmh_fast.ops import hamming
from agmh_fast.ops.codes import unpack_bits
from agmh_fast.search.pieces import pieces

# Bytes of a result: distance and id.
_RESULT_BYTES = 12
# Scratch of a search at most, what the clock overwrites between calls, and room for peers' chunks.
_BESIDE = 2 * 2**30


@dataclass(frozen=True)
class Row:
    """A search: `queries` of `items` codes for the k nearest."""

    bits: int
    items: int
    queries: int
    k: int

    @property
    def words(self) -> int:
        """32-bit words of a padded code."""
        return 1 if self.bits <= 32 else (self.bits + 63) // 64 * 2

    @property
    def popcounts(self) -> int:
        """Population counts of a pair, as csrc/hamming/cuda/README.md tables them."""
        return {1: 1, 2: 2, 4: 3}.get(self.words, 4 * math.ceil(self.words / 8))

    @property
    def bytes(self) -> int:
        """Device memory: codes as given and, where those are no whole words, padded; results twice; the rest."""
        given = (self.bits + 7) // 8
        padded = 0 if given == 4 * self.words else 4 * self.words
        return self.items * (given + padded) + 2 * self.queries * self.k * _RESULT_BYTES + _BESIDE

    def obstacle(self, free: int) -> str | None:
        """Why the row is left out with so many bytes free."""
        if self.bytes <= free:
            return None
        return f"needs {self.bytes / 1e9:.1f} GB of device memory, {free / 1e9:.1f} GB are free"

    def bound(self, bytes_per_s: float, popcounts_per_s: float) -> float:
        """Seconds that no search by population counts can be below: reading all codes once and writing the results, or
        counting.
        """
        moved = self.items * self.words * 4 + self.queries * self.k * _RESULT_BYTES
        return max(moved / bytes_per_s, self.queries * self.items * self.popcounts / popcounts_per_s)

    def targets(self) -> list[Target]:
        """One query is to be bound by memory, many by population counts."""
        if self.bits != 64 or self.items < 100_000_000 or self.k > 100:
            return []
        if self.queries == 1:
            return [Target("of_limit", least=0.85)]
        return [Target("of_limit", least=0.8)] if self.queries == 1000 else []


MILLION = 1_000_000
# What matters most comes first: a run that is short of time leaves out the last.
ROWS = [Row(64, 100 * MILLION, queries, 100) for queries in (1, 1000, 16, 256)]
ROWS += [Row(64, MILLION, queries, 100) for queries in (1, 256, 1000, 10_000)]
ROWS += [Row(64, 10 * MILLION, 1000, k) for k in (10, 1000, 2048, 10_000)]
ROWS += [Row(bits, 10 * MILLION, 256, 100) for bits in (16, 32, 48, 128, 256, 512, 1024)]
ROWS += [Row(64, MILLION, 100, MILLION), Row(256, 10 * MILLION, 16, 65_536)]
ROWS += [Row(64, 1000 * MILLION, queries, 100) for queries in (1, 16, 256)]


def random_rows(count: int, bits: int, seed: int, device: torch.device) -> Tensor:
    """(count, ceil(bits / 8)) uint8 on the device, uniform, unused bits zero."""
    generator = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(0, 256, (count, (bits + 7) // 8), dtype=torch.uint8, device=device, generator=generator)
    codes[:, -1] &= 0xFF << (-bits % 8) & 0xFF
    return codes


def popcount_rate(device: torch.device) -> float:
    """Population counts of 32 bits a second, as many as the device issues: in registers, with a xor and an addition."""
    from popcount_probe import COUNTS_OF_A_THREAD, count

    threads = 2**24
    out = torch.empty(threads, dtype=torch.int32, device=device)
    count(out)
    clock = Clock(device)
    return threads * COUNTS_OF_A_THREAD / statistics.median(clock.seconds(lambda: count(out)) for _ in range(5))


def pass_by(rows: np.ndarray, room: int, device: torch.device) -> None:
    """Bring all rows to the device, piece after piece as a search does, and do nothing with them."""
    for _ in pieces(rows, rows.shape[1], max(1, room // 2 // rows.shape[1]), device):
        pass


def overlap(together: float, *alone: float) -> float:
    """The share of the shorter of two that was hidden behind the longer: 1 all of it, 0 where they took turns."""
    return (sum(alone) - together) / min(alone)


def ours(x: Tensor, bits: int, k: int, impl: str = "auto") -> Peer:
    """The library; like every peer it gives distances and ids, (Q, k) each, ascending by distance."""
    return Peer("agmh_fast", lambda q: hamming.hamming_topk(q, x, k, bits, impl=impl))


def by_back_end(x: Tensor, bits: int, k: int, name: str) -> Peer:
    """Ours, with the back end of this name."""
    peer = ours(x, bits, k, "cuda")

    def search(q: Tensor) -> object:
        with back_end(name):
            return peer.search(q)

    return Peer(name, search)


def torch_operators(x: Tensor, bits: int, k: int) -> Peer:
    """Our own fallback: products of ±1 in float32, chunk by chunk."""
    return Peer("torch operators", ours(x, bits, k, "torch").search)


def sign_product(x: Tensor, bits: int, k: int) -> Peer:
    """topk of one product of ±1 in half precision, which is exact up to 2048; the items are unpacked in advance."""
    items = unpack_bits(x, bits).half() * 2 - 1

    def search(q: Tensor) -> tuple[Tensor, Tensor]:
        products, ids = ((unpack_bits(q, bits).half() * 2 - 1) @ items.T).topk(k, dim=1)
        return (bits - products.int()) // 2, ids

    return Peer("±1 half product, topk", search)


def cupy_scan(x: Tensor, bits: int, k: int) -> Peer:
    """One elementwise kernel of xor and popcount, argpartition, and a sort of the k; whole 64-bit words only."""
    cupy = importlib.import_module("cupy")
    count = cupy.ElementwiseKernel("uint64 a, uint64 b", "int32 d", "d = __popcll(a ^ b)", "agmh_bench_popcount")
    items = cupy.from_dlpack(x.view(torch.int64)).view(cupy.uint64)

    def nearest(query: Any) -> tuple[Any, Any]:
        of_query = count(items, query[None]).sum(1)
        near = cupy.argpartition(of_query, k - 1)[:k]
        order = near[cupy.argsort(of_query[near])]
        return of_query[order], order

    def search(q: Tensor) -> tuple[Tensor, Tensor]:
        found = [nearest(query) for query in cupy.from_dlpack(q.view(torch.int64)).view(cupy.uint64)]
        distances, ids = (cupy.stack(part) for part in zip(*found, strict=True))
        return torch.from_dlpack(distances), torch.from_dlpack(ids)

    return Peer("CuPy popcount", search)


def faiss_gpu(x: Tensor, bits: int, k: int) -> Peer:
    """GpuIndexBinaryFlat, which takes whole bytes from the host, and k up to 2048."""
    faiss = importlib.import_module("faiss")
    flat = faiss.IndexBinaryFlat(bits)
    flat.add(x.cpu().numpy())
    index = faiss.GpuIndexBinaryFlat(faiss.StandardGpuResources(), flat)

    def search(q: Tensor) -> tuple[Tensor, Tensor]:
        distances, ids = index.search(q.cpu().numpy(), k)
        return torch.from_numpy(distances), torch.from_numpy(ids)

    return Peer("faiss GpuIndexBinaryFlat", search)


def cuvs_brute_force(x: Tensor, bits: int, k: int) -> Peer:
    """cuVS's exhaustive search, where it has a metric for binary codes."""
    brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    index = brute_force.build(x, metric="bitwise_hamming")

    def search(q: Tensor) -> tuple[Tensor, Tensor]:
        distances, ids = (torch.as_tensor(part, device=q.device) for part in brute_force.search(index, q, k))
        return distances.int(), ids.long()

    return Peer("cuVS brute force", search)


@dataclass(frozen=True)
class Rival:
    """A peer's maker, and what it needs: items as (N, bits) half and (Q, N) products, whole words, k."""

    make: Callable[[Tensor, int, int], Peer]
    needs: Callable[[Row, int], str | None] = lambda row, free: None


def _whole_words(row: Row, free: int) -> str | None:
    return None if row.bits % 64 == 0 else "takes whole 64-bit words"


def _products_fit(row: Row, free: int) -> str | None:
    # 8 queries at a time at least; unpacking goes by bytes first.
    room = row.items * (4 * row.bits + 8 * 6)
    return None if row.bytes + room <= free else f"needs {room / 1e9:.0f} GB for unpacked codes"


def _faiss_takes(row: Row, free: int) -> str | None:
    return "takes k up to 2048 and whole bytes" if row.k > 2048 or row.bits % 8 else None


RIVALS = {
    "torch": Rival(torch_operators),
    "product": Rival(sign_product, _products_fit),
    "cupy": Rival(cupy_scan, _whole_words),
    "faiss": Rival(faiss_gpu, _faiss_takes),
    "cuvs": Rival(cuvs_brute_force),
}


def rivals(row: Row, x: Tensor, free: int) -> tuple[dict[str, Peer], dict[str, str]]:
    """Those who can search here, by name, and why the others are absent."""
    present, absent = {}, {}
    for name, rival in RIVALS.items():
        reason = rival.needs(row, free)
        if reason is None:
            try:
                peer = rival.make(x, row.bits, row.k)
                present[peer.name] = peer
            except (ImportError, AttributeError, RuntimeError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if reason is not None:
            absent[name] = reason
    return present, absent


def waiting(peer: Peer, device: torch.device) -> Peer:
    """The peer, whose search ends when the device's work does."""

    def search(q: Tensor) -> object:
        found = peer.search(q)
        synchronize(device)
        return found

    return Peer(peer.name, search)


def assert_exact(found: tuple[Tensor, Tensor], q: Tensor, x: Tensor, bits: int, k: int, sample: int = 2) -> None:
    """Ours is the one right answer, order and ties included: some queries, by plain torch operators."""
    rows = torch.linspace(0, len(q) - 1, min(sample, len(q)), device=q.device).long().unique()
    expected = hamming.hamming_topk(q[rows], x, k, bits, impl="torch")
    for name, part, right in zip(("distances", "ids"), found, expected, strict=True):
        assert torch.equal(part[rows], right), f"{name} of the nearest are wrong"


def assert_nearest(found: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], q: Tensor, x: Tensor, bits: int) -> None:
    """A peer that orders ties its own way: the same distances, each that of the item it goes with."""
    distances, ids = (part.to(q.device) for part in found)
    assert torch.equal(distances.int(), right[0][: len(distances)]), "other distances"
    for query, claimed, named in zip(q[:2], distances, ids, strict=False):
        assert len(named.unique()) == len(named), "an item comes twice"
        away = hamming.hamming_distance(query[None], x[named], bits, impl="torch")[0]
        assert torch.equal(away.int(), claimed.int()), "an item is not at its distance"


@functools.lru_cache(maxsize=1)
def database(bits: int, items: int, device: torch.device) -> Tensor:
    """Uniform codes; one database at a time, since the largest fill the device."""
    return random_rows(items, bits, bits, device)
