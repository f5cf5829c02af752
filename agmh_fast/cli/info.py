"""`agmh-fast info`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
from typing import Any

from agmh_fast._version import __version__
from agmh_fast.cli.command import Command, add_json, print_json


def _info(args: argparse.Namespace) -> None:
    facts = _facts()
    if args.json:
        print_json(facts)
        return
    for title, entries in facts.items():
        print(title)
        for name, value in entries.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"  {name:<30}{shown if shown != '' else 'none'}")


def _facts() -> dict[str, dict[str, Any]]:
    """Versions, devices, compiled modules and implementations, as `info` shows them."""
    import torch

    from agmh_fast import functional
    from agmh_fast.ops import compiled

    versions = {"agmh-fast": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "triton", "safetensors", "matplotlib", "tensorboard", "faiss-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    try:
        native = importlib.import_module("agmh_fast._engine")
        engine = {**native.build_info(), **native.cpu_info()}
    except ImportError as error:
        engine = {"missing": str(error)}
    count = torch.cuda.device_count()
    return {
        "versions": versions,
        "devices": {
            "cpu": f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
            "cuda": [torch.cuda.get_device_name(number) for number in range(count)],
        },
        "search engine (agmh_fast._engine)": engine,
        "torch ops (agmh_fast._C)": {"state": compiled.missing() or "loaded"},
        "implementations, fastest first": {name: list(op.implementations) for name, op in functional.OPS.items()},
        "auto picks on cpu": _picks(torch.device("cpu")),
        **({"auto picks on cuda": _picks(torch.device("cuda"))} if count else {}),
    }


def _picks(device: Any) -> dict[str, str]:
    """What `impl="auto"` takes for small tensors on the device, and why nothing faster."""
    import torch

    from agmh_fast import functional
    from agmh_fast.modules import StepwiseExternalAttention

    codes = torch.zeros(1, 1, dtype=torch.uint8, device=device)
    labels, positions = torch.arange(2, device=device), torch.arange(1, device=device)
    state = functional.HashingState(labels, 8)
    attention = StepwiseExternalAttention(2, 4, memory_size=4).to(device)
    features, embedding = torch.zeros(1, 8, 2, 2, device=device), torch.zeros(1, 8, device=device)
    on_features: tuple[Any, ...] = (features, attention.params, True, 0.1, 1e-5)
    arguments: dict[str, tuple[Any, ...]] = {
        "asymmetric_hashing_loss": (embedding, positions, state),
        "update_database_codes": (state, embedding, positions),
    }
    picks = {}
    for name in functional.OPS:
        fitting = (codes, codes, 8) if name.startswith("hamming") else arguments.get(name, on_features)
        picks[name] = str(functional.explain(name, *fitting)).removeprefix(f"{name}: ")
    return picks


INFO = Command(
    "versions, devices, compiled modules, and the implementations that are used",
    "agmh-fast info --json",
    add_json,
    _info,
)
