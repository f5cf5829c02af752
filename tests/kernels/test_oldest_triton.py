"""Every kernel compiles with the oldest Triton supported too, in a process of its own, and its launches are on record.

`make test` installs that Triton into a folder beside the environment's own, which does not change.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from published_launches import FOLDERS, KERNELS
from triton_compile import SHARED_MEMORY

OLDEST = "3.6"
FOLDER = Path(sys.prefix) / "triton-3.6"


def _missing() -> str | None:
    """Why the gate cannot be run here."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"Triton is published for Linux on x86_64, and this is {sys.platform} on {platform.machine()}"
    if version("triton").startswith(f"{OLDEST}."):
        return f"this environment's own Triton is {version('triton')}: the other tests here compile with it"
    if not (FOLDER / "triton").is_dir():
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"no {FOLDER}: `make test` installs it where there is a wheel for Python {python}"
    return None


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What compile_gate.py prints with that Triton."""
    if (reason := _missing()) is not None:
        pytest.skip(reason)
    # No word of a user's own: the cache is a fresh folder.
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).parent / "compile_gate.py"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("folder", FOLDERS)
def test_compiles_without_spills(compiled, folder, capability):
    codes = [code for code in compiled if (code["folder"], code["capability"]) == (folder, capability)]
    assert codes
    assert all(code["triton"].startswith(f"{OLDEST}.") for code in codes)
    assert not {code["kernel"]: code["spills"] for code in codes if code["spills"]}
    assert not {code["kernel"]: code["shared"] for code in codes if code["shared"] > SHARED_MEMORY[capability]}


def test_every_folder_of_kernels_takes_part():
    folders = {path.parent.name for path in KERNELS.glob("*/*.py")} - {"common"}
    assert folders == set(FOLDERS)
