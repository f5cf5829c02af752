"""`pytest bench/`: each row first shows that all sides compute the same, then times them in turns in the same run.

It takes less than ten minutes on two cores; `--full` runs every row. `--benchmark-json=FILE` keeps the run with
machine, versions and commit; what a row's `extra_info` holds is in contest.py.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agmh_fast

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))  # processes that a bench spawns import it as `bench.…`

from contest import Stage, compete
from measuring import DEVICE, Clock, Timed

STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all rows of bench/, not only those of a quick run")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: a row that only --full runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --full, rows that are marked `full` are left out."""
    if not config.getoption("--full"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("full")])
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    cuda = torch.cuda.is_available()
    machine_info["agmh_fast"] = {
        "version": agmh_fast.__version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": np.__version__,
        "faiss": _version("faiss-cpu"),
        "usearch": _version("usearch"),
        "torch_threads": torch.get_num_threads(),
        "threads": agmh_fast.get_num_threads(),
        "full": config.getoption("--full"),
        "cores": len(os.sched_getaffinity(0)),
        "real_time": {os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}.get(os.sched_getscheduler(0)),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "cuda": torch.version.cuda,
        "libc": " ".join(platform.libc_ver()),
    }


@pytest.fixture(autouse=True)
def _within_time() -> None:
    """Skips rows that would begin more than AGMH_BENCH_SECONDS after the run: those measured before are kept."""
    limit = os.environ.get("AGMH_BENCH_SECONDS")
    if limit and time.monotonic() - STARTED > float(limit):
        pytest.skip(f"the {limit} s of AGMH_BENCH_SECONDS are over")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A row that sets the threads of OpenMP, which faiss and torch share, sets them for itself alone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line past pytest's capture."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def run(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(line)

    return run


@pytest.fixture
def take_turns(benchmark: Any) -> Callable[..., dict[str, list[float]]]:
    """take_turns(entries, rounds, budget): seconds of every entry, all in turns; the first is pytest-benchmark's row.

    Without `rounds` as many as take `budget` seconds, from 5 to 25.
    """

    def run(entries: Mapping[str, Timed], rounds: int | None = None, budget: float = 10) -> dict[str, list[float]]:
        clock = Clock(DEVICE)
        start = time.perf_counter()
        for entry in entries.values():
            clock.seconds(entry.once())
        once = time.perf_counter() - start
        if rounds is None:
            rounds = min(max(int(budget / once), 5), 25)
        (first, ours), *others = entries.items()
        taken: dict[str, list[float]] = {name: [] for name, _ in others}

        def between() -> tuple[tuple[Callable[[], object]], dict[str, Any]]:
            for name, entry in others:
                taken[name].append(clock.seconds(entry.once()))
            once = ours.once()
            clock.ready()
            return (once,), {}

        benchmark.pedantic(clock.finished, setup=between, rounds=rounds)
        return {first: list(benchmark.stats.stats.data)} | taken

    return run


@pytest.fixture
def contest(benchmark: Any, take_turns: Any, say: Callable[[str], None], request: Any) -> Callable[..., None]:
    """contest(sides, work, …): see `compete`. Rows of modules that have no DEVICE run on the processor."""
    device = getattr(request.module, "DEVICE", torch.device("cpu"))
    return functools.partial(compete, Stage(benchmark, take_turns, say, request.node.name, device))
