"""The ranks that hold the shards of an index: they agree on every call, and find out who is gone.

Everything is sent from one rank straight to another, so that what does not arrive names the rank that did not send it.
Headers of 256 bytes, and data on the CPU, go by the group's gloo backend with our own time limit; data on a GPU by NCCL
where the group has it for GPUs, else through host memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from agmh_fast.errors import InputError, first_line, require, shown

T = TypeVar("T")
_Transfer = tuple[Callable[..., Any], Tensor, int]

TIMEOUT = 300.0
_HEADER = struct.Struct("<16s4q32sB175s")
HEADER_BYTES = _HEADER.size
_DIGEST = 8
# Keeps our messages apart from those that the caller sends between the same ranks.
_TAG = 0xA64
# What a rank may say went wrong with it: byte 1, 2, 3 of its header, 0 for nothing.
_FAULTS = (InputError, MemoryError, RuntimeError)


class LostRankError(RuntimeError):
    """`ranks` gave no answer: they died, hang, or gave up for want of another. The index cannot be used any more."""

    def __init__(self, ranks: Sequence[int], reason: str) -> None:
        self.ranks, self.reason = tuple(ranks), reason
        names = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        super().__init__(f"no answer from {names}: {reason}; start the ranks anew and load the index again")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ranks, self.reason)


class _Header(NamedTuple):
    call: bytes
    numbers: tuple[int, ...]
    digests: bytes
    fault: int
    text: str

    def pack(self) -> bytes:
        text = self.text.encode()[:175].decode(errors="ignore").encode()
        return _HEADER.pack(self.call, *self.numbers, self.digests, self.fault, text)

    @classmethod
    def unpack(cls, data: bytes) -> _Header:
        call, *numbers, digests, fault, text = _HEADER.unpack(data)
        return cls(call.rstrip(b"\0"), tuple(numbers), digests, fault, text.rstrip(b"\0").decode(errors="replace"))


class Peers:
    """The ranks of a torch.distributed group, from the one that makes this object; all of them must make one.

    Ranks are numbered as in the group. `timeout` in seconds: the longest that one rank may be behind another.
    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: float) -> None:
        ready = dist.is_available() and dist.is_initialized()
        require(ready, "torch.distributed is not initialised: call init_process_group first, under torchrun say")
        fits = group is None or isinstance(group, dist.ProcessGroup)
        require(fits, f"group must be a ProcessGroup that this process is in, got {shown(group)}")
        self._group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        backends = self._backends = dist.get_backend_config(group)
        how = 'init_process_group("gloo") or, for GPUs, ("cpu:gloo,cuda:nccl")'
        require("cpu:gloo" in backends, f"group must have gloo for the CPU, it has {backends}: {how}")
        fits = isinstance(timeout, int | float) and not isinstance(timeout, bool) and 0 < timeout < math.inf
        self._timeout = float(timeout) if fits else TIMEOUT
        self._lost: LostRankError | None = None
        self._met_on_device = False
        bad_timeout = f"timeout must be a positive number of seconds, got {shown(timeout)}"
        self.together("open", lambda: require(fits, bad_timeout))

    def together(
        self,
        call: str,
        work: Callable[[], T],
        same: Callable[[T], Mapping[str, object]] | None = None,
        numbers: Callable[[T], tuple[int, ...]] | None = None,
    ) -> tuple[T, list[tuple[int, ...]]]:
        """Do `work` on every rank; its result, and what `numbers` (four at most) makes of it on each rank.

        If it raises on one rank all raise: that one its own error, the others one that names it. So they do where the
        values named by `same` (four at most) are not the same on every rank, or the calls are not.
        """
        result, fault, error = None, 0, None
        told: tuple[int, ...] = ()
        agreed: Mapping[str, object] = {}
        with self.in_step():
            try:
                result = work()
                told = numbers(result) if numbers else ()
                agreed = same(result) if same else {}
                digests = b"".join(digest(value) for value in agreed.values())
            except Exception as raised:
                error, digests = raised, b""
                fault = next((i for i, kind in enumerate(_FAULTS, 1) if isinstance(raised, kind)), len(_FAULTS))
        text = "" if error is None else f"{'' if fault == 1 else f'{type(error).__name__}: '}{error}"
        padded = (*told, *[0] * (4 - len(told)))
        mine = torch.frombuffer(
            bytearray(_Header(call.encode(), padded, digests, fault, text).pack()), dtype=torch.uint8
        )
        sizes = [HEADER_BYTES] * self.size
        headers = [_Header.unpack(part.numpy().tobytes()) for part in self._exchange([mine] * self.size, sizes)]
        if error is not None:
            raise error
        self._check(headers, list(agreed))
        return result, [header.numbers[: len(told)] for header in headers]  # type: ignore[return-value]

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Send bytes parts[r], uint8 (n,), to rank r, and receive sizes[r] bytes from it, on the same device."""
        device = parts[self.rank].device
        if device.type == "cpu" or f"{device.type}:nccl" in self._backends:
            return self._exchange(parts, sizes, on_device=device.type != "cpu")
        with self.in_step():
            return [part.to(device) for part in self._exchange([part.cpu() for part in parts], sizes)]

    def gather(self, part: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Bytes `part` of every rank, of sizes[r] bytes, in the order of ranks."""
        return self.exchange([part] * self.size, sizes)

    def gather_array(self, array: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
        """Everyone's 1-D array of this type, in host memory, with so many entries each, in the order of ranks."""
        data = torch.from_numpy(array.view(np.uint8).copy())
        parts = self.gather(data, [count * array.itemsize for count in counts])
        return [part.numpy().view(array.dtype) for part in parts]

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """For a rank's own work between what it sends: after an error there it sends nothing more.

        The others would take its next message for one of the call it left, and miss it now after `timeout`.
        """
        try:
            yield
        except LostRankError as lost:
            self._lost = lost
            raise
        except BaseException:
            reason = "this rank was interrupted, or failed, in a call that the others are in"
            self._lost = LostRankError([self.rank], reason)
            raise

    def _check(self, headers: list[_Header], names: list[str]) -> None:
        """Raise, on every rank the same, what another rank's fault or a difference asks for."""
        for rank, header in enumerate(headers):
            if header.fault:
                raise _FAULTS[header.fault - 1](f"rank {rank}: {header.text}")
        first = headers[0]
        for rank, header in enumerate(headers):
            if header.call != first.call:
                calls = f"rank {rank} called {_name(header)}, rank 0 {_name(first)}"
                raise InputError(f"every rank must make the same calls in the same order: {calls}")
            for place, name in enumerate(names):
                part = slice(_DIGEST * place, _DIGEST * (place + 1))
                alike = header.digests[part] == first.digests[part]
                require(alike, f"{name} must be the same on every rank: rank {rank} gave another than rank 0")

    def _exchange(self, parts: Sequence[Tensor], sizes: Sequence[int], on_device: bool = False) -> list[Tensor]:
        if self._lost is not None:
            raise self._lost
        with self.in_step():
            received = [
                parts[peer] if peer == self.rank else torch.empty(size, dtype=torch.uint8, device=parts[peer].device)
                for peer, size in enumerate(sizes)
            ]
            others = [peer for peer in range(self.size) if peer != self.rank]
            transfers: list[_Transfer] = [(dist.irecv, received[peer], peer) for peer in others]
            transfers += [(dist.isend, parts[peer], peer) for peer in others]
            (self._transfer_on_device if on_device else self._transfer)(transfers)
        return received

    def _transfer(self, transfers: Sequence[_Transfer]) -> None:
        """Over gloo. A lost rank stops no transfer between the others, so that each of them names that one alone.

        Empty messages are sent too: who waits for one finds out in the same exchange as all others that it died.
        """
        lost: dict[int, str] = {}
        works = []
        deadline = time.monotonic() + self._timeout
        for send_or_receive, tensor, peer in transfers:
            end = {"group_src" if send_or_receive is dist.irecv else "group_dst": peer}
            try:
                works.append((peer, send_or_receive(tensor, group=self._group, tag=_TAG, **end)))
            except RuntimeError:
                lost[peer] = "its connection is closed"
        for peer, work in works:
            left = deadline - time.monotonic()
            try:
                work.wait(timedelta(seconds=max(left, 0.001)))
            except RuntimeError:
                late = time.monotonic() >= deadline
                lost.setdefault(peer, f"waited {self._timeout:g} s" if late else "its connection is closed")
        if lost:
            raise LostRankError(sorted(lost), lost[min(lost)])

    def _transfer_on_device(self, transfers: Sequence[_Transfer]) -> None:
        """In one batch, as NCCL wants it; it does not say who is lost, so that this is asked over gloo then."""
        if not transfers:
            return
        operations = [
            dist.P2POp(kind, tensor, group=self._group, group_peer=peer)
            for kind, tensor, peer in transfers
            if tensor.numel()
        ]
        like = transfers[0][1]
        try:
            works = [] if self._met_on_device else [self._meet(like)]
            works += dist.batch_isend_irecv(operations) if operations else []
            wait_on_device(works, like.device, self._timeout)
        except RuntimeError as error:
            if like.is_cuda:
                group: Any = self._group or dist.group.WORLD
                group._get_backend(like.device).abort()  # what is stuck on the GPU would keep it for ever
            sign, others = torch.zeros(1, dtype=torch.uint8), sorted({peer for _, _, peer in transfers})
            signs: list[_Transfer] = [(dist.irecv, torch.empty_like(sign), peer) for peer in others]
            self._transfer([*signs, *((dist.isend, sign, peer) for peer in others)])
            raise LostRankError(others, f"a transfer between GPUs failed ({first_line(error)})") from error

    def _meet(self, like: Tensor) -> Any:
        """NCCL wants all ranks in the first call of a group, and some may have nothing to send."""
        self._met_on_device = True
        return dist.all_reduce(like.new_zeros(1), group=self._group, async_op=True)


def _name(header: _Header) -> str:
    return header.call.decode(errors="replace")


def wait_on_device(works: Sequence[Any], device: torch.device, timeout: float) -> None:
    """Wait for transfers; RuntimeError where one fails or takes longer than `timeout` seconds in all."""
    deadline = time.monotonic() + timeout
    for work in works:
        # NCCL's own limit would end the process, not the wait.
        while device.type == "cuda" and not work.is_completed():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {timeout:g} s")
            time.sleep(1e-5)
        work.wait(*() if device.type == "cuda" else (timedelta(seconds=max(deadline - time.monotonic(), 0.001)),))


def digest(value: object) -> bytes:
    """Eight bytes that tell a value (an array, or what has a repr) from others."""
    hasher = hashlib.blake2b(digest_size=_DIGEST)
    if isinstance(value, np.ndarray):
        hasher.update(f"{value.dtype} {value.shape}".encode())
        # Some rows at a time: an array may be mapped, and larger than memory.
        step = max(1, (1 << 22) // max(1, value[:1].nbytes))
        for start in range(0, len(value), step):
            hasher.update(np.ascontiguousarray(value[start : start + step]).reshape(-1).view(np.uint8).data)
    else:
        hasher.update(repr(value).encode())
    return hasher.digest()
