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
