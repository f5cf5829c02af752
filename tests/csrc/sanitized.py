"""Builds a check program out of plain C++ sources, with the sanitizers where the compiler has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++").split()
FLAGS = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{ROOT / 'csrc'}"]
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread", "-Wno-error")  # GCC warns that it does not follow fences


def build_program(
    folder: Path,
    pattern: str,
    *checks: str,
    sanitizers: Sequence[str] = ADDRESS,
    compiler: Sequence[str] = COMPILER,
) -> Path:
    """The program of the sources that match `pattern` and of `checks`, files beside this one; objects that lie in
    `folder` already are taken. Skips without sources or compiler, and builds without sanitizers where there are none.
    """
    if not (ROOT / "csrc").is_dir() or shutil.which(compiler[0]) is None:
        pytest.skip("needs the sources and a C++ compiler")
    flags = FLAGS + (list(sanitizers) if links(folder, sanitizers) else [])
    sources = [*sorted(ROOT.glob(pattern)), *(Path(__file__).with_name(check) for check in checks)]
    objects = [folder / f"{source.stem}.o" for source in sources]

    def build(source: Path, target: Path) -> None:
        if not target.exists():
            subprocess.run([*compiler, *flags, "-c", source, "-o", target], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(build, sources, objects))
    program = folder / Path(checks[0]).stem
    subprocess.run([*compiler, *flags, *objects, "-o", program, "-pthread"], check=True)
    return program


def links(folder: Path, flags: Sequence[str]) -> bool:
    """Whether the compiler's sanitizer libraries are installed."""
    trial = folder / "trial.cpp"
    trial.write_text("int main() {}\n")
    return subprocess.run([*COMPILER, *flags, trial, "-o", folder / "trial"], capture_output=True).returncode == 0
