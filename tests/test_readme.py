"""README has an example of each part (`test_pages.py` runs them), and its numbers are those of the recorded runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_is_an_example_of_each():
    for name in ("af.AGMH(", "af.HammingIndex(", "af.metrics.retrieval(", "agmh_fast.official"):
        assert any(name in example for example in EXAMPLES), name


def test_the_tables_are_the_recorded_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(README.parent / "bench"))
    import performance
    import readme

    assert readme.main(["--check"]) == 0, "make readme"
    assert readme.main(["--check"], performance.PAGE, performance.measured) == 0, "make readme"


def test_rows_that_lose_to_another_are_named(monkeypatch):
    monkeypatch.syspath_prepend(str(README.parent / "bench"))
    import readme

    lost = {"a": {"group": "sums", "speedup": 0.5}, "b": {"group": "sums", "speedup": 0.25}}
    others = {"c": {"group": "products", "speedup": 2.0}, "d": {"group": "loops"}}
    assert readme._slower(lost | others) == "Not faster than others: sums (0.5×, 0.25×)."
    assert readme._slower(others) == ""


@pytest.mark.parametrize("text", ["", "{begin}", "{begin}{end}{begin}"])
def test_a_readme_without_its_marks_is_refused(text, monkeypatch):
    monkeypatch.syspath_prepend(str(README.parent / "bench"))
    import readme

    with pytest.raises(ValueError, match="once each"):
        readme.written(text.format(begin=readme.BEGIN, end=readme.END))
