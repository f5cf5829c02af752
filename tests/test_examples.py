"""The examples run, and do what they say."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from command_line import finished

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def _run(name: str, *arguments: str, start: tuple[str, ...] = ()) -> str:
    """What the example prints; `start` comes between Python and its path."""
    if not EXAMPLES.is_dir():
        pytest.skip("needs the repository's examples/")
    command = [sys.executable, *start, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    run = finished(command, 300, environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_script_written_for_the_published_code_trains():
    small = ("--iterations", "2", "--epochs", "1", "--size", "32", "--samples", "16", "--images", "6")
    said = _run("published_script.py", *small)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", said)]
    assert len(losses) == 2
    # Codes start as normal numbers, as published, and gamma is 200: hundreds, not ones.
    assert all(0 < loss < 1000 for loss in losses)
    assert 0 <= float(re.search(r"^mAP (\S+)$", said, re.MULTILINE)[1]) <= 1


def test_a_million_codes_are_searched():
    said = _run("search_a_million.py", "--items", "100000")
    assert "NumPy agrees" in said
    assert len(re.findall(r"^.+: [\d.]+ ms$", said, re.MULTILINE)) == 6


def test_text_is_found_by_its_meaning():
    pytest.importorskip("wordllama", reason="pip install 'agmh-fast[text]'")
    said = _run("binary_text.py", "wait until another thread is done", "-k", "5")
    assert "threading.Thread.join" in said
    at_once, among_more = map(float, re.findall(r"nearest by bits: ([\d.]+)", said))
    assert 0.5 < at_once < among_more
    assert among_more > 0.9


def test_a_folder_of_images_is_learned(tmp_path):
    said = _run("own_folder.py", "--output", str(tmp_path / "run"))
    chance = float(re.search(r"chance is ([\d.]+)", said)[1])
    assert float(re.search(r"^mAP ([\d.]+)", said, re.MULTILINE)[1]) > 2 * chance
    assert said.count("train/") == 5
    assert (tmp_path / "run" / "final.safetensors").is_file()


def test_shards_answer_as_one_index(tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    said = _run("sharded_search.py", "--items", "2000", "--output", str(tmp_path / "shards"), start=torchrun)
    assert "2 ranks: the same answers as from one index" in said
    assert (tmp_path / "shards" / "manifest.json").is_file()


def test_every_example_is_run_and_listed():
    tests = Path(__file__).read_text()
    listed = (EXAMPLES / "README.md").read_text()
    shown = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests
        assert f"]({path.name})" in listed
        assert f"{{literalinclude}} ../examples/{path.name}\n" in shown
