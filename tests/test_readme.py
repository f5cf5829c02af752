"""Every Python example of the README runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_is_an_example_of_each():
    for name in ("af.AGMH(", "af.HammingIndex(", "af.metrics.retrieval(", "agmh_fast.official"):
        assert any(name in example for example in EXAMPLES), name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[-1].split("=")[0].strip()[:30])
def test_example_runs(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})


RESULTS = README.parent / "bench" / "results"


def test_the_status_table_is_the_recorded_run():
    text = README.read_text()
    for bench in json.loads((RESULTS / "cpu-training.json").read_text())["benchmarks"]:
        if "speedup" in bench:
            assert f"| {bench['median_s'] * 1e3:.3g} ms, {bench['speedup']:.3g}× |" in text, bench["name"]
        else:
            assert f"{bench['median_s'] * 1e3:.2g}" in text, bench["name"]
    runs = sorted(json.loads((RESULTS / "cpu-demo.json").read_text()), key=lambda run: run["seed"])
    assert "mAP " + ", ".join(f"{run['map']:.3f}" for run in runs) in text


def test_the_table_of_searches_is_the_recorded_run():
    text = README.read_text()
    run = {bench["name"]: bench for bench in json.loads((RESULTS / "cpu-hamming.json").read_text())["benchmarks"]}
    searches = re.findall(r"^\| (\d+) queries, (\d+) bits, k = (\d+) \| (.*) \|$", text, re.MULTILINE)
    assert len(searches) >= 10
    rows = {f"test_topk[{bits}-{queries}-{k}]": said for queries, bits, k, said in searches}
    rows["test_latency[numpy-8.0]"] = re.search(r"^\| one query, .* \| (.*) \|$", text, re.MULTILINE)[1]
    for name, said in rows.items():
        ours, speedup = run[name]["contestants"]["agmh_fast"]["p50_s"], run[name]["speedup"]
        assert said == f"{ours * 1e6:.3g} µs a query, {speedup:.3g}×", name
    ours = run["test_short_codes[10000000-1.0]"]["contestants"]["agmh_fast"]["p50_s"]
    assert f"by table: {ours * 1e6:.2g} µs a query" in text
    # "From 64 queries on, searches of 128 bits and more beat the loop"
    for name, bench in run.items():
        if found := re.fullmatch(r"test_(?:share_of_the_limit\[(\d+)-(\d+)|topk\[(\d+)-(\d+)-100)\]", name):
            bits, queries = (int(group) for group in found.groups() if group)
            assert bench["of_limit"] >= 1 or bits < 128 or queries < 64, name
