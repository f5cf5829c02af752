"""What the benches are made of, small: everyone in a race computes the same, memory is counted as it is used, and what
is kept of a run is what it measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "bench"
SMALL = {"BATCH": 2, "CHANNELS": 16, "SIDE": 3}


@pytest.fixture
def bench(monkeypatch):
    """The benches' own modules, at small shapes."""
    monkeypatch.syspath_prepend(str(BENCH))
    import contestants
    import hashing_workloads
    import measuring
    import workloads

    for name, value in SMALL.items():
        monkeypatch.setattr(workloads, name, value)
    return SimpleNamespace(
        measuring=measuring, workloads=workloads, hashing=hashing_workloads, PUBLISHED=contestants.PUBLISHED
    )


@pytest.mark.parametrize(
    "name", ["attention_dispersion.functional", "attention_dispersion.official", "descriptor", "hashing_loss"]
)
def test_everyone_computes_the_same(bench, name):
    workload = bench.workloads.WORKLOADS[name](torch.device("cpu"), torch.float32)
    assert {bench.PUBLISHED, "torch"} <= set(workload.contestants)
    exact = workload.exact()
    for rival, contestant in workload.contestants.items():
        results = contestant.results()
        assert set(results) == set(exact)
        for key, expected in exact.items():
            assert expected.dtype == torch.float64
            error = float((results[key].double() - expected).norm() / expected.norm())
            assert error < 1e-4, (rival, key)
    forward, backward, both = (workload.minimal_bytes(direction) for direction in ("forward", "backward", "both"))
    assert both == forward + backward
    assert forward > 0
    assert backward > 0
    products = workload.products()
    assert products["both"] == products["forward"] + products["backward"]
    # BatchNorm, ReLU and means have none.
    assert (products["forward"] > 0) == (products["backward"] > 0) == (name != "descriptor")


def test_everyone_encodes_the_same(bench):
    workload = bench.workloads.WORKLOADS["encoding"](torch.device("cpu"), torch.float32)
    assert {bench.PUBLISHED, "torch"} == set(workload.contestants)
    (expected,) = workload.exact().values()
    assert expected.dtype == torch.float64
    for contestant in workload.contestants.values():
        (logits,) = contestant.results().values()
        assert float((logits.double() - expected).norm() / expected.norm()) < 1e-5
    # A convolution of 64 to 6 · 16 channels at one position, and Θ, of two images.
    assert workload.products()["forward"] == 2 * 2 * (64 * 96 + 96 * 48)


def test_everyone_finds_the_same_codes(bench):
    workload = bench.hashing.discrete_step(2500, 24, torch.device("cpu"), torch.float32)
    (expected,) = workload.exact().values()
    for rival, contestant in workload.contestants.items():
        (codes,) = contestant.results().values()
        # The published form sums in float32: a decision near zero may differ.
        wrong = float((codes != expected).float().mean())
        assert wrong <= (1e-3 if rival == bench.PUBLISHED else 0), rival


def test_the_published_sizes_have_the_bytes_of_the_table(bench, monkeypatch):
    """kernels/peak_response/README.md, bfloat16: F is 38.5 MB and h 9.6; each is read or written so many times."""
    for name, value in {"BATCH": 32, "CHANNELS": 512, "SIDE": 14}.items():
        monkeypatch.setattr(bench.workloads, name, value)
    forward, backward = bench.workloads._attention_bytes(2)
    assert forward == pytest.approx(2 * 38.5e6 + 3 * 9.6e6, rel=0.03)
    assert backward == pytest.approx(2 * 38.5e6 + 5 * 9.6e6, rel=0.06)


