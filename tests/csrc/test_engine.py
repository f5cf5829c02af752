"""The engine by itself, without Python around it, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++").split()
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{ROOT / 'csrc'}"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if not (ROOT / "csrc").is_dir() or shutil.which(COMPILER[0]) is None:
        pytest.skip("needs the sources and a C++ compiler")
    folder = tmp_path_factory.mktemp("engine")
    flags = FLAGS + (SANITIZERS if _links(folder, SANITIZERS) else [])
    sources = [*sorted((ROOT / "csrc/hamming").glob("*.cpp")), Path(__file__).with_name("engine_check.cpp")]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def build(source, target):
        subprocess.run([*COMPILER, *flags, "-c", source, "-o", target], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, sources, objects))
    subprocess.run([*COMPILER, *flags, *objects, "-o", folder / "engine_check", "-pthread"], check=True)
    return folder / "engine_check"


def _links(folder, flags):
    """Whether the compiler's sanitizer libraries are installed."""
    trial = folder / "trial.cpp"
    trial.write_text("int main() {}\n")
    return subprocess.run([*COMPILER, *flags, trial, "-o", folder / "trial"], capture_output=True).returncode == 0


def test_engine_equals_brute_force_under_sanitizers(program):
    run = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "all as expected" in run.stdout
