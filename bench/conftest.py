"""`pytest bench/`: each bench first proves that both sides compute the same, then times them in turns in the same run.

`--benchmark-json=FILE` keeps the run with machine and versions; `extra_info` holds the baseline's median and the ratio.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import agmh_fast


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["agmh_fast"] = {
        "version": agmh_fast.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "torch_threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "libc": " ".join(platform.libc_ver()),
    }


@pytest.fixture
def race(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., float]:
    """race(ours, baseline, target=3, rounds=7) times the two alternately, prints and records the ratio of medians."""

    def run(ours: Callable[[], Any], baseline: Callable[[], Any], target: float, rounds: int = 7) -> float:
        ours(), baseline()
        theirs: list[float] = []

        def between() -> None:
            start = time.perf_counter()
            baseline()
            theirs.append(time.perf_counter() - start)

        benchmark.pedantic(ours, setup=between, rounds=rounds)
        median = benchmark.stats.stats.median
        ratio = statistics.median(theirs) / median
        benchmark.extra_info.update(
            baseline_median_s=statistics.median(theirs), speedup=round(ratio, 2), target=target, rounds=rounds
        )
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(f"\n{request.node.name}: {median * 1e3:.2f} ms, {ratio:.1f}x the baseline (target {target}x)")
        return ratio

    return run
