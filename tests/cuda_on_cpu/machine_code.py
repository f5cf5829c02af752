"""What nvcc makes of CUDA sources, without a GPU: registers, spills, functions, instructions, occupancy."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from sanitized import COMPILER, ROOT

ARCHITECTURES = (80, 86, 90, 100)
# sm_86 has no instruction of use here that sm_80 lacks: both are assembled from the same code.
_TARGETS = ["arch=compute_80,code=[sm_80,sm_86]", "arch=compute_90,code=sm_90", "arch=compute_100,code=sm_100"]
_KERNEL = re.compile(r"\d([a-z_]+_kernel)(?:I((?:L[ib]\d+E|h|t|i)+)E)?E")


@dataclass(frozen=True)
class Usage:
    """What the assembler gave a kernel: registers of a thread, bytes of static shared memory, bytes spilled."""

    registers: int
    shared: int
    spilled: int


@dataclass(frozen=True)
class MachineCode:
    """What became of one source."""

    binary: Path
    usage: dict[tuple[int, str, str], Usage]  # by architecture, kernel, template arguments as mangled
    subroutines: dict[int, set[str]]  # by architecture: functions that are no kernels

    def instructions(self) -> dict[tuple[int, str, str], str]:
        """The disassembled kernels."""
        found = {}
        for part in re.split(r"\n\s*arch = sm_", _cuobjdump("-sass", self.binary))[1:]:
            for function in part.split("Function : ")[1:]:
                name, code = function.split("\n", 1)
                found[(int(part.split("\n", 1)[0]), *_kernel(name))] = code
        return found


def toolkit() -> Path:
    """The folder of a CUDA toolkit. A `nvcc` on PATH may be a wrapper, so that it is not asked."""
    named = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    for folder in [*named, *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]:
        if (folder / "bin/nvcc").exists():
            return folder
    pytest.skip("needs nvcc: no CUDA_HOME and no /usr/local/cuda-*")


def release() -> str:
    """The version of the toolkit's nvcc, as 13.0."""
    said = subprocess.run([toolkit() / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    return re.findall(r"release (\d+\.\d+)", said)[0]


def compile_all(folder: Path, sources: Sequence[Path]) -> dict[str, MachineCode]:
    """Every source, by its stem. Device code alone is compiled, the largest files first."""
    nvcc = toolkit() / "bin/nvcc"
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    if any(f"compute_{arch}" not in known for arch in ARCHITECTURES):
        pytest.skip(f"needs an nvcc that knows the architectures {ARCHITECTURES}")
    _disassembler()
    flags = ["-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", *(f"-gencode={target}" for target in _TARGETS)]

    def build(source: Path) -> MachineCode:
        made = folder / f"{source.stem}.fatbin"
        said = subprocess.run([nvcc, *flags, "-fatbin", source, "-o", made], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        return MachineCode(made, _usage(said.stdout + said.stderr), _subroutines(made))

    longest_first = sorted(sources, key=lambda source: -source.stat().st_size)
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(build, longest_first)
        return {source.stem: code for source, code in zip(longest_first, made, strict=True)}


def blocks(folder: Path, asked: Sequence[tuple[int, Usage, int, int]]) -> list[int]:
    """Blocks that a multiprocessor holds at once, by NVIDIA's own calculator, for each (architecture, usage, dynamic
    shared bytes, threads of a block).
    """
    program = folder / "occupancy"
    source = Path(__file__).with_name("occupancy.cpp")
    subprocess.run([*COMPILER, "-std=c++20", f"-I{toolkit() / 'include'}", source, "-o", program], check=True)
    lines = [
        f"{arch} {usage.registers} {usage.shared} {dynamic} {threads}\n" for arch, usage, dynamic, threads in asked
    ]
    said = subprocess.run([program], input="".join(lines), capture_output=True, text=True, check=True)
    return [int(line) for line in said.stdout.split()]


def _disassembler() -> Path:
    triton = pytest.importorskip("triton", reason="needs the cuobjdump that comes with Triton")
    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def _cuobjdump(what: str, binary: Path) -> str:
    return subprocess.run([_disassembler(), what, binary], capture_output=True, text=True, check=True).stdout


def _kernel(mangled: str) -> tuple[str, str]:
    """Name and template arguments."""
    found = _KERNEL.search(mangled)
    assert found is not None, mangled
    return found[1], found[2] or ""


def _usage(said: str) -> dict[tuple[int, str, str], Usage]:
    """From what `ptxas -v` says."""
    found = {}
    for part in said.split("Compiling entry function '")[1:]:
        name, arch = re.match(r"(\w+)' for 'sm_(\d+)'", part).groups()
        spilled = sum(map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part).groups()))
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[(int(arch), *_kernel(name))] = Usage(registers, int(shared[1]) if shared else 0, spilled)
    return found


def _subroutines(binary: Path) -> dict[int, set[str]]:
    """Whatever could be called; kernels are no such functions."""
    found: dict[int, set[str]] = {}
    for part in re.split(r"\n\s*arch = sm_", _cuobjdump("-symbols", binary))[1:]:
        names = found.setdefault(int(part.split("\n", 1)[0]), set())
        for line in part.splitlines():
            if line.startswith("STT_FUNC") and "STO_ENTRY" not in line:
                names.add(line.split()[-1])
    return found
