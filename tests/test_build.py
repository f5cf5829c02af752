"""The build on odd machines: one line instead of a traceback, and nothing half made that passes for done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SILENT = "#!/bin/sh\ncase $* in *--version*) echo release {version};; *) exit 1;; esac\n"


def _setup(*arguments, **environment):
    command = [sys.executable, ROOT / "setup.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def _toolkit(folder, nvcc, mode=0o755):
    """A CUDA toolkit with this program as its nvcc."""
    torch = pytest.importorskip("torch")
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so"):
        (folder / name).parent.mkdir()
        (folder / name).write_text(nvcc.format(version=torch.version.cuda))
    (folder / "bin/nvcc").chmod(mode)


@pytest.mark.parametrize(("nvcc", "mode"), [("no program", 0o644), (SILENT, 0o755)])
def test_a_broken_nvcc_leaves_the_cuda_part_out(tmp_path, nvcc, mode):
    _toolkit(tmp_path, nvcc, mode)
    run = _setup("--version", CUDA_HOME=str(tmp_path), AGMH_FAST_CUDA="auto")
    assert run.returncode == 0, run.stderr
    assert "building without CUDA: " in run.stdout


def test_gpus_that_the_kernels_cannot_run_on_are_refused(tmp_path):
    _toolkit(tmp_path, SILENT.replace("exit 1", "exit 0"))
    for listed, refused in (
        ("9.0;7.0+PTX", "7.0+PTX"),
        ("8.6 Turing", "Turing"),
        ("8.0;9.0a;10.0+PTX", None),
    ):
        run = _setup("--version", CUDA_HOME=str(tmp_path), AGMH_FAST_CUDA="1", TORCH_CUDA_ARCH_LIST=listed)
        assert (run.returncode != 0) == (refused is not None), run.stderr
        if refused is not None:
            said = run.stderr.strip().splitlines()[-1]
            assert said.startswith(f"agmh-fast: TORCH_CUDA_ARCH_LIST names {refused}: the CUDA part needs 8.0 or later")


def test_an_empty_compiler_name_is_one_line(tmp_path):
    build = ["build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path]
    run = _setup(*build, CXX="", AGMH_FAST_CUDA="0")
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1].startswith("agmh-fast: no C++ compiler")


def test_what_a_gpu_run_leaves_behind_is_in_no_distribution(tmp_path):
    left = shutil.ignore_patterns(".*", "*.so", "build", "dist", "*.egg-info", "__pycache__", "tests", "docs")
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=left)
    for name in ("bench/results/gpu-some/tests.log", "bench/results/gpu-some/floors.json", "bench/out/report.md"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("{}\n")
    build = [sys.executable, "setup.py", "egg_info", "build_py", "--build-lib", tmp_path / "built"]
    subprocess.run(build, cwd=tree, env={**os.environ, "AGMH_FAST_CUDA": "0"}, check=True, capture_output=True)
    sources = (tree / "agmh_fast.egg-info/SOURCES.txt").read_text().splitlines()
    assert "bench/gpu.py" in sources
    assert not [path for path in sources if path.startswith(("bench/out", "bench/results/gpu-"))]
    package = tmp_path / "built/agmh_fast"
    assert (package / "py.typed").is_file()
    assert {path.name for path in package.glob("kernels/*")} >= {
        path.name for path in ROOT.glob("kernels/*") if any(path.glob("*.py"))
    }
    kept = {path.relative_to(package / "results").as_posix() for path in (package / "results").rglob("*")}
    assert kept == {path.name for path in ROOT.glob("bench/results/*.json")}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("given", [{}, {"TORCH_CUDA_ARCH_LIST": "8.6"}])
def test_a_gpu_run_is_told_no_architectures_but_the_users(tmp_path, given):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "csrc").mkdir()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || echo "for ${TORCH_CUDA_ARCH_LIST-this GPU}"\n')
    python.chmod(0o755)
    make = ["make", f"PYTHON={python}", "gpu"]
    run = subprocess.run(make, cwd=tmp_path, env={"PATH": os.environ["PATH"], **given}, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == f"for {given.get('TORCH_CUDA_ARCH_LIST', 'this GPU')}", run.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("extra", ["bench", "docs", "release"])
def test_an_extra_compiles_nothing_again(tmp_path, extra):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").mkdir()
    make = ["make", "-n", "-o", ".venv/.built", f".venv/.{extra}"]
    run = subprocess.run(make, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert f"install -q 'agmh-fast[{extra}]'" in run.stdout, run.stderr
    assert " -e " not in run.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_half_made_environment_is_made_again(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "csrc").mkdir()
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\n[ \"$1 $2\" = '-m venv' ] || exit 0\n"
        f"mkdir -p .venv/bin && ln -sf {sys.executable} .venv/bin/python\nexit 1\n"
    )
    python.chmod(0o755)
    make = ["make", f"PYTHON={python}", "CXX=true", ".venv/.torch"]
    for _ in range(2):
        run = subprocess.run(make, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
        assert run.returncode != 0
        assert not (tmp_path / ".venv/bin/python").is_symlink()
