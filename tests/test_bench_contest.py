"""What a row of the benches records, of whatever was timed, and which rows a quick run has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture
def contest(monkeypatch):
    pytest.importorskip("agmh_fast._engine", reason="needs the compiled engine")
    monkeypatch.syspath_prepend(str(BENCH))
    import contest

    monkeypatch.setattr(contest, "copy_rate", lambda device: {"cpu": 8e9, "cuda": 4e12}[device.type])
    return contest


@pytest.fixture
def recorded(contest):
    """recorded(seconds, ...) -> extra_info of a row whose sides took so long, and the lines that it said."""

    def run(seconds, units, *arguments, device="cpu", **options):
        lines = []
        benchmark = SimpleNamespace(extra_info={})
        where = torch.device(device)
        stage = contest.Stage(benchmark, lambda entries, rounds, budget: seconds, lines.append, "test_row", where)
        facts = options.pop("facts", {})
        sides = {name: contest.Side(lambda: None, units[name], facts=facts.get(name, {})) for name in seconds}
        contest.compete(stage, sides, *arguments, **options)
        return benchmark.extra_info, lines

    return run


def test_a_row_has_ratio_rates_and_share_of_a_side_that_is_the_limit(contest, recorded):
    seconds = {"ours": [2.0, 2.0, 4.0], "slow": [9.0, 8.0, 8.0], "slower": [30.0] * 3, "loop": [1.0] * 3}
    work = contest.Work.search(queries=10, items=1000, bits=12, results=50)
    info, (line,) = recorded(
        seconds, {"ours": 10, "slow": 10, "slower": 5, "loop": 10}, work, ["slow", "slower"],
        contest.Limit("a loop", "loop"), [contest.Target("speedup", least=5.0)], lambda medians: {"own": 7.0}, bits=12,
    )  # fmt: skip
    # Codes of 12 bits are two bytes, a result 12.
    assert info["bytes"] == 1010 * 2 + 50 * 12
    assert (info["operations"], info["operation"]) == (10_000, "pair")
    assert (info["against"], info["speedup"], info["limit"], info["of_limit"]) == ("slow", 4.0, "a loop", 0.5)
    assert info["gpairs_per_s"] == pytest.approx(10_000 / 2 / 1e9, rel=1e-3)
    assert info["gb_per_s"] == pytest.approx(info["bytes"] / 2 / 1e9, rel=1e-3)
    assert (info["own"], info["bits"], info["copy_gb_per_s"]) == (7.0, 12, 8.0)
    assert info["targets"] == [{"figure": "speedup", "least": 5.0, "measured": 4.0, "met": False}]
    assert info["contestants"]["slower"] | {"p20_s": 0, "p80_s": 0} == {
        "p20_s": 0, "p50_s": 6.0, "p80_s": 0, "units": 5, "times_ours": 30.0
    }  # fmt: skip
    assert {"scale", "threads", "isa"} <= set(info)
    assert "speedup 4 MISSES >= 5" in line
    assert "own 7" in line


def test_the_devices_own_time_counts_where_it_is_known(contest, recorded):
    seconds = {"ours": [2.0, 2.0], "theirs": [4.0, 4.0]}
    work = contest.Work(bytes=4e9, operations=6e9, operation="flop", images=8)
    info, _ = recorded(
        seconds, {"ours": 1, "theirs": 1}, work, "theirs", contest.Limit("a copy", seconds=0.5),
        facts={"ours": {"graph_p50_s": 1.0, "peak_bytes": 5}},
    )  # fmt: skip
    assert (info["gb_per_s"], info["gflop_per_s"], info["images_per_s"], info["of_limit"]) == (4.0, 6.0, 8.0, 0.5)
    # Both sides are launched by the host.
    assert info["speedup"] == 2.0
    assert info["contestants"]["ours"]["peak_bytes"] == 5
    assert "targets" not in info


@pytest.mark.parametrize(("device", "copied"), [("cpu", 8.0), ("cuda", 4000.0)])
def test_a_row_has_the_memory_of_the_device_that_it_runs_on(contest, recorded, device, copied):
    info, _ = recorded({"ours": [2.0, 2.0]}, {"ours": 1}, contest.Work(bytes=8), device=device)
    assert (info["device"], info["copy_gb_per_s"]) == (device, copied)


def test_the_slower_of_bytes_and_products_is_the_roof(contest, monkeypatch):
    import limits

    monkeypatch.setattr(limits, "copy_rate", lambda device: 10.0)
    monkeypatch.setattr(limits, "product_rate", lambda device, dtype: 100.0)
    cpu = torch.device("cpu")
    assert limits.roof(contest.Work(20, 100, "flop"), cpu, torch.float32) == contest.Limit("copy bandwidth", None, 2.0)
    assert limits.roof(contest.Work(20, 300, "flop"), cpu, torch.float32) == contest.Limit("products", None, 3.0)
    assert limits.roof(contest.Work(20), cpu, torch.float32).seconds == 2.0


def test_a_quick_run_is_a_part_of_a_full_one():
    if not hasattr(pytest.importorskip("numpy"), "bitwise_count"):
        pytest.skip("needs NumPy 2")
    pytest.importorskip("pytest_benchmark")

    def collected(*options):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "bench", *options]
        run = subprocess.run(command, capture_output=True, text=True, cwd=BENCH.parent, env={**os.environ})
        assert run.returncode == 0, run.stdout + run.stderr
        return {line for line in run.stdout.splitlines() if "::" in line}

    quick, full = collected(), collected("--full")
    assert quick < full
    files = {line.partition("::")[0] for line in full}
    assert files == {line.partition("::")[0] for line in quick}
    assert files == {f"bench/{path.name}" for path in BENCH.glob("test_*.py")}
