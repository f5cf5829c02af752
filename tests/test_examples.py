"""The examples run, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def _run(name: str, *arguments: str) -> str:
    if not EXAMPLES.is_dir():
        pytest.skip("needs the repository's examples/")
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
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
