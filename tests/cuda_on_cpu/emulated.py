"""Builds programs whose CUDA kernels run on the CPU, with this folder's cuda_runtime.h."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sanitized import COMPILER, FLAGS, ROOT, THREAD, links

HERE = Path(__file__).parent


def objects(folder: Path, sources: Sequence[Path], *flags: str) -> list[Path]:
    """The objects of `.cu` and `.cpp` sources, made in `folder`."""
    if not (ROOT / "csrc").is_dir() or shutil.which(COMPILER[0]) is None or platform.machine() != "x86_64":
        pytest.skip("needs the sources and a C++ compiler on x86-64")
    command = [*COMPILER, *FLAGS, "-Wno-unknown-pragmas", "-g1", f"-I{HERE}", *flags, "-x", "c++", "-c"]

    def build(source: Path) -> Path:
        made = folder / f"{source.name}.o"
        subprocess.run([*command, source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(build, sources))


def link(target: Path, parts: Sequence[Path], *flags: str) -> Path:
    """The program `target` of these objects."""
    subprocess.run([*COMPILER, *flags, *parts, "-o", target, "-pthread"], check=True)
    return target


def run(program: Path, *arguments: str, backward: bool = False) -> subprocess.CompletedProcess[str]:
    """What the program said. `backward` runs the threads of each block in the other order."""
    # The thread sanitizer of older compilers does not find its way in randomly laid out memory.
    still = ["setarch", platform.machine(), "--addr-no-randomize"] if shutil.which("setarch") else []
    environment = {**os.environ, **({"CUDA_ON_CPU_BACKWARD": "1"} if backward else {})}
    command = [*still, program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def sanitizer(folder: Path, flags: Sequence[str]) -> Sequence[str]:
    """These flags; skips where the compiler lacks the sanitizer."""
    if not links(folder, flags):
        pytest.skip(f"needs the compiler's {' '.join(flags)}")
    return flags


def thread_sanitizer(folder: Path) -> Sequence[str]:
    """The thread sanitizer's flags, where it is asked for: it takes minutes."""
    if not os.environ.get("AGMH_FAST_SANITIZE"):
        pytest.skip("takes minutes: make sanitize")
    return sanitizer(folder, THREAD)
