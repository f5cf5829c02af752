"""The engine by itself, without Python around it, under the sanitizers, and random lives of indexes."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

import pytest
from sanitized import THREAD, build_program, links

# `make fuzz` gives more time and another start.
SECONDS = os.environ.get("AGMH_FAST_FUZZ_SECONDS", "3")
SEED = os.environ.get("AGMH_FAST_FUZZ_SEED", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engine")


def _run(*command, timeout=300):
    run = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_engine_equals_brute_force_under_sanitizers(folder):
    program = build_program(folder, "csrc/hamming/*.cpp", "engine_check.cpp", "index_check.cpp")
    assert "all as expected" in _run(program)


def test_engine_equals_brute_force_on_an_emulated_arm_processor(tmp_path):
    compiler, emulator = "aarch64-linux-gnu-g++", shutil.which("qemu-aarch64")
    if shutil.which(compiler) is None or emulator is None:
        pytest.skip("needs a compiler and an emulator for Arm (Debian: g++-aarch64-linux-gnu, qemu-user)")
    program = build_program(
        tmp_path,
        "csrc/hamming/*.cpp",
        "engine_check.cpp",
        "index_check.cpp",
        sanitizers=(),
        compiler=(compiler, "-static"),
    )
    said = _run(emulator, program)
    assert "all as expected" in said
    assert "neon" in said


def test_random_lives_of_an_index(folder):
    program = build_program(folder, "csrc/hamming/*.cpp", "fuzz_index.cpp", "fuzz_driver.cpp")
    said = _run(program, f"-max_total_time={SECONDS}", f"-seed={SEED}", timeout=300 + float(SECONDS))
    assert "none failed" in said
    assert int(said.split()[0]) > 100


@pytest.mark.skipif(not os.environ.get("AGMH_FAST_SANITIZE"), reason="takes a minute: make sanitize")
def test_threads_do_not_race(tmp_path):
    if not links(tmp_path, THREAD):
        pytest.skip("needs the compiler's thread sanitizer")
    program = build_program(tmp_path, "csrc/hamming/*.cpp", "engine_check.cpp", "index_check.cpp", sanitizers=THREAD)
    # The thread sanitizer of older compilers does not find its way in randomly laid out memory.
    still = ["setarch", platform.machine(), "--addr-no-randomize"] if shutil.which("setarch") else []
    assert "all as expected" in _run(*still, program, "threads", timeout=600)
