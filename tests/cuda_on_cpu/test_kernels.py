"""The CUDA kernels of the Hamming engine, run on the CPU, against the CPU engine."""

from __future__ import annotations

import pytest
from emulated import HERE, emulate, run, sanitizer
from sanitized import ADDRESS, ROOT

KERNELS = sorted((ROOT / "csrc/hamming/cuda").glob("*.cu"))
ENGINE = sorted((ROOT / "csrc/hamming").glob("*.cpp"))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    flags = sanitizer(folder, ADDRESS)
    return emulate(folder / "kernels", [*KERNELS, *ENGINE, HERE / "kernels_check.cpp"], *flags)


@pytest.mark.parametrize("backward", [False, True])
def test_kernels_equal_the_cpu_engine(program, backward):
    said = run(program, backward=backward)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "all as expected" in said.stdout
