"""Choosing an implementation: auto, by name, forced."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import agmh_fast as af
from agmh_fast.errors import InputError
from agmh_fast.ops.registry import Op


@pytest.fixture
def op() -> Op:
    op = Op("double")
    op.register("fast", obstacle=lambda x: None if x > 0 else "x is not positive")(lambda x: ("fast", 2 * x))
    op.register("reference")(lambda x: ("reference", x + x))
    return op


def test_auto_takes_the_first_that_can(op):
    assert op(3) == ("fast", 6)
    assert op(-3) == ("reference", -6)
    choice = op.explain(-3)
    assert (choice.chosen, choice.passed_over) == ("reference", {"fast": "x is not positive"})
    assert str(choice) == "double: reference; not fast: x is not positive"


def test_an_implementation_asked_for_is_used_or_raises(op):
    assert op(3, impl="reference") == ("reference", 6)
    with pytest.raises(InputError, match="impl='fast' cannot serve double: x is not positive"):
        op(-3, impl="fast")
    with pytest.raises(InputError, match="impl='triton' is not known to double; choose from auto, fast, reference"):
        op(3, impl="triton")


def test_explain_names_the_known_ops():
    codes = torch.zeros(2, 1, dtype=torch.uint8)
    assert af.explain("hamming_topk", codes, codes).chosen in ("cpu", "torch")
    assert af.explain("hamming_topk", codes.numpy(), codes.numpy()) == af.explain("hamming_topk", codes, codes)
    assert af.explain("hamming_stable_ranking", codes, codes).chosen in ("cpu", "torch")
    with pytest.raises(InputError, match="op must be one of"):
        af.explain("nonsense")


def test_explain_says_which_arguments_it_is_to_be_given():
    for op in ("attention_dispersion", "update_database_codes"):
        for args in ((), (torch.zeros(2, 1),)):
            with pytest.raises(InputError, match=f"args must begin as those of functional.{op} do"):
                af.explain(op, *args)


def test_the_environment_forces_the_reference():
    code = """
import agmh_fast as af, torch
codes = torch.zeros(2, 1, dtype=torch.uint8)
assert af.explain("hamming_topk", codes, codes).chosen == "reference"
assert af.explain("attention_dispersion").chosen == "reference"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={"AGMH_FAST_IMPL": "reference", "PATH": ""}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
