"""The engine by itself, without Python around it, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import subprocess

import pytest
from sanitized import build_program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build_program(tmp_path_factory.mktemp("engine"), "csrc/hamming/*.cpp", "engine_check.cpp")


def test_engine_equals_brute_force_under_sanitizers(program):
    run = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all as expected" in run.stdout
