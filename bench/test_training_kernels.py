"""Training ops by everyone who can compute them here: the published code, eager and compiled, and our implementations.

Everyone's results are held against the exact ones first. Beside times a row has by contestant its errors and its peak
memory. On a GPU `graph_p50_s` is the time of a replayed CUDA graph, without the host's launches. What could not be
measured says why.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from contest import Side, cases
from contestants import COMPILED, PUBLISHED, Contestant, Named, Workload, compiled
from hashing_workloads import hashing_state
from limits import Work, roof, roofs
from measuring import DEVICE, Clock, Timed, cpu_peaks, cuda_peak, percentiles
from targets import Target
from workloads import WORKLOADS

import agmh_fast.functional as af

CUDA = DEVICE.type == "cuda"
TYPES = [torch.float32, torch.bfloat16] if CUDA else [torch.float32]


@dataclass
class Entered:
    """A workload whose contestants have shown that they compute it; their errors and peaks, and who is absent why."""

    workload: Workload
    contestants: dict[str, Contestant]
    errors: dict[str, dict[str, float]]
    peaks: dict[str, dict[str, int]]
    products: dict[str, int]
    absent: dict[str, str] = field(default_factory=dict)


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


@functools.lru_cache(maxsize=1)
def enter(name: str, dtype: torch.dtype, with_compiled: bool) -> Entered:
    """Check everyone against the exact results: at most twice the baseline's error, and a band for rounding."""
    workload = WORKLOADS[name](DEVICE, dtype)
    exact = {key: tensor.double() for key, tensor in workload.exact().items()}
    contestants, absent = dict(workload.contestants), {}

    def errors(results: Named) -> dict[str, float]:
        return {key: _error(results[key], expected) for key, expected in exact.items()}

    found = {rival: errors(contestant.results()) for rival, contestant in contestants.items()}
    if with_compiled and workload.baseline == PUBLISHED:
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
    return Entered(workload, contestants, found, peaks, workload.products(), absent)


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


def _side(entered: Entered, rival: str, direction: str) -> Side:
    timed = _timed(entered.contestants[rival], direction)
    facts: dict[str, Any] = {"errors": entered.errors[rival]}
    if CUDA:
        facts |= _on_gpu(timed, direction)
    elif direction in entered.peaks[rival]:
        facts["peak_bytes"] = entered.peaks[rival][direction]
    return Side(timed.run, prepare=timed.prepare, facts=facts)


@pytest.fixture
def everyone(contest, request):
    """everyone(workload, direction, dtype, target): all contestants' times, recorded."""

    def run(name: str, direction: str, dtype: torch.dtype, target: float | None = None) -> None:
        # The swapped names race the published ones as they are written; "functional" has them compiled.
        with_compiled = (CUDA or request.config.getoption("--full")) and not name.endswith("official")
        entered = enter(name, dtype, with_compiled)
        # The op's own order: what `auto` takes is first, and pytest-benchmark's row.
        order = [rival for rival in entered.contestants if rival not in (PUBLISHED, COMPILED)]
        order += [rival for rival in (COMPILED, PUBLISHED) if rival in entered.contestants]
        work = Work(entered.workload.minimal_bytes(direction), entered.products[direction], "flop")
        # Targets are those of two CPU cores.
        targets = [] if CUDA or target is None else [Target("speedup", least=target)]
        contest(
            {rival: _side(entered, rival, direction) for rival in order},
            work, entered.workload.baseline, roof(work, DEVICE, dtype), targets, budget=10,
            workload=name, direction=direction, dtype=str(dtype), not_measured=entered.absent, **roofs(DEVICE, dtype),
        )  # fmt: skip

    return run


def _rows(*names: str) -> list[tuple[Any, ...]]:
    """(name, dtype, direction), or (dtype, direction) without names."""
    before = [(name,) for name in names] or [()]
    return [(*name, dtype, d) for name in before for dtype in TYPES for d in ("both", "forward", "backward")]


def _id(value: object) -> str:
    return str(value).removeprefix("torch.")


def _both(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [row for row in rows if row[-1] == "both"]


def _parts(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [row for row in rows if row[-1] != "both"]


PATHS, PLAIN = _rows("functional", "official"), _rows()


@pytest.mark.benchmark(group="SIEA + ADL, B=32, D=6, C=512, 14x14")
@cases("path, dtype, direction", _both(PATHS), _parts(PATHS), ids=_id)
def test_attention_dispersion(everyone, path, dtype, direction):
    everyone(f"attention_dispersion.{path}", direction, dtype, target=5 if direction == "both" else None)


@pytest.mark.benchmark(group="BatchNorm, ReLU and mean of (32, 3072, 14, 14)")
@cases("dtype, direction", _both(PLAIN), _parts(PLAIN), ids=_id)
def test_descriptor(everyone, dtype, direction):
    everyone("descriptor", direction, dtype)


@pytest.mark.benchmark(group="features (32, 2048, 7, 7) to logits of 48 bits by 6 x 512 channels, eval mode")
@cases("dtype", TYPES, ids=_id)
def test_encode_descriptors(everyone, dtype):
    everyone("encoding", "forward", dtype)


@pytest.mark.benchmark(group="pairwise and quantization loss, L=48, batch 32, N=75750")
@cases("direction", ["both"], ["forward", "backward"])
def test_hashing_loss(everyone, direction):
    everyone("hashing_loss", direction, torch.float32, target=30 if direction == "both" else None)


@pytest.mark.benchmark(group="our hashing loss and backward, L=48, batch 32: independent of N")
@cases("count", [5_994, 75_750, 1_000_000])
def test_hashing_loss_does_not_grow(contest, count):
    state, sampled = hashing_state(count, 48, DEVICE)
    embedding = torch.tanh(torch.randn(32, 48, device=DEVICE)).requires_grad_()

    def gradient(impl: str = "auto") -> torch.Tensor:
        total = af.asymmetric_hashing_loss(embedding, sampled[:32], state, impl=impl).total
        return torch.autograd.grad(total, embedding)[0]

    expected = gradient("torch")
    # The same sums of float64, in another order.
    assert (gradient() - expected).norm() <= 1e-5 * expected.norm()
    contest(
        # Nothing is slept between calls, as in training.
        {"ours": Side(lambda _: gradient(), prepare=lambda: None)}, Work(), rounds=50, items=count, bits=48, batch=32
    )  # fmt: skip


@pytest.mark.benchmark(group="discrete step, m=2000")
@cases("count", [5_994], [75_750, 1_000_000])
def test_discrete_step(everyone, count):
    everyone(f"discrete_step.{count}", "forward", torch.float32, target=500 if count == 75_750 else None)
