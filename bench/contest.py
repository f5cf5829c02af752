"""A row of the benches: who takes part, what work is done, and what is recorded of it, the same for every bench.

`extra_info` of a row:

    contestants                   by name: p20_s, p50_s, p80_s of one of a call's `units` of work, times_ours and, where
                                  they are known, peak_bytes, errors, graph_p50_s, parts_s
    against, speedup              the baseline, and how many times our time it takes
    bytes, operations, operation  what a call of ours must move at least, and compute
    gb_per_s, gpairs_per_s, …     rates of those
    limit, of_limit               what cannot be beaten, or not by much, measured in the same run, and our share of it
    device, scale, threads, isa   how it was run
    copy_gb_per_s                 of a plain copy on that device
    targets, targets_met          what the row is to reach, and whether it does
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from limits import Limit, Work, copy_rate
from measuring import Timed, percentiles
from targets import SCALE, Target, described, judged

import agmh_fast as af
from agmh_fast import _engine

# Seconds that a row's rounds may take, unless five take longer.
BUDGET = 1.5 * min(SCALE, 1)
# Seconds between two timed calls: the threads of OpenMP, which faiss and torch use, go on spinning some milliseconds
# after their work, and whoever is timed next must not share the processor with them.
SETTLE = 0.01

Medians = Mapping[str, float]


def cases(names: str, quick: Sequence[Any], full: Sequence[Any] = (), ids: Any = None) -> pytest.MarkDecorator:
    """Rows of every run, and rows that only `--full` adds: (value, …) each, or one value for one name."""
    single = "," not in names
    marked = [pytest.param(*((case,) if single else case), marks=pytest.mark.full) for case in full]
    return pytest.mark.parametrize(names, [*quick, *marked], ids=ids)


@dataclass(frozen=True)
class Side:
    """One side of a race: what is called, the units of work of a call, and what is known of it besides its time.

    run() is timed, or run(prepare()) with the preparation left out of the time. Of a side with facts["graph_p50_s"],
    the device's own time, rates and shares are taken from that.
    """

    run: Callable[..., object]
    units: int = 1
    prepare: Callable[[], object] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def timed(self) -> Timed:
        if self.prepare is not None:
            return Timed(self.run, self.prepare)
        return Timed(lambda _: self.run(), prepare=lambda: time.sleep(SETTLE))


@dataclass(frozen=True)
class Stage:
    """What pytest gives a row, and the device that the row runs on."""

    benchmark: Any
    take_turns: Callable[..., dict[str, list[float]]]
    say: Callable[[str], None]
    row: str
    device: torch.device


def compete(
    stage: Stage,
    sides: Mapping[str, Side],
    work: Work,
    against: str | Sequence[str] | None = None,
    limit: Limit | None = None,
    targets: Sequence[Target] = (),
    figures: Callable[[Medians], dict[str, float]] = lambda medians: {},
    rounds: int | None = None,
    budget: float = BUDGET,
    **facts: Any,
) -> None:
    """Time all sides in turns; record and say seconds a unit, the figures they give, and the verdicts on those.

    The first side is ours, and `work` that of one call of it; of several sides that it is `against` the fastest counts.
    figures(medians) gives the row's own numbers, by name, of seconds a unit. Everyone must have shown before that they
    compute the same.
    """
    taken = stage.take_turns({name: side.timed() for name, side in sides.items()}, rounds, budget)
    times = {name: [second / sides[name].units for second in taken[name]] for name in sides}
    medians = {name: statistics.median(each) for name, each in times.items()}
    ours, side = next(iter(sides.items()))
    own = side.facts.get("graph_p50_s", medians[ours] * side.units)
    rivals = [against] if isinstance(against, str) else list(against or ())
    baseline = min(rivals, key=medians.__getitem__, default=None)
    measured = {"speedup": medians[baseline] / medians[ours]} if baseline is not None else {}
    measured |= work.rates(own)
    if limit is not None:
        least = limit.seconds if limit.side is None else medians[limit.side] * side.units
        measured["of_limit"] = least / own
    measured = {name: float(f"{value:.4g}") for name, value in (measured | figures(medians)).items()}
    verdicts = judged(targets, measured)
    stage.benchmark.extra_info.update(
        facts,
        device=stage.device.type,
        scale=SCALE,
        threads=af.get_num_threads(),
        isa=_engine.cpu_info()["isa"],
        **work.facts(),
        **measured,
        **verdicts,
    )
    if baseline is not None:
        stage.benchmark.extra_info["against"] = baseline
    if limit is not None:
        stage.benchmark.extra_info["limit"] = limit.name
    stage.benchmark.extra_info["copy_gb_per_s"] = copy_rate(stage.device) / 1e9
    stage.benchmark.extra_info["contestants"] = {
        name: percentiles(each)
        | {"units": sides[name].units, "times_ours": medians[name] / medians[ours]}
        | dict(sides[name].facts)
        for name, each in times.items()
    }
    figured = {figure["figure"] for figure in verdicts.get("targets", ())}
    clauses = [*([described(verdicts["targets"])] if verdicts else [])]
    clauses += [f"{name} {value:.3g}" for name, value in measured.items() if name not in figured]
    beside = ", ".join(f"{name} {median * 1e6:.3g}" for name, median in medians.items())
    stage.say(f"\n{stage.row}: {', '.join(clauses)} (µs a unit: {beside})")