def test_percentiles(bench):
    assert bench.measuring.percentiles([5, 1, 2, 3, 4, 6]) == {"p20_s": 2, "p50_s": 3.5, "p80_s": 5}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_peak_memory_is_what_was_allocated():
    """40 MB at a time and 80 MB at once; what was freed before does not count."""
    code = f"""
import sys, torch
sys.path.insert(0, {str(BENCH)!r})
from measuring import resident_peak, return_memory_at_once
return_memory_at_once()
x = torch.ones(10_000_000)
print(resident_peak(lambda: x + 1), resident_peak(lambda: (x + 1) * 2), resident_peak(lambda: x + 1))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    peaks = [int(word) / 1e6 for word in run.stdout.split()]
    assert peaks == pytest.approx([40, 80, 40], abs=2)


def test_a_preparation_is_not_timed(bench):
    calls = []
    timed = bench.measuring.Timed(lambda value: calls.append(value), prepare=lambda: len(calls))
    once = timed.once()
    assert not calls
    bench.measuring.Clock(torch.device("cpu")).seconds(once)
    assert calls == [0]


# The parts of pytest-benchmark's JSON that are read, and some that are not.
RUN = {
    "datetime": "2026-01-02T03:04:05+00:00",
    "commit_info": {"id": "0123abc", "dirty": False, "branch": "main"},
    "machine_info": {
        "cpu": {"brand_raw": "Some CPU", "count": 2},
        "python_version": "3.12.1",
        "agmh_fast": {"version": "0.1.0", "torch": "2.14.1", "gpu": None},
    },
    "benchmarks": [
        {
            "name": "test_race",
            "group": "a race",
            "stats": {"median": 0.25, "iqr": 0.5, "rounds": 3, "min": 0.1, "data": [0.1, 0.25, 0.6]},
            "extra_info": {"speedup": 4.0, "contestants": {"torch": {"p50_s": 0.25}}},
        }
    ],
}


@pytest.fixture
def record(monkeypatch, tmp_path):
    """record(change, *options) -> exit status and what was written of RUN with one part changed."""
    monkeypatch.syspath_prepend(str(BENCH))
    import record

    def run(change, *options):
        source, result = tmp_path / "run.json", tmp_path / "result.json"
        source.write_text(json.dumps(RUN | change))
        status = record.main([str(source), str(result), *options])
        return status, json.loads(result.read_text()) if result.exists() else None

    return run


def test_a_recorded_run_has_machine_commit_and_every_row(record, capsys):
    status, kept = record({})
    assert status == 0
    assert kept == {
        "datetime": "2026-01-02T03:04:05+00:00",
        "commit": "0123abc",
        "cpu": "Some CPU",
        "python": "3.12.1",
        "version": "0.1.0",
        "torch": "2.14.1",
        "gpu": None,
        "benchmarks": [
            {
                "name": "test_race",
                "group": "a race",
                "median_s": 0.25,
                "iqr_s": 0.5,
                "rounds": 3,
                "speedup": 4.0,
                "contestants": {"torch": {"p50_s": 0.25}},
            }
        ],
    }
    assert capsys.readouterr().out == "test_race: 250 ms, 4x\n"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"commit_info": {"id": "0123abc", "dirty": True}}, "uncommitted"),
        ({"commit_info": {"id": "unversioned"}}, "--commit"),
        ({"benchmarks": []}, "no benchmarks"),
    ],
    ids=str,
)
def test_a_run_that_proves_nothing_is_not_recorded(record, capsys, change, why):
    assert record(change) == (2, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


def test_a_run_outside_of_a_repository_is_given_its_commit(record):
    assert record({"commit_info": {"id": "unversioned"}}, "--commit", "0123abc")[1]["commit"] == "0123abc"


PARTS_RUN = {
    "name": "test_step",
    "scale": 1,
    "contestants": {
        name: {"parts_s": {"data": 0.1, "backbone": seconds, "optimiser": 0.2}}
        for name, seconds in (("published", 3.0), ("ours", 2.0))
    },
}


@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_is_drawn_by_its_parts(monkeypatch, tmp_path, recorded):
    monkeypatch.syspath_prepend(str(BENCH))
    import plot_training_step

    run = {"benchmarks": [PARTS_RUN if recorded else {"name": "test_step", "extra_info": PARTS_RUN}]}
    assert plot_training_step.parts_of(run)["ours"]["backbone"] == 2
    source, picture = tmp_path / "run.json", tmp_path / "out.png"
    source.write_text(json.dumps(run))
    assert plot_training_step.main([str(source), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("row", [{}, PARTS_RUN | {"scale": 0.1}, {"scale": 1, "contestants": {"ours": {"p50_s": 1}}}])
def test_a_run_without_a_full_step_is_not_drawn(monkeypatch, tmp_path, capsys, row):
    monkeypatch.syspath_prepend(str(BENCH))
    import plot_training_step

    source, picture = tmp_path / "run.json", tmp_path / "out.png"
    source.write_text(json.dumps({"benchmarks": [{"name": "test_step", "extra_info": row}]}))
    assert plot_training_step.main([str(source), str(picture)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not picture.exists()
