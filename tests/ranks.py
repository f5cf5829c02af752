"""Processes that are the ranks of a gloo group: of functions that a test runs on all of them, or of the command line.

A machine may be busy: nothing but the work itself is waited for with a limit, no port is chosen before it is used, and
a failure shows what every rank has said and, where one hangs, where it is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from command_line import ENVIRONMENT

STARTING = 600.0
"""Seconds that processes may take to be there and to import what they need, which is not the time of a job."""


class Ranks:
    """`size` ranks; functions given to `run` must lie in a module that they can import."""

    def __init__(self, size: int, folder: Path) -> None:
        self.folder = folder
        context = mp.get_context("spawn")
        self.answers = context.Queue()
        self.whole = True
        self.jobs = [context.Queue() for _ in range(size)]
        self.processes = [
            context.Process(target=_serve, args=(rank, size, folder, self.jobs[rank], self.answers), daemon=True)
            for rank in range(size)
        ]
        for process in self.processes:
            process.start()
        self._collect(size, STARTING)

    def run(self, function: Callable[..., Any], *args: Any, answers: int | None = None, timeout: float = 300) -> list:
        """function(rank, *args) on every rank; what each returned, None for ranks beyond the first `answers` to come.

        Raises AssertionError with the trace of the first rank that raised, and where a rank ends or is silent.
        """
        self.whole = False
        self._hand_out(_import, function.__module__)
        self._collect(len(self.jobs), STARTING)
        self._hand_out(function, *args)
        results = self._collect(len(self.jobs) if answers is None else answers, timeout)
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

    def _hand_out(self, function: Callable[..., Any], *args: Any) -> None:
        for job in self.jobs:
            job.put((function, args))

    def _collect(self, count: int, timeout: float) -> list[Any]:
        results: list[Any] = [None] * len(self.jobs)
        deadline = time.monotonic() + timeout
        for _ in range(count):
            rank, result, trace = self._answer(len(self.jobs) == count, deadline, timeout)
            assert trace is None, f"rank {rank}:\n{trace}\n{self._said()}"
            results[rank] = result
        return results

    def _answer(self, of_all: bool, deadline: float, timeout: float) -> tuple[int, Any, str | None]:
        """The next answer of a rank; where one of all is wanted, none of them may end."""
        while True:
            ended = of_all and [process.exitcode for process in self.processes if process.exitcode is not None]
            with contextlib.suppress(queue.Empty):
                return self.answers.get(timeout=1)
            assert not ended, f"ranks ended with {ended}\n{self._said()}"
            assert time.monotonic() < deadline, f"no answer in {timeout} s\n{self._said(ask=True)}"

    def _said(self, ask: bool = False) -> str:
        """What the ranks have written; `ask` has each tell first where it is."""
        if ask:
            for process in self.processes:
                if process.exitcode is None:
                    os.kill(process.pid, signal.SIGUSR1)  # type: ignore[arg-type]
            time.sleep(2)
        return _outputs(self.folder)


@contextlib.contextmanager
def ranks(size: int) -> Iterator[Ranks]:
    """Ranks for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        started = Ranks(size, Path(folder))
        try:
            yield started
        finally:
            started.close()


def _import(rank: int, module: str) -> None:
    importlib.import_module(module)


def _serve(rank: int, size: int, folder: Path, jobs: mp.Queue, answers: mp.Queue) -> None:
    output = os.open(folder / f"rank-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise
    answers.put((rank, None, None))
    while (job := jobs.get()) is not None:
        function, args = job
        try:
            answers.put((rank, function(rank, *args), None))
        except BaseException:
            answers.put((rank, None, traceback.format_exc()))


# All are there and have imported what takes long before the first chooses a port, and before any waits for another.
_COMMAND_RANK = """
import os, socket, sys, time
from pathlib import Path
from agmh_fast import cli, train
from torch import distributed
folder, rank = Path(sys.argv.pop(1)), os.environ["RANK"]
(folder / f"ready-{rank}").touch()
while len(list(folder.glob("ready-*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.05)
if rank == "0":
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (folder / "port.new").write_text(str(probe.getsockname()[1]))
    (folder / "port.new").rename(folder / "port")
while not (folder / "port").exists():
    time.sleep(0.05)
os.environ["MASTER_PORT"] = (folder / "port").read_text()
sys.exit(cli.main(sys.argv[1:]))
"""


class CommandRanks:
    """Processes of the command line, as torchrun would start them; rank i writes to `folder`/rank-i and error-i."""

    def __init__(self, size: int, line: list[str], folder: Path) -> None:
        self.folder = folder
        common = ENVIRONMENT | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
        self.processes = []
        for rank in range(size):
            with (folder / f"rank-{rank}").open("w") as out, (folder / f"error-{rank}").open("w") as err:
                environment = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                command = [sys.executable, "-c", _COMMAND_RANK, str(folder), *line]
                self.processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))

    def __getitem__(self, rank: int) -> subprocess.Popen:
        return self.processes[rank]

    def wait_until(self, there: Callable[[], bool], timeout: float) -> None:
        """Until something is there, for which every rank must live on."""
        deadline = time.monotonic() + timeout
        while not there():
            ended = [process.returncode for process in self.processes if process.poll() is not None]
            assert not ended, f"ranks ended with {ended}\n{self.said()}"
            assert time.monotonic() < deadline, f"nothing in {timeout} s\n{self.said()}"
            time.sleep(0.1)

    def finished(self, rank: int, timeout: float) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a rank, once it has ended."""
        try:
            code = self.processes[rank].wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"rank {rank} goes on after {timeout} s\n{self.said()}") from None
        return code, *((self.folder / f"{name}-{rank}").read_text() for name in ("rank", "error"))

    def said(self) -> str:
        """What all ranks have written."""
        return _outputs(self.folder)


@contextlib.contextmanager
def command_ranks(size: int, line: list[str]) -> Iterator[CommandRanks]:
    """Ranks of a command line for as long as the block lasts; then they are killed."""
    with tempfile.TemporaryDirectory() as folder:
        started = CommandRanks(size, line, Path(folder))
        try:
            yield started
        finally:
            for process in started.processes:
                process.kill()
                process.wait()


def _outputs(folder: Path) -> str:
    files = sorted([*folder.glob("rank-*"), *folder.glob("error-*")])
    return "\n".join(f"--- {file.name}:\n{file.read_text()[-4000:]}" for file in files)
