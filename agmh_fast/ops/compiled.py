"""`agmh_fast._C`, the compiled torch ops: loaded when first needed, and why not where it cannot be."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

_INSTALL = "pip install --no-build-isolation -e ."
WITHOUT_CUDA = f"agmh_fast._C was built without CUDA; build it beside a CUDA toolkit: AGMH_FAST_CUDA=1 {_INSTALL}"
_state: dict[str, str | None] = {}
_fakes: list[Callable[[], None]] = []


def on_load(register: Callable[[], None]) -> Callable[[], None]:
    """Decorator: call `register` once the ops exist, to describe them to torch.compile."""
    _fakes.append(register)
    if _state.get("missing", "not tried") is None:
        register()
    return register


# Under torch.compile the answer is a constant: loading a library cannot be traced.
@torch.compiler.assume_constant_result
def missing() -> str | None:
    """Load the module; None if it is there, else one line that says why not and how to build it."""
    if "missing" not in _state:
        try:
            importlib.import_module("agmh_fast._C")
        except ImportError as error:
            how = f"build it with: {_INSTALL} (needs a C++20 compiler)"
            _state["missing"] = f"the compiled module agmh_fast._C does not load ({error}); {how}"
        else:
            for register in _fakes:
                register()
            _state["missing"] = None
    return _state["missing"]


def cpu_obstacle(name: str, tensor: torch.Tensor) -> str | None:
    """Why the compiled CPU ops cannot serve `tensor`, called `name` in the answer; None if they can."""
    return missing() if tensor.device.type == "cpu" else f"{name} are on {tensor.device}"


@torch.compiler.assume_constant_result
def has_cuda_kernel(op: str) -> bool:
    """Whether the loaded module holds a CUDA kernel for the op `agmh_fast::<op>`."""
    return missing() is None and torch._C._dispatch_has_kernel_for_dispatch_key(f"agmh_fast::{op}", "CUDA")
