"""`agmh-fast info`."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from typing import Any

from agmh_fast.cli.command import Command, add_json, print_json
from agmh_fast.errors import InputError
from agmh_fast.machine import cpu_name, usable_cores, versions

_PACKAGES = ("torch", "torchvision", "numpy", "triton", "safetensors", "matplotlib", "tensorboard", "faiss-cpu")


def _info(args: argparse.Namespace) -> None:
    facts = _facts()
    if args.json:
        print_json(facts)
        return
    for title, entries in facts.items():
        print(title)
        for name, value in entries.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"  {name:<30}{shown if shown not in ('', None) else 'none'}")


def _facts() -> dict[str, dict[str, Any]]:
    """Versions, devices, compiled modules and implementations, as `info` shows them."""
    import torch

    from agmh_fast import functional
    from agmh_fast.ops import compiled
    from agmh_fast.ops.threads import get_num_threads

    try:
        native = importlib.import_module("agmh_fast._engine")
        engine = {**native.build_info(), **native.cpu_info()}
    except ImportError as error:
        engine = {"missing": str(error)}
    on_cuda = [n for n, op in functional.OPS.items() if "cuda" in op.implementations and compiled.has_cuda_kernel(n)]
    return {
        "versions": versions(*_PACKAGES) | {"cuda of torch": torch.version.cuda},
        "devices": {
            "cpu": f"{cpu_name()}, {platform.machine()}, {usable_cores()} cores to use",
            "threads": f"torch {torch.get_num_threads()}, compiled engine {get_num_threads()}",
            "cuda": [_gpu(number) for number in range(torch.cuda.device_count())],
        },
        "search engine (agmh_fast._engine)": engine,
        "torch ops (agmh_fast._C)": {"state": compiled.missing() or "loaded", "with CUDA kernels": on_cuda},
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("AGMH_FAST_")},
        "implementations, fastest first": {name: list(op.implementations) for name, op in functional.OPS.items()},
        "auto picks on cpu": _picks(torch.device("cpu")),
        **({"auto picks on cuda": _picks(torch.device("cuda"))} if torch.cuda.is_available() else {}),
    }


def _gpu(number: int) -> str:
    """Name, compute capability and memory."""
    import torch

    about = torch.cuda.get_device_properties(number)
    return f"{about.name} (compute capability {about.major}.{about.minor}, {about.total_memory / 2**30:.0f} GiB)"


def _picks(device: Any) -> dict[str, str]:
    """What `impl="auto"` takes for small tensors on the device, and why nothing faster; an error where AGMH_FAST_IMPL
    names what an op has not.
    """
    import torch

    from agmh_fast import functional
    from agmh_fast.modules import StepwiseExternalAttention
    from agmh_fast.ops.hashing import HashingState

    codes = torch.zeros(1, 1, dtype=torch.uint8, device=device)
    labels, positions = torch.arange(2, device=device), torch.arange(1, device=device)
    state = HashingState(labels, 8)
    attention = StepwiseExternalAttention(2, 4, memory_size=4).to(device)
    features, embedding = torch.zeros(1, 8, 2, 2, device=device), torch.zeros(1, 8, device=device)
    on_features: tuple[Any, ...] = (features, attention.params, True, 0.1, 1e-5)
    arguments: dict[str, tuple[Any, ...]] = {
        "asymmetric_hashing_loss": (embedding, positions, state),
        "update_database_codes": (state, embedding, positions),
    }
    picks = {}
    for name in functional.OPS:
        searched: tuple[Any, ...] = (codes, codes, 8)
        if name == "hamming_stable_ranking":
            searched = (codes, codes, 8, labels, labels, 1, [])
        fitting = searched if name.startswith("hamming") else arguments.get(name, on_features)
        try:
            picks[name] = str(functional.explain(name, *fitting)).removeprefix(f"{name}: ")
        except InputError as error:
            picks[name] = f"an error: {error}"
    return picks


INFO = Command(
    "versions, devices, compiled modules, and the implementations that are used",
    "agmh-fast info --json",
    add_json,
    _info,
)
