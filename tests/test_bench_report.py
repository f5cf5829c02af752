"""bench/report.py: every kind of row, pictures, and what counts as worse than before."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from agmh_fast.cli.reports import origin

BENCH = Path(__file__).resolve().parents[1] / "bench"
MACHINE = {
    "datetime": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "cpu": "Some CPU",
    "python": "3.12.1",
    "torch": "2.14.1",
    "cores": 2,
    "gpu": None,
}
# One of each kind: a race of which only medians are known, a search beside its limit, a kernel beside everyone.
RACE = {"name": "test_race", "group": "races", "median_s": 0.25, "iqr_s": 0.05, "rounds": 7}
RACE |= {"speedup": 4.0, "against": "published", "contestants": {"ours": {"p50_s": 0.25}, "published": {"p50_s": 1.0}}}
RACE |= {"targets": [{"figure": "speedup", "least": 5, "measured": 4.0, "met": False}]}
SEARCH = {
    "name": "test_topk[64-256-100]",
    "group": "searches",
    "median_s": 256e-6,
    "iqr_s": 0.01,
    "rounds": 5,
    "speedup": 10.0,
    "against": "faiss",
    "limit": "distance loop",
    "of_limit": 0.5,
    "gpairs_per_s": 12.0,
    "bits": 64,
    "queries": 256,
    "k": 100,
    "items": 10**6,
    "scale": 1,
    "bytes": 8 * 10**6,
    "operations": 256 * 10**6,
    "operation": "pair",
    "copy_gb_per_s": 10.0,
    "targets": [{"figure": "of_limit", "least": 1.0, "measured": 0.5, "met": False}],
    "contestants": {
        "agmh_fast": {"p20_s": 0.9e-6, "p50_s": 1e-6, "p80_s": 1.1e-6, "times_ours": 1.0},
        "limit": {"p20_s": 0.5e-6, "p50_s": 0.5e-6, "p80_s": 0.5e-6, "times_ours": 0.5},
        "faiss": {"p20_s": 9e-6, "p50_s": 1e-5, "p80_s": 1.3e-5, "times_ours": 10.0},
    },
}
FEWER = SEARCH | {"name": "test_items[10000-256]", "items": 10**4}
KERNEL = {
    "name": "test_kernel[forward]",
    "group": "kernels",
    "median_s": 0.002,
    "iqr_s": 0.0001,
    "rounds": 5,
    "speedup": 3.0,
    "against": "published",
    "limit": "products",
    "of_limit": 0.25,
    "gflop_per_s": 50.0,
    "gb_per_s": 5.0,
    "bytes": 10**7,
    "operations": 10**8,
    "operation": "flop",
    "copy_gb_per_s": 10.0,
    "product_gflop_per_s": 200.0,
    "not_measured": {"published, torch.compile": "no compiler"},
    "contestants": {
        "cpu": {"p20_s": 0.002, "p50_s": 0.002, "p80_s": 0.002, "peak_bytes": 10**6},
        "published": {"p20_s": 0.006, "p50_s": 0.006, "p80_s": 0.006, "peak_bytes": 10**7},
    },
}
RUN = MACHINE | {"benchmarks": [RACE, SEARCH, FEWER, KERNEL]}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.fixture
def report():
    import report

    return report


def changed(name, **values):
    """RUN with some values of a row replaced."""
    run = copy.deepcopy(RUN)
    next(bench for bench in run["benchmarks"] if bench["name"] == name).update(values)
    return run


@pytest.fixture
def files(tmp_path):
    """files(run) -> path of its JSON."""
    count = iter(range(10))

    def write(run):
        path = tmp_path / f"run{next(count)}.json"
        path.write_text(json.dumps(run))
        return path

    return write


def test_every_kind_of_row_is_read():
    import rows

    race, search, _, kernel = rows.rows(RUN)
    assert (race.seconds, race.speedup, race.against, race.missed) == (0.25, 4.0, "published", ("speedup >= 5",))
    assert race.spread == pytest.approx(0.1)
    assert (search.seconds, search.speedup, search.against) == (1e-6, 10.0, "faiss")
    assert (search.share, search.limit, search.rate) == (0.5, "distance loop", "12 Gpairs/s")
    assert search.missed == ("of_limit >= 1",)
    assert search.spread == pytest.approx(0.1 + 0.2)
    assert (kernel.seconds, kernel.speedup, kernel.against, kernel.share) == (0.002, 3.0, "published", 0.25)
    assert (kernel.limit, kernel.rate) == ("products", "50 GFLOP/s")
    assert kernel.peaks == {"cpu": 10**6, "published": 10**7}


def test_the_report_has_a_table_and_pictures(report, files, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    source = files(RUN)
    assert report.main([str(source), "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "No GPU: nothing here was measured on one." in text
    assert (
        "| test_topk[64-256-100] | 1 µs | 10× faiss | 50% of distance loop | 12 Gpairs/s |  | of_limit >= 1 |" in text
    )
    assert "cpu 1 MB, published 10 MB" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img ") == 7
    assert (
        '<td>250 ms</td><td>4× published</td><td class="words">speedup &gt;= 5</td>'.replace(' class="words"', "")
        in page
    )
    assert "Not measured: published, torch.compile (no compiler)." in text
    for picture in ("speedups", "shares", "memory", "roofline-flops-cpu", "roofline-pairs-cpu", "queries", "items"):
        assert f"![{picture} of run0](run0-{picture}.svg)" in text
        assert (tmp_path / "out" / f"run0-{picture}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "out" / f"run0-{picture}.svg").read_text()


@pytest.mark.parametrize(
    ("facts", "cell"),
    [
        ({"slowdown": 1.0993}, "slowdown 1.1"),
        ({"avx512_of_best": 0.71, "generic_of_best": 0.25}, "avx512 71% of best, generic 25% of best"),
        ({}, ""),
    ],
)
def test_a_row_without_a_baseline_has_what_it_is_compared_with(facts, cell, report):
    import rows

    alone = {key: value for key, value in RACE.items() if key not in ("speedup", "against", "contestants", "targets")}
    assert f"| test_race | 250 ms | {cell} |" in report.table(rows.rows({"benchmarks": [alone | facts]}))


def test_a_picture_that_a_run_has_nothing_for_is_left_out(report, files, tmp_path):
    pytest.importorskip("matplotlib")
    assert report.main([str(files(MACHINE | {"benchmarks": [RACE]})), "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("run0-*.png")} == {"run0-speedups.png"}


def test_rooflines_are_of_what_was_measured():
    import plot_roofline

    products = plot_roofline.roofline(RUN["benchmarks"], "flop")
    assert (products.bytes_per_s, products.most) == (1e10, 2e11)
    assert products.points == {"kernel": [(10, 5e10)]}
    bits = plot_roofline.roofline(RUN["benchmarks"], "pair")
    # The loop is twice as fast as the search: 12 / 0.5 Gpairs of 64 bits.
    assert bits.most == pytest.approx(24e9 * 64)
    ((x, y), _) = bits.points["64 bits"]
    assert (x, y) == pytest.approx((32 * 64, 12e9 * 64))
    # A trial at another scale has no place in it.
    assert plot_roofline.roofline([SEARCH | {"scale": 0.01}], "pair") is None


def test_a_device_has_a_roofline_of_its_own(report, files, tmp_path):
    pytest.importorskip("matplotlib")
    import plot_roofline

    on_gpu = {"device": "cuda", "copy_gb_per_s": 4000.0}
    counts = {"popcounts_per_s": 1e12, "limit": "memory or population counts"}
    run = RUN | {"benchmarks": [*RUN["benchmarks"], KERNEL | on_gpu, SEARCH | on_gpu | counts | {"name": "test_gpu"}]}
    for kind, most in (("flop", 2e11), ("pair", 32e12)):
        found = plot_roofline.roofline(run["benchmarks"], kind, "cuda")
        assert (found.bytes_per_s, found.most) == (4e12, most)
        assert [len(points) for points in found.points.values()] == [1]
        assert plot_roofline.roofline(run["benchmarks"], kind) == plot_roofline.roofline(RUN["benchmarks"], kind)
    assert report.main([str(files(run)), "--output", str(tmp_path)]) == 0
    drawn = {path.name for path in tmp_path.glob("run0-roofline-*.png")}
    assert drawn == {f"run0-roofline-{kind}s-{device}.png" for kind in ("flop", "pair") for device in ("cpu", "cuda")}


def test_time_by_items_has_a_line_where_there_are_several():
    import plot_items

    assert plot_items.times(RUN["benchmarks"]) == {256: [(10**4, 1e-6, 0.5e-6), (10**6, 1e-6, 0.5e-6)]}
    assert plot_items.times([SEARCH]) == {}


def test_a_run_on_a_gpu_names_it(report):
    text = report.machine(MACHINE | {"gpu": "NVIDIA H100"})
    assert text.startswith("NVIDIA H100, ")
    assert "No GPU" not in text


def test_a_run_that_others_gave_way_to_says_so(report):
    assert "priority" not in report.machine(MACHINE | {"real_time": None})
    urgent = MACHINE | {"real_time": "SCHED_FIFO"}
    for described in (report.machine(urgent), origin(urgent)):
        assert "Some CPU, 2 cores at real-time priority (SCHED_FIFO), " in described


@pytest.mark.parametrize(
    ("row", "values", "verdict", "status"),
    [
        # The races' spread is 0.1 each.
        ("test_race", {"speedup": 3.3}, "within noise", 0),
        ("test_race", {"speedup": 3.1}, "WORSE", 1),
        ("test_race", {"speedup": 5.0}, "better", 0),
        # Slower, but so was the baseline.
        ("test_race", {"contestants": {"ours": {"p50_s": 0.5}, "published": {"p50_s": 2.0}}}, "within noise", 0),
        # Without a baseline the time decides.
        ("test_race", {"contestants": {"ours": {"p50_s": 0.4}}, "speedup": None}, "WORSE", 1),
        # No spread at all: a tenth is noise.
        ("test_kernel[forward]", {"speedup": 2.8}, "within", 0),
        ("test_kernel[forward]", {"speedup": 2.6}, "WORSE", 1),
    ],
)
def test_what_counts_as_worse(report, files, capsys, row, values, verdict, status):
    new, old = changed(row, **values), copy.deepcopy(RUN)
    for run in (new, old):
        for bench in run["benchmarks"]:
            if values.get("speedup", 1) is None and bench["name"] == row:
                del bench["speedup"], bench["against"]
    assert report.main([str(files(new)), "--against", str(files(old))]) == status
    out, err = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if line.startswith(f"| {row} |") and ("noise" in line)]
    assert verdict in line
    assert (row in err) == bool(status)


def test_new_and_gone_rows_are_told_and_are_not_worse(report, files, capsys):
    new, old = copy.deepcopy(RUN), copy.deepcopy(RUN)
    new["benchmarks"] = [RACE]
    old["benchmarks"] = [SEARCH]
    assert report.main([str(files(new)), "--against", str(files(old))]) == 0
    out = capsys.readouterr().out
    assert "| test_race | | 250 ms | | new |" in out
    assert "| test_topk[64-256-100] | 1 µs | | | gone |" in out


NO_RUNS = [
    "not JSON",
    "[]",
    '{"benchmarks": []}',
    '{"benchmarks": [1]}',
    '{"benchmarks": [{"name": "x"}]}',
    json.dumps(MACHINE | {"benchmarks": [{"name": "x"}]}),
    '{"machine_info": {"cpu": {}}, "commit_info": {}, "benchmarks": [{"name": "x"}]}',
]


@pytest.mark.parametrize("content", NO_RUNS)
def test_what_is_no_run_is_one_line(report, tmp_path, capsys, content):
    source = tmp_path / "run.json"
    source.write_text(content)
    assert report.main([str(source)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"agmh-fast: {source}: ")


@pytest.mark.parametrize("content", NO_RUNS)
def test_what_is_no_run_is_neither_recorded_nor_drawn(tmp_path, capsys, content):
    import plot_hamming
    import record

    source, result = tmp_path / "run.json", tmp_path / "result"
    source.write_text(content)
    for command in (record.main, plot_hamming.main):
        assert command([str(source), str(result)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"agmh-fast: {source}: ")
        assert not result.exists()


def test_a_run_that_cannot_be_read_costs_the_others_nothing(report, files, tmp_path, capsys):
    paths = [str(tmp_path / "none.json"), str(files({"benchmarks": []})), str(files(RUN))]
    assert report.main(paths) == 2
    out, err = capsys.readouterr()
    assert [line.startswith("## ") for line in out.splitlines()].count(True) == 1
    assert "| test_race | 250 ms |" in out
    assert [path in line for path, line in zip(paths, err.splitlines(), strict=False)] == [True, True]
    assert len(err.splitlines()) == 2


def test_runs_of_one_name_are_told_apart_by_their_folders(report, tmp_path, capsys):
    paths = [tmp_path / name for name in ("a/run.json", "b/run.json", "b/other.json")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(RUN))
    assert report.main([str(path) for path in paths]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")]
    assert headings == ["## a-run", "## b-run", "## other"]
    (tmp_path / "c/a").mkdir(parents=True)
    (tmp_path / "c/a/run.json").write_text(json.dumps(RUN))
    assert report.main([str(paths[0]), str(tmp_path / "c/a/run.json")]) == 2
    assert "another run has the name a-run" in capsys.readouterr().err


def test_runs_of_the_demo_are_recorded_with_their_commit(tmp_path, monkeypatch, capsys):
    import record_demo

    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "summary.json").write_text(json.dumps({"seed": seed, "map": 0.9}))
    result, runs = tmp_path / "cpu-demo.json", [str(tmp_path / str(seed)) for seed in (0, 1)]
    states = iter(["", "abc123", " M agmh_fast/demo.py", "", "abc123"])
    monkeypatch.setattr(record_demo, "_git", lambda *_: next(states))
    assert record_demo.main([str(result), *runs]) == 0
    kept = json.loads(result.read_text())
    assert [run["seed"] for run in kept] == [0, 1]
    assert {run["commit"] for run in kept} == {"abc123"}
    assert all(len(run["date"]) == len("2026-01-31") for run in kept)
    result.unlink()
    assert record_demo.main([str(result), *runs]) == 2
    assert "the working tree has changes" in capsys.readouterr().err
    assert record_demo.main([str(result), str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
    assert not result.exists()
