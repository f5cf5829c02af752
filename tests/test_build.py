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


@pytest.mark.parametrize(("nvcc", "mode"), [("no program", 0o644), (SILENT, 0o755)])
def test_a_broken_nvcc_leaves_the_cuda_part_out(tmp_path, nvcc, mode):
    torch = pytest.importorskip("torch")
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(nvcc.format(version=torch.version.cuda))
    (tmp_path / "bin/nvcc").chmod(mode)
    run = _setup("--version", CUDA_HOME=str(tmp_path), AGMH_FAST_CUDA="auto")
    assert run.returncode == 0, run.stderr
    assert "building without CUDA: " in run.stdout


def test_an_empty_compiler_name_is_one_line(tmp_path):
    build = ["build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path]
    run = _setup(*build, CXX="", AGMH_FAST_CUDA="0")
    assert run.returncode != 0
    assert run.stderr.strip().splitlines()[-1].startswith("agmh-fast: no C++ compiler")


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
