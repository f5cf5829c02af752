"""What this machine is and what is installed on it, as reports and `agmh-fast info` say it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from agmh_fast._version import __version__

if TYPE_CHECKING:
    import torch


def cpu_name() -> str:
    """The processor's model, or its architecture where nothing says more."""
    with contextlib.suppress(OSError):
        # Where Python knows only the architecture, Linux knows the model.
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """The GPU's name, or "CPU, …"."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {cpu_name()}"


def versions(*packages: str) -> dict[str, str]:
    """Versions of agmh-fast, Python and those of the packages that are installed, by name."""
    found = {"agmh-fast": __version__, "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
