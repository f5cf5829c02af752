"""What nvcc makes of the CUDA kernels: no spills, no calls, as many population counts as were written."""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sanitized import ROOT

SOURCES = sorted((ROOT / "csrc/hamming/cuda").glob("*.cu"))
ARCHITECTURES = (80, 90, 100)
# Population counts of a pair, and items of a lane, by the words of a code.
COUNTS = {1: (1, 4), 2: (2, 4), 4: (3, 2), 8: (4, 1)}


def _toolkit() -> Path:
    """The folder of a CUDA toolkit. A `nvcc` on PATH may be a wrapper, so that it is not asked."""
    named = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    for folder in [*named, *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]:
        if (folder / "bin/nvcc").exists():
            return folder
    pytest.skip("needs nvcc: no CUDA_HOME and no /usr/local/cuda-*")


def _disassembler() -> Path:
    triton = pytest.importorskip("triton", reason="needs the cuobjdump that comes with Triton")
    return Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """For each source: what the assembler said, its machine code, and the names of the assembler's own subroutines."""
    toolkit, disassembler = _toolkit(), _disassembler()
    folder = tmp_path_factory.mktemp("machine_code")
    known = subprocess.run([toolkit / "bin/nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    if any(f"compute_{arch}" not in known for arch in ARCHITECTURES):
        pytest.skip(f"needs an nvcc that knows the architectures {ARCHITECTURES}")
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]

    def build(source: Path) -> tuple[str, str, set[str]]:
        made = folder / f"{source.stem}.o"
        flags = ["-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", *targets]
        said = subprocess.run([toolkit / "bin/nvcc", *flags, "-c", source, "-o", made], capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        code, symbols = (
            subprocess.run([disassembler, what, made], capture_output=True, text=True, check=True).stdout
            for what in ("-sass", "-elf")
        )
        return said.stdout + said.stderr, code, set(re.findall(r"__cuda_sm\d+_\w+", symbols))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((source.stem for source in SOURCES), pool.map(build, SOURCES), strict=True))


def _functions(code: str) -> list[tuple[str, str, str]]:
    """(architecture, name, instructions) of each kernel."""
    found = []
    for part in re.split(r"\n\s*arch = ", code)[1:]:
        arch = part.split("\n", 1)[0].strip()
        found += [(arch, *function.split("\n", 1)) for function in part.split("Function : ")[1:]]
    return found


@pytest.mark.parametrize("name", [source.stem for source in SOURCES if source.stem != "device"])
def test_no_kernel_spills_or_calls(compiled, name):
    said, code, subroutines = compiled[name]
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    functions = _functions(code)
    assert len(spills) == len(functions) > 0
    assert {arch for arch, *_ in functions} == {f"sm_{arch}" for arch in ARCHITECTURES}
    assert set(spills) == {("0", "0")}
    # Before sm_90, lanes that are out of step meet in subroutines; those that are in step pass them by.
    assert all(re.fullmatch(r"__cuda_sm70_(vote|shfl|match|warp)sync\w*", name) for name in subroutines)
    for arch, kernel, instructions in functions:
        assert arch == "sm_80" or re.search(r"\bCALL\b", instructions) is None, kernel


@pytest.mark.parametrize("words", COUNTS)
def test_population_counts_are_as_many_as_were_written(compiled, words):
    of_pair, items = COUNTS[words]
    seen = 0
    for _, kernel, instructions in _functions(compiled["append"][1]):
        if (form := re.search(rf"append_kernelILi{words}ELi(\d)E", kernel)) is None:
            continue
        # Each pair, and two for each vote on what to append.
        expected = int(form[1]) * items * (of_pair + 2)
        assert len(re.findall(r"\bPOPC\b", instructions)) == expected, kernel
        seen += 1
    assert seen == 2 * len(ARCHITECTURES)
