"""The ranks of a distributed run: how they begin, which share of the work each has, and what they tell each other.

Every rank holds the model, all codes and all labels. It trains on its part of each batch, and sums, updates and encodes
its share of the database and of the queries.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from agmh_fast.errors import InputError, require
from agmh_fast.ops.codes import pack_codes, unpack_codes
from agmh_fast.ops.hashing import HashingState
from agmh_fast.shares import share

T = TypeVar("T")
# What backends say of a rank that is gone or silent; they have no type of error for it.
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "socket")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `size`; (0, 1) is a run of one process, which tells nobody anything."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Those of torch.distributed's default group, if it is initialised."""
        ready = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if ready else cls()

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes files and tells how the run goes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's share of 0..count-1."""
        return share(count, self.rank, self.size)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, part: Tensor, count: int) -> Tensor:
        """All `count` rows, of which `part` (n, ·) is this rank's share."""
        if self.size == 1:
            return part
        whole = part.new_zeros(count, *part.shape[1:])
        whole[self.share(count)] = part
        return self.total(whole)

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, which alone does it; its InputError is one on every rank."""
        if self.size == 1:
            return work()
        told: list[object] = [None, None]
        if self.rank == 0:
            try:
                told[0] = work()
            except InputError as error:
                told[1] = str(error)
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise InputError(f"{'' if self.rank == 0 else 'rank 0: '}{told[1]}")
        return told[0]  # type: ignore[return-value]

    def first_then_all(self, work: Callable[[], T]) -> T:
        """What `work` returns here, begun when rank 0 has done it."""
        kept: list[T] = []
        self.first(lambda: kept.append(work()))
        return kept[0] if kept else work()


@contextlib.contextmanager
def started(device: str | None, seconds: float) -> Iterator[Ranks]:
    """The ranks that torchrun started, for as long as the block lasts; a process that it did not start is alone.

    seconds: how long one rank may be behind another. Raises InputError where a rank is gone or silent.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks.current()
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        require(name in os.environ, f"ranks: WORLD_SIZE is set and {name} is not: start the ranks by torchrun")
    cuda = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=seconds))
        yield Ranks.current()
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not any(word in reason.lower() for word in _LOST):
            raise
        raise InputError(
            f"ranks: another rank is gone, or silent for {seconds:g} s; start them again with --resume: {reason[:200]}"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class SharedState(HashingState):
    """A `HashingState` whose codes are summed and updated by the ranks together, each its share of the rows."""

    def __init__(self, labels: Tensor, bits: int, gamma: float, seed: int, ranks: Ranks) -> None:
        self._ranks = ranks
        super().__init__(labels, bits, gamma, seed)

    @property
    def rows(self) -> slice:
        return self._ranks.share(len(self))

    def whole(self, codes: Tensor) -> Tensor:
        packed = self._ranks.gather(pack_codes(codes), len(self))
        return unpack_codes(packed, self.bits).to(codes.dtype)

    def _code_sums(self) -> tuple[Tensor, Tensor]:
        sums, gram = super()._code_sums()
        both = self._ranks.total(torch.cat([sums, gram]))
        return both[: len(sums)].clone(), both[len(sums) :].clone()
