"""Training ops by everyone who can compute them here: the published code, eager and compiled, and our implementations.

Everyone's results are held against the exact ones first; only then are all timed in turns. A row's `extra_info` has,
by contestant: p20, p50 and p80 in seconds, the ratio of medians to the baseline, errors, peak memory, and the rate at
which the fewest bytes that must move did move, beside that of a plain copy in the same run. On a GPU `graph_p50_s` is
the time of a replayed CUDA graph, without the host's launches, and the rate is taken from it. What could not be
measured says why.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from conftest import DEVICE
from measuring import Clock, Timed, copy_bandwidth, cpu_peaks, cuda_peak, percentiles
from workloads import COMPILED, PUBLISHED, WORKLOADS, Contestant, Named, Workload, compiled

CUDA = DEVICE.type == "cuda"
DIRECTIONS = ("forward", "backward", "both")
TYPES = [torch.float32, torch.bfloat16] if CUDA else [torch.float32]
DATABASES = [5_994, 75_750, 1_000_000] if CUDA else [5_994]


@dataclass
class Entered:
    """A workload whose contestants have shown that they compute it; their errors and peaks, and who is absent why."""

    workload: Workload
    contestants: dict[str, Contestant]
    errors: dict[str, dict[str, float]]
    peaks: dict[str, dict[str, int]]
    absent: dict[str, str] = field(default_factory=dict)


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


@functools.lru_cache(maxsize=1)
def enter(name: str, dtype: torch.dtype) -> Entered:
    """Check everyone against the exact results: at most twice the baseline's error, and a band for rounding."""
    workload = WORKLOADS[name](DEVICE, dtype)
    exact = {key: tensor.double() for key, tensor in workload.exact().items()}
    contestants, absent = dict(workload.contestants), {}

    def errors(results: Named) -> dict[str, float]:
        return {key: _error(results[key], expected) for key, expected in exact.items()}

    found = {rival: errors(contestant.results()) for rival, contestant in contestants.items()}
    # The swapped names race the published ones as they are written; "functional" has them compiled.
    if workload.baseline == PUBLISHED and not name.endswith("official"):
        torch.compiler.reset()
        entrant = compiled(workload)
        try:
            found[COMPILED] = errors(entrant.results())
            contestants[COMPILED] = entrant
        except Exception as error:
            absent[COMPILED] = _first_line(error)
    for rival, by_name in found.items():
        for key, error in by_name.items():
            allowed = 2 * found[workload.baseline][key] + workload.band
            if workload.band == 0 and rival not in (PUBLISHED, COMPILED):
                allowed = 0
            assert error <= allowed, f"{rival}, {key}: {error:.1e} beside {allowed:.1e}"
    peaks = {} if CUDA else cpu_peaks(name, with_compiled=COMPILED in contestants)
    return Entered(workload, contestants, found, peaks, absent)


@functools.lru_cache(maxsize=1)
def bandwidth() -> float:
    """Of a plain copy on this machine, in this run."""
    return copy_bandwidth(DEVICE)


def _timed(contestant: Contestant, direction: str) -> Timed:
    if direction == "forward":
        return Timed(contestant.forward)
    if direction == "backward":
        return Timed(contestant.gradients, prepare=contestant.forward)
    return Timed(lambda: contestant.gradients(contestant.forward()))


def _on_gpu(entry: Timed, direction: str) -> dict[str, Any]:
    """Peak memory, and the time of a graph where the call is its own start and end."""
    if direction == "backward":
        return {}
    facts: dict[str, Any] = {"peak_bytes": cuda_peak(entry.run)}
    try:
        facts["graph_p50_s"] = percentiles(Clock(DEVICE).graph_seconds(entry.run, rounds=20))["p50_s"]
    except RuntimeError as error:
        torch.cuda.synchronize()
        facts["no_graph"] = _first_line(error)
    return facts


@pytest.fixture
def contest(benchmark, take_turns, say, request):
    """contest(workload, direction, dtype): everyone's times, recorded."""

    def run(name: str, direction: str, dtype: torch.dtype) -> None:
        entered = enter(name, dtype)
        fewest = entered.workload.minimal_bytes(direction)
        # The op's own order: what `auto` takes is first, and pytest-benchmark's row.
        order = [rival for rival in entered.contestants if rival not in (PUBLISHED, COMPILED)]
        order += [rival for rival in (COMPILED, PUBLISHED) if rival in entered.contestants]
        entries = {rival: _timed(entered.contestants[rival], direction) for rival in order}
        seconds = take_turns(entries)
        times = {rival: percentiles(taken) for rival, taken in seconds.items()}
        say(f"\n{request.node.name}: fewest bytes {fewest / 1e6:.3g} MB, copy {bandwidth() / 1e9:.3g} GB/s")
        rivals: dict[str, Any] = {}
        for rival, facts in times.items():
            if CUDA:
                facts |= _on_gpu(entries[rival], direction)
            elif direction in entered.peaks[rival]:
                facts["peak_bytes"] = entered.peaks[rival][direction]
            taken = facts.get("graph_p50_s", facts["p50_s"])
            facts["speedup"] = times[entered.workload.baseline]["p50_s"] / facts["p50_s"]
            facts["gb_per_s"] = fewest / taken / 1e9
            facts["of_floor"] = fewest / bandwidth() / taken
            rivals[rival] = facts | {"errors": entered.errors[rival]}
            peak = f", peak {facts['peak_bytes'] / 1e6:.4g} MB" if "peak_bytes" in facts else ""
            graph = f" (graph {facts['graph_p50_s'] * 1e3:.3g})" if "graph_p50_s" in facts else ""
            say(
                f"  {rival}: {facts['p50_s'] * 1e3:.3g} ms{graph}, {facts['speedup']:.3g}x, "
                f"{facts['gb_per_s']:.3g} GB/s, {facts['of_floor']:.1%} of the floor{peak}"
            )
        benchmark.extra_info.update(
            workload=name,
            direction=direction,
            dtype=str(dtype),
            baseline=entered.workload.baseline,
            rounds=len(seconds[entered.workload.baseline]),
            fewest_bytes=fewest,
            copy_gb_per_s=bandwidth() / 1e9,
            contestants=rivals,
            not_measured=entered.absent,
        )

    return run


@pytest.mark.benchmark(group="SIEA + ADL, B=32, D=6, C=512, 14x14")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("path", ["functional", "official"])
def test_attention_dispersion(contest, path, dtype, direction):
    contest(f"attention_dispersion.{path}", direction, dtype)


@pytest.mark.benchmark(group="BatchNorm, ReLU and mean of (32, 3072, 14, 14)")
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_descriptor(contest, dtype, direction):
    contest("descriptor", direction, dtype)


@pytest.mark.benchmark(group="pairwise and quantization loss, L=48, batch 32, N=75750")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_hashing_loss(contest, direction):
    contest("hashing_loss", direction, torch.float32)


@pytest.mark.benchmark(group="discrete step, m=2000")
@pytest.mark.parametrize("count", DATABASES)
def test_discrete_step(contest, count):
    contest(f"discrete_step.{count}", "forward", torch.float32)
