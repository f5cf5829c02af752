"""Running the command line in tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import agmh_fast as af
from agmh_fast.cli import main

ROOT = Path(af.__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "agmh_fast"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

QUICK_TRAIN = (
    "train --bits 8 --num-descriptors 2 --descriptor-dim 4 --memory-size 2 --num-samples 8 --batch-size 4 --select test"
)


def run(capsys, line):
    """Exit code, stdout and stderr of a command line."""
    code = main(line.split())
    out, err = capsys.readouterr()
    return code, out, err


def finished(line, timeout, environment=ENVIRONMENT):
    """What a process did, its output as text; one that takes longer than so many seconds fails with its output."""
    try:
        return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        said = "\n".join(str(part and part.decode(errors="replace")) for part in (late.stdout, late.stderr))
        raise AssertionError(f"not done in {timeout} s: {line}\n{said}") from None


def require_mistake(capsys, line, text, prints_splits=False):
    """The command line must fail with exit code 2 and one line; training may name its splits before."""
    try:
        code, out, err = run(capsys, line)
    except SystemExit as stop:
        code, (out, err) = stop.code, capsys.readouterr()
    if prints_splits:
        err = "".join(said for said in err.splitlines(keepends=True) if ", SHA-256 " not in said)
    assert code == 2
    assert out == ""
    assert err.startswith("agmh-fast: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert text in err
