"""`agmh-fast bench`: a minute of measurements on this machine, to hold against the recorded ones.

Each row first shows that both sides compute the same; then they are timed in turns. The whole suite, with more peers
and rows, is `make bench` in a checkout. Everything here runs on the CPU.
"""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from agmh_fast import functional, metrics, recorded
from agmh_fast.machine import cpu_name, usable_cores, versions
from agmh_fast.official import Feat_Loss, SIExtAttn
from agmh_fast.ops.codes import unpack_codes
from agmh_fast.ops.threads import get_num_threads
from agmh_fast.reference import hashing as published
from agmh_fast.reference.attention import StepwiseExternalAttention as PublishedAttention
from agmh_fast.reference.dispersion import attention_dispersion
from agmh_fast.search import HammingIndex
from agmh_fast.train import HashingState

ROUNDS = 5
# Seconds between two timed calls: OpenMP's threads spin on for a while, and must not slow down who comes next.
_SETTLE = 0.01

Run = Callable[[], Any]


class WrongResult(Exception):
    """The two sides of a row do not compute the same; nothing was timed."""


@dataclass(frozen=True)
class Race:
    """One row: what is computed, the recorded row's name, both sides, and units of work in a call of each."""

    what: str
    name: str
    against: str
    ours: Run
    baseline: Run | None
    units: int = 1
    baseline_units: int = 1


@dataclass(frozen=True)
class Row:
    """What was measured: seconds a unit, and how many times faster than the baseline (None: there is none here)."""

    what: str
    name: str
    against: str
    seconds: float
    speedup: float | None
    recorded_seconds: float | None = None
    recorded_speedup: float | None = None


