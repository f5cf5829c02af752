"""Compile every kernel at the published sizes for several GPUs with the Triton that Python finds; print a line of JSON
each.

    PYTHONPATH=folder/with/another/triton python tests/kernels/compile_gate.py
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import triton
from published_launches import FOLDERS, published_launches
from triton_compile import SHARED_MEMORY, compile_launch

CASES = [
    (folder, capability, launch)
    for folder in FOLDERS
    for capability in SHARED_MEMORY
    for launch in published_launches(folder, capability)
]


def report(index: int) -> str:
    """One kernel's machine code, and the seconds that compiling and reading it took."""
    folder, capability, launch = CASES[index]
    start = time.perf_counter()
    code = compile_launch(launch, capability)
    return json.dumps({
        "triton": triton.__version__,
        "folder": folder,
        "kernel": launch.name,
        "capability": capability,
        "registers": code.registers,
        "spills": code.spills,
        "shared": code.shared,
        "warps": launch.options.get("num_warps", 4),
        "matrix_products": code.matrix_products,
        "seconds": round(time.perf_counter() - start, 2),
    })  # fmt: skip


if __name__ == "__main__":
    # Forked, not spawned: what was recorded above is not to be recorded twice.
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for line in pool.imap(report, range(len(CASES))):
            print(line, flush=True)
