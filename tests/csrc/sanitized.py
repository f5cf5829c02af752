"""Builds a check program out of plain C++ sources, with the sanitizers where the compiler has them."""

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


def build_program(folder: Path, pattern: str, check: str) -> Path:
    """The program of the sources that match `pattern` and of `check`, a file beside this one; skips without sources or
    compiler.
    """
    if not (ROOT / "csrc").is_dir() or shutil.which(COMPILER[0]) is None:
        pytest.skip("needs the sources and a C++ compiler")
    flags = FLAGS + (SANITIZERS if _links(folder, SANITIZERS) else [])
    sources = [*sorted(ROOT.glob(pattern)), Path(__file__).with_name(check)]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def build(source: Path, target: Path) -> None:
        subprocess.run([*COMPILER, *flags, "-c", source, "-o", target], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, sources, objects))
    program = folder / Path(check).stem
    subprocess.run([*COMPILER, *flags, *objects, "-o", program, "-pthread"], check=True)
    return program


def _links(folder: Path, flags: list[str]) -> bool:
    """Whether the compiler's sanitizer libraries are installed."""
    trial = folder / "trial.cpp"
    trial.write_text("int main() {}\n")
    return subprocess.run([*COMPILER, *flags, trial, "-o", folder / "trial"], capture_output=True).returncode == 0
