"""`agmh-fast bench`: it times only what was shown right, and stands beside what was recorded."""

from __future__ import annotations

import json

import pytest
from command_line import run

from agmh_fast import recorded, selfbench
from agmh_fast.cli.reports import write_bench
from agmh_fast.errors import InputError


@pytest.fixture(autouse=True)
def _one_round(monkeypatch):
    pytest.importorskip("agmh_fast._engine", reason="needs the compiled engine")
    monkeypatch.setattr(selfbench, "ROUNDS", 1)


def test_a_quick_bench_times_every_row(capsys, tmp_path):
    code, out, err = run(capsys, "bench --quick --json")
    assert code == 0
    found = json.loads(out)
    assert len(found["rows"]) == 6
    assert all(row["seconds"] > 0 and row["recorded_seconds"] is None for row in found["rows"])
    assert err.count("measuring: ") == 5
    report = tmp_path / "bench.html"
    code, out, _ = run(capsys, f"bench --quick --report {report}")
    assert code == 0
    assert out.count("not recorded") == 6
    page = report.read_text()
    assert page.count("<td>not recorded</td>") == 12
    assert "these numbers mean nothing" in out
    assert "these numbers mean nothing" in page
    assert "<dl>" not in page
    assert '<th scope="row">on a GPU</th><td>not measured</td>' in page
    assert page.count("<img ") == 1


def test_every_row_has_a_recorded_one():
    past = recorded.rows(*recorded.names("cpu"))
    names = [race.name for make in selfbench.ROWS for race in make(True)]
    assert len(names) == 6
    for name in names:
        assert recorded.seconds(past[name]) > 0
        assert past[name]["speedup"] > 1
        assert past[name]["run"]["gpu"] is None


def test_a_row_stands_beside_the_recorded_one():
    race = selfbench.Race("a sum", "row", "another", lambda: None, lambda: None, 4, 2)
    past = {"median_s": 8.0, "speedup": 3.0, "contestants": {"agmh_fast": {"p50_s": 2.0}}}
    row = selfbench._measured(race, past)
    assert (row.recorded_seconds, row.recorded_speedup) == (2.0, 3.0)
    assert row.speedup is not None
    assert selfbench._measured(selfbench.Race("a sum", "row", "-", lambda: None, None), None).speedup is None


def test_runs_of_one_commit_are_all_named(monkeypatch, tmp_path):
    about = {"commit": "0123456789", "cpu": "Some CPU", "cores": 2, "datetime": "2026-01-02"}
    past = {name: {"median_s": 1.0, "run": about | {"name": f"cpu-{name}"}} for name in ("a", "b")}
    races = [selfbench.Race(f"a sum, {name}", name, "-", lambda: None, None) for name in past]
    monkeypatch.setattr(recorded, "rows", lambda *names: past)
    monkeypatch.setattr(selfbench, "ROWS", [lambda quick: races])
    found = selfbench.run()
    assert [run["name"] for run in found["recorded"]] == ["cpu-a", "cpu-b"]
    write_bench(str(tmp_path / "page.html"), found)
    page = (tmp_path / "page.html").read_text()
    assert "recorded in cpu-a<" in page
    assert "recorded in cpu-b<" in page
    assert "these numbers mean nothing" not in page
    # Ours was measured here, the recorded speed-up is not there to be shown.
    assert page.count("<td>not recorded</td>") == 2


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.9996, "1 s"),
        (0.9996e-3, "1 ms"),
        (0.9994e-3, "999 µs"),
        (1234.5, "1234 s"),
        (999.7, "1000 s"),
        (1.5e-6, "1.5 µs"),
        (2e-9, "0.002 µs"),
    ],
)
def test_a_time_has_the_unit_of_what_it_is_rounded_to(seconds, shown):
    assert recorded.duration(seconds) == shown


def test_what_is_wrong_is_not_timed(monkeypatch):
    from agmh_fast.reference import hashing

    true = hashing.pairwise_loss
    monkeypatch.setattr(hashing, "pairwise_loss", lambda *given: true(*given) * 1.01)
    with pytest.raises(selfbench.WrongResult, match="hashing loss"):
        list(selfbench._hashing_loss(True))


def test_an_installation_without_results_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(recorded, "__file__", str(tmp_path / "agmh_fast" / "recorded.py"))
    with pytest.raises(InputError, match="recorded results are missing"):
        recorded.rows("cpu-training")
    (tmp_path / "agmh_fast" / "results").mkdir(parents=True)
    with pytest.raises(InputError, match=r"cannot read the recorded results .*cpu-training\.json"):
        recorded.load("cpu-training")
