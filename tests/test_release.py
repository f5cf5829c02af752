"""What a release is made of: one version, types for its users, and the files that tell of it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import agmh_fast
from agmh_fast import _version

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_version_has_one_source():
    assert agmh_fast.__version__ == _version.__version__
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    assert 'version = { attr = "agmh_fast._version.__version__" }' in project
    written = [
        path.relative_to(ROOT).as_posix()
        for folder, kinds in (("agmh_fast", "*.py"), ("csrc", "*.[ch]*"), (".", "*.py"), (".", "*.toml"))
        for path in ((ROOT / folder).glob(kinds) if folder == "." else (ROOT / folder).rglob(kinds))
        if re.search(rf"""version\w*\s*=\s*["']{re.escape(_version.__version__)}""", path.read_text())
    ]
    assert written == ["agmh_fast/_version.py"]


def test_what_repeats_the_version_is_in_step():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [_version.__version__]
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest is not None
    assert latest[1] == _version.__version__


def test_the_package_says_that_it_is_typed():
    assert (Path(agmh_fast.__file__).parent / "py.typed").is_file()
    assert '"agmh_fast": ["py.typed"]' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("name", agmh_fast.__all__)
def test_every_public_name_is_described_and_typed(name):
    value = getattr(agmh_fast, name)
    if not callable(value):
        return
    assert inspect.getdoc(value), name
    called = value.__init__ if inspect.isclass(value) else value
    for parameter in inspect.signature(called).parameters.values():
        typed = parameter.annotation is not inspect.Parameter.empty or parameter.name == "self"
        assert typed or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD), f"{name}({parameter})"


def test_a_wheel_is_checked_with_readmes_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "release"))
    import distributions

    text = "```python\none\n```\n\n```sh\nno\n```\n\n```python\ntwo\n```\n"
    assert distributions.examples(text) == ["one\n", "two\n"]


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_tagged_wheel_takes_the_place_of_the_raw_one_and_of_an_earlier(monkeypatch, tmp_path, repeats):
    monkeypatch.syspath_prepend(str(ROOT / "release"))
    import distributions

    raw, fine = tmp_path / "a-1-linux.whl", tmp_path / "a-1-manylinux_2_28.whl"

    def repair(*command):
        folder = Path(command[command.index("-w") + 1])
        (folder / fine.name).write_bytes(command[-1].read_bytes())

    monkeypatch.setattr(distributions.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(distributions.sys, "platform", "linux")
    monkeypatch.setattr(distributions, "run", repair)
    for number in range(repeats):
        raw.write_text(f"build {number}")
        assert distributions.tagged(raw) == fine
    assert fine.read_text() == f"build {repeats - 1}"
    assert list(tmp_path.iterdir()) == [fine]


def test_a_wheel_that_gets_no_other_tag_stays(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "release"))
    import distributions

    raw = tmp_path / "a-1-linux.whl"
    raw.write_text("build")
    monkeypatch.setattr(distributions.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(distributions, "run", lambda *command: None)
    assert distributions.tagged(raw) == raw
    assert list(tmp_path.iterdir()) == [raw]


def test_the_citation_has_what_readers_of_it_need():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license", "references"} <= set(citation)
    assert citation["license"] in (ROOT / "pyproject.toml").read_text()
    assert "2311.06067" in citation["references"][0]["notes"]


@pytest.mark.skipif(not TEMPLATES, reason="a source distribution has no templates of issues")
def test_issue_templates_ask_for_something():
    yaml = pytest.importorskip("yaml")
    forms = [yaml.safe_load(path.read_text()) for path in TEMPLATES if path.name != "config.yml"]
    assert len(forms) >= 3
    for form in forms:
        assert {"name", "description", "body"} <= set(form)
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(part["attributes"]["label"] for part in form["body"])
        assert any(part.get("validations", {}).get("required") for part in form["body"])
