"""Processes that are the ranks of a gloo group, and do what a test asks of all of them."""

from __future__ import annotations

import contextlib
import queue
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class Ranks:
    """`size` ranks; functions given to `run` must lie in a module that they can import."""

    def __init__(self, size: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = mp.get_context("spawn")
        self.answers = context.Queue()
        self.whole = True
        self.jobs = [context.Queue() for _ in range(size)]
        self.processes = [
            context.Process(target=_serve, args=(rank, size, port, self.jobs[rank], self.answers), daemon=True)
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any, answers: int | None = None, timeout: float = 120) -> list:
        """function(rank, *args) on every rank; what each returned, None for ranks beyond the first `answers` to come.

        Raises AssertionError with the trace of the first rank that raised.
        """
        self.whole = False
        for job in self.jobs:
            job.put((function, args))
        results: list[Any] = [None] * len(self.jobs)
        deadline = time.monotonic() + timeout
        for _ in range(len(self.jobs) if answers is None else answers):
            try:
                rank, result, trace = self.answers.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no answer in {timeout} s") from None
            assert trace is None, f"rank {rank}:\n{trace}"
            results[rank] = result
        self.whole = answers is None
        return results

    def close(self) -> None:
        """End the ranks, which are waited for only if all of them answered to the last."""
        for job in self.jobs:
            job.put(None)
        for process in self.processes:
            process.join(timeout=10 if self.whole else 0)
            process.kill()
            process.join()


@contextlib.contextmanager
def ranks(size: int) -> Iterator[Ranks]:
    """Ranks for as long as the block lasts."""
    started = Ranks(size)
    try:
        yield started
    finally:
        started.close()


def _serve(rank: int, size: int, port: int, jobs: mp.Queue, answers: mp.Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    while (job := jobs.get()) is not None:
        function, args = job
        try:
            answers.put((rank, function(rank, *args), None))
        except BaseException:
            answers.put((rank, None, traceback.format_exc()))
