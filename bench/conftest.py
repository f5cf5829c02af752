"""`pytest bench/`: each bench first proves that all sides compute the same, then times them in turns in the same run.

`--benchmark-json=FILE` keeps the run with machine and versions; `extra_info` holds the others' times and the ratios.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import agmh_fast

sys.path.insert(0, str(Path(__file__).parent))

from measuring import Clock, Timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STARTED = time.monotonic()


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
        "cores": len(os.sched_getaffinity(0)),
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
def race(
    benchmark: Any, request: pytest.FixtureRequest, take_turns: Callable[..., Any], say: Callable[[str], None]
) -> Callable[..., float]:
    """race(ours, baseline, target=3, rounds=7) times the two alternately, prints and records the ratio of medians."""

    def run(ours: Callable[[], Any], baseline: Callable[[], Any], target: float, rounds: int = 7) -> float:
        taken = take_turns({"ours": Timed(ours), "baseline": Timed(baseline)}, rounds)
        median, theirs = (statistics.median(taken[name]) for name in ("ours", "baseline"))
        ratio = theirs / median
        benchmark.extra_info.update(baseline_median_s=theirs, speedup=round(ratio, 2), target=target, rounds=rounds)
        say(f"\n{request.node.name}: {median * 1e3:.2f} ms, {ratio:.1f}x the baseline (target {target}x)")
        return ratio

    return run
