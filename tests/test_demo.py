"""The demo at small scale: its numbers against a second computation from the files it left, and its report."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import agmh_fast as af
from agmh_fast import InputError, demo, train
from agmh_fast.train import silent

BITS = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    summary = demo.run(folder, bits=BITS, seed=3, quick=True, device="cpu", progress=silent)
    return folder, summary


def test_the_summary_is_what_was_returned_and_names_what_is_there(made):
    folder, summary = made
    assert json.loads((folder / "summary.json").read_text()) == summary
    needed = {"bits", "map_untrained", "map", "seconds_train", "num_database", "num_queries", "search_ms_per_query"}
    assert needed <= set(summary)
    assert (summary["bits"], summary["seed"], summary["quick"]) == (BITS, 3, True)
    assert 0 < summary["seconds_train"] < summary["seconds_total"]
    assert summary["search_ms_per_query"] > 0
    for name in summary["files"].values():
        assert (folder / name).stat().st_size > 0


def test_map_from_the_saved_model_and_index_is_the_map_of_the_summary(made):
    folder, summary = made
    data = demo.make_data(3, quick=True)
    assert (len(data.database), len(data.query)) == (summary["num_database"], summary["num_queries"])
    model = train.load_run(folder / demo.TRAINING, "final")
    index = af.HammingIndex.load(folder / demo.INDEX)
    queries = model.encode(data.query.load(torch.arange(len(data.query)), None)).numpy()
    assert np.array_equal(index.codes, train.load_codes(folder / demo.TRAINING, "final").numpy())
    # The whole ranking as the index gives it, which is by (distance, position).
    ranking = index.search(queries, len(index)).ids
    hits = data.database.labels.numpy()[ranking] == data.query.labels.numpy()[:, None]
    precision = hits.cumsum(1) / np.arange(1, len(index) + 1)
    expected = ((precision * hits).sum(1) / hits.sum(1)).mean()
    # Means of at most 84 fractions in float64.
    assert summary["map"] == pytest.approx(expected, abs=1e-12)
    assert summary["map"] == summary["map_by_ties"]["stable"]
    ties = summary["map_by_ties"]
    assert ties["pessimistic"] <= ties["expected"] <= ties["optimistic"]


def test_the_untrained_map_is_that_of_the_first_weights(made):
    folder, summary = made
    data = demo.make_data(3, quick=True)
    config = demo.settings(folder, BITS, 3, quick=True, resume=False, device="cpu")
    from agmh_fast.train.models import build_model

    model = build_model(config, 1)
    codes = [af.unpack_codes(train.encode_set(model, split), BITS) for split in (data.query, data.database)]
    expected = reference_map(*codes, data.query.labels, data.database.labels)
    assert summary["map_untrained"] == pytest.approx(expected, abs=1e-12)


def reference_map(queries, database, query_labels, database_labels):
    distance = (queries[:, None] != database[None]).sum(2)
    hits = query_labels[:, None] == database_labels
    order = distance.argsort(dim=1, stable=True)
    hits = hits.gather(1, order).double()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return float(((precision * hits).sum(1) / hits.sum(1)).mean())


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset") and value]


def test_the_report_is_self_contained_and_shows_what_was_measured(made):
    folder, summary = made
    text = (folder / demo.REPORT).read_text()
    page = _Page()
    page.feed(text)
    assert page.tags.count("img") == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    shown = re.sub(r"<[^>]+>", " ", re.sub(r'src="[^"]*"', "", text))
    for value in (summary["map"], summary["map_untrained"], summary["map_by_ties"]["expected"]):
        assert f"{value:,.4g}" in shown
    assert summary["definition"].split(";")[0] in shown
    for name in ("losses", "map", "gallery", "attention"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_replaces_the_first(made, tmp_path):
    summary = made[1]
    again = demo.run(tmp_path, bits=BITS, seed=3, quick=True, device="cpu", progress=silent)
    once_more = demo.run(tmp_path, bits=BITS, seed=3, quick=True, device="cpu", progress=silent)
    for key in ("map", "map_untrained", "map_by_ties", "map_database_encoded", "steps"):
        assert summary[key] == again[key] == once_more[key]


def test_a_run_that_is_stopped_leaves_nothing_of_an_earlier_one(made, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(made[0], folder)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run(folder, bits=BITS, seed=4, quick=True, device="cpu", progress=stop)
    assert {path.name for path in folder.rglob("*.*")} & {"summary.json", "report.html"} == set()
    assert list(folder.rglob("*.safetensors")) == []


@pytest.mark.parametrize("changes", [{"bits": 0}, {"seed": -1}, {"device": "abacus"}])
def test_bad_settings_leave_no_folder(tmp_path, changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        demo.run(tmp_path / "out", quick=True, **changes)
    assert not (tmp_path / "out").exists()
