"""The compiled peak response by itself, for each instruction set, under address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess

import pytest
from sanitized import build_program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build_program(tmp_path_factory.mktemp("attention"), "csrc/attention/*.cpp", "attention_check.cpp")


@pytest.mark.parametrize("isa", ["generic", "popcnt", "avx512"])
def test_peak_response_equals_the_formulas_under_sanitizers(program, isa):
    run = subprocess.run(
        [program], env=os.environ | {"AGMH_FAST_ISA": isa}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all as expected" in run.stdout