def run(quick: bool = False, progress: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Measure every row; returns {"quick", "machine", "recorded", "rows"}.

    quick: small sizes, to see that everything runs; its numbers are held against nothing. progress(what) is called
    before each row. Raises WrongResult where two sides disagree, and InputError without the compiled modules.
    """
    past = {} if quick else recorded.rows(*recorded.names("cpu"))
    rows = []
    for make in ROWS:
        progress(make.__doc__ or "")
        rows += [_measured(race, past.get(race.name)) for race in make(quick)]
    runs = {row["run"]["name"]: row["run"] for row in past.values()}
    return {
        "quick": quick,
        "machine": {"cpu": cpu_name(), "cores": usable_cores(), "threads": get_num_threads()}
        | versions("torch", "numpy", "faiss-cpu"),
        "recorded": list(runs.values()),
        "rows": [vars(row) for row in rows],
    }


def _measured(race: Race, past: dict[str, Any] | None) -> Row:
    """Time both sides in turns, each after a call that is not timed."""
    sides = [race.ours] if race.baseline is None else [race.ours, race.baseline]
    taken: list[list[float]] = [[] for _ in sides]
    for turn in range(ROUNDS + 1):
        for side, times in zip(sides, taken, strict=True):
            time.sleep(_SETTLE)
            begun = time.perf_counter()
            side()
            if turn > 0:
                times.append(time.perf_counter() - begun)
    own = statistics.median(taken[0]) / race.units
    speedup = statistics.median(taken[1]) / race.baseline_units / own if race.baseline is not None else None
    before = (None, None) if past is None else (recorded.seconds(past), past.get("speedup"))
    return Row(race.what, race.name, race.against, own, speedup, *before)


def _require_same(what: str, same: bool) -> None:
    if not same:
        raise WrongResult(f"{what}: the two sides compute different results; nothing was timed")


def _attention(quick: bool) -> Iterator[Race]:
    """attention and dispersion loss"""
    batch, channels, side, count = (2, 16, 3, 2) if quick else (32, 512, 14, 6)
    torch.manual_seed(0)
    theirs = [PublishedAttention(channels) for _ in range(count)]
    swapped = [SIExtAttn(channels, 4) for _ in range(count)]
    for ours, module in zip(swapped, theirs, strict=True):
        ours.load_state_dict(module.state_dict())
    features = torch.randn(batch, count * channels, side, side).relu().requires_grad_()

    def attended(modules: Sequence[nn.Module]) -> list[torch.Tensor]:
        parts = features.chunk(count, dim=1)
        return [attend(part) for attend, part in zip(modules, parts, strict=True)]

    def gradients(loss: torch.Tensor, modules: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
        return loss, *torch.autograd.grad(loss, [features, *(m.get_parameter("linear.weight") for m in modules)])

    def by_theirs() -> tuple[torch.Tensor, ...]:
        return gradients(attention_dispersion(attended(theirs)), theirs)

    def by_ours() -> tuple[torch.Tensor, ...]:
        return gradients(Feat_Loss()(None, None, attended(swapped), "cpu"), swapped)

    what = "SIEA + ADL by the published names, both ways" + ("" if quick else ", B=32, D=6, C=512, 14×14")
    pairs = zip(by_ours(), by_theirs(), strict=True)
    # Both in float32, with sums of some 10⁵ terms in different orders.
    _require_same(what, all(bool((a - b).norm() <= 1e-3 * b.norm()) for a, b in pairs))
    yield Race(what, "test_attention_dispersion[official-float32-both]", "the published modules", by_ours, by_theirs)


def _database(quick: bool) -> tuple[HashingState, torch.Tensor, torch.Tensor]:
    """A state at the start of an outer iteration, the sampled positions, and embeddings of those items."""
    torch.manual_seed(0)
    count, samples = (500, 64) if quick else (75_750, 2000)
    state = HashingState(torch.randint(0, 101, (count,)), 48)
    sampled = torch.randperm(count)[:samples]
    state.begin_iteration(sampled)
    return state, sampled, torch.tanh(torch.randn(samples, 48))


def _hashing_loss(quick: bool) -> Iterator[Race]:
    """hashing loss"""
    state, sampled, _ = _database(quick)
    embedding, items = torch.tanh(torch.randn(32, 48)).requires_grad_(), sampled[:32]
    # ν is that of all sampled pairs, the rows those of the batch.
    counts = torch.bincount(state.labels, minlength=101).double()
    pairs = float(counts[state.labels[sampled]].sum())
    nu = -pairs / (len(sampled) * len(state.labels) - pairs)
    shared = published.share_label(state.labels[items], state.labels)
    similarity = torch.where(shared, 1.0, nu)

    def baseline() -> torch.Tensor:
        loss = published.pairwise_loss(embedding, state.codes, similarity)
        loss = loss + published.quantization_loss(embedding, state.codes[items], len(state.labels), state.gamma)
        return torch.autograd.grad(loss, embedding)[0]

    def ours() -> torch.Tensor:
        return torch.autograd.grad(functional.asymmetric_hashing_loss(embedding, items, state).total, embedding)[0]

    what = "hashing loss and backward" + ("" if quick else ", batch 32, 48 bits, N=75 750")
    # Sums of N float32 products in different orders.
    _require_same(what, bool((ours() - baseline()).norm() <= 1e-4 * baseline().norm()))
    yield Race(what, "test_hashing_loss[both]", "dense S and F Bᵀ", ours, baseline)


def _discrete_step(quick: bool) -> Iterator[Race]:
    """discrete step"""
    state, sampled, embeddings = _database(quick)
    op = functional.OPS["update_database_codes"]

    def ours() -> Any:
        return op(state, embeddings, sampled)

    what = "discrete step" + ("" if quick else ", N=75 750, m=2000, 48 bits")
    _require_same(what, torch.equal(ours(), op(state, embeddings, sampled, impl="torch")))
    # The published form takes a quarter of a minute a call.
    yield Race(what, "test_discrete_step[75750]", "the published form, which is not run here", ours, None)


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _random_codes(count: int, bits: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, bits // 8), dtype=np.uint8)


def _searches(quick: bool) -> Iterator[Race]:
    """Hamming search"""
    for bits, count in ((64, 256), (48, 1000)):
        yield _search(bits, 32 if quick else count, 2000 if quick else 1_000_000, f"test_topk[{bits}-{count}-100]")


def _search(bits: int, count: int, items: int, name: str) -> Race:
    """The 100 nearest of random codes to random queries."""
    k, codes, queries = 100, _random_codes(items, bits, seed=bits), _random_codes(count, bits, seed=1)
    index, few = HammingIndex(bits), queries[:64]
    index.add(codes)
    what = f"{count} queries, {bits} bits, k = {k}, {_grouped(items)} items, a query"
    expected = functional.hamming_topk(torch.from_numpy(few[:2]), torch.from_numpy(codes), k, impl="torch")
    pairs = zip(index.search(few[:2], k), expected, strict=True)
    _require_same(what, all(np.array_equal(found, right) for found, right in pairs))
    flat, against = _faiss(codes, k), "faiss IndexBinaryFlat"
    if flat is None:
        return Race(what, name, f"{against}, which is not installed", lambda: index.search(queries, k), None, count)
    # Whichever way faiss breaks ties, the distances are the same.
    _require_same(what, np.array_equal(flat(few)[0], index.search(few, k).distances))
    baseline = functools.partial(flat, few)
    return Race(what, name, against, lambda: index.search(queries, k), baseline, count, len(few))


def _faiss(codes: np.ndarray, k: int) -> Callable[[np.ndarray], Any] | None:
    """faiss's exact search in the faster of its two ways, or None where it is not installed."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)

    def seconds(use_heap: bool) -> float:
        index.use_heap = use_heap
        begun = time.perf_counter()
        index.search(codes[:32], k)
        return time.perf_counter() - begun

    index.use_heap = min((True, False), key=seconds)
    return lambda queries: index.search(queries, k)


def _average_precision(quick: bool) -> Iterator[Race]:
    """mean average precision"""
    count, items, classes = (50, 300, 20) if quick else (5_794, 5_994, 200)
    rng = np.random.default_rng(4)
    codes_q, codes_x = (torch.from_numpy(_random_codes(n, 48, seed)) for seed, n in enumerate((count, items)))
    labels_q, labels_x = (torch.from_numpy(rng.integers(0, classes, n)) for n in (count, items))
    signs_q, signs_x = (unpack_codes(codes, 48).float() for codes in (codes_q, codes_x))
    few = min(count, 64)

    def ours() -> metrics.RetrievalMetrics:
        return metrics.retrieval(codes_q, codes_x, labels_q, labels_x, bits=48)

    def loop() -> list[float]:
        """As retrieval code computes it: a product, an argsort and a mean, one query at a time."""
        found = []
        for query, label in zip(signs_q[:few], labels_q, strict=False):
            order = (0.5 * (48 - signs_x @ query)).argsort(stable=True)
            ranks = 1 + (labels_x[order] == label).nonzero()[:, 0]
            found.append(float((torch.arange(1, len(ranks) + 1) / ranks).double().mean()) if len(ranks) else 0.0)
        return found

    what = f"mAP, {_grouped(count)} queries, {_grouped(items)} items, 48 bits, a query"
    # The loop's ranks are whole numbers; only the mean over them is rounded, in float32.
    _require_same(what, np.allclose(ours().per_query_ap[:few], loop(), rtol=1e-5))
    yield Race(what, "test_mean_average_precision[cub-stable]", "a loop of argsorts", ours, loop, count, few)


ROWS = (_attention, _hashing_loss, _discrete_step, _searches, _average_precision)
