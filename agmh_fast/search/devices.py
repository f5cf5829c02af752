"""Where an index may lie: the devices that can be searched on, and what to do where one cannot."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator

import torch

from agmh_fast.errors import InputError, first_line, require, shown
from agmh_fast.ops import compiled
from agmh_fast.ops.hamming import topk_op

_KINDS = "'cpu', 'cuda' or 'cuda:N'"
# What torch, its allocators and the compiled ops say.
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory")
# GPUs on which a search has succeeded.
_tried: set[torch.device] = set()
_SIZE = re.compile(r"(\d[\d.]* (?:bytes|[KMGT]i?B))")
# The place in our C++ that an op's error begins with.
_PLACE = re.compile(r"^\w+, \S+:\d+, ")


def check_device(device: str | torch.device) -> torch.device:
    """The device, with its number if it is a GPU, once it is known that codes can be searched on it."""
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device must be {_KINDS}, got {shown(device)}") from error
    require(checked.type in ("cpu", "cuda"), f"device must be {_KINDS}, got {str(device)!r}")
    if checked.type == "cpu":
        return torch.device("cpu")  # 'cpu:0' is the same place, but compares unequal
    given = f"device={str(device)!r}"
    require(torch.cuda.is_available(), f"{given}: there is no CUDA device: {_why_no_cuda()}")
    count = torch.cuda.device_count()
    number = torch.cuda.current_device() if checked.index is None else checked.index
    require(number < count, f"{given}: there is no CUDA device of this number, only 0 to {count - 1}")
    checked = torch.device("cuda", number)
    obstacle = compiled.missing() or (None if compiled.has_cuda_kernel("hamming_topk") else compiled.WITHOUT_CUDA)
    require(obstacle is None, f"{given}: {obstacle}")
    if checked not in _tried:
        problem = _trial(checked)
        require(problem is None, f"{given}: {problem}")
        _tried.add(checked)
    return checked


def free_bytes(device: torch.device) -> float:
    """Bytes of a GPU that are free, in torch's hands or not; on a CPU there is no telling."""
    if device.type != "cuda":
        return math.inf
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


@contextlib.contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Make what torch raises where memory runs out a MemoryError of one line that names the size asked for."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        size = _SIZE.search(str(error))
        asked = f": {size[1]} were asked for" if size else ""
        raise MemoryError(f"out of memory on {device}{asked}; the index is as it was") from error


def _why_no_cuda() -> str:
    """What keeps torch from a GPU, and what helps."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install one that has it, or use device='cpu'"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        said = first_line(error)
    else:
        said = "none is visible"
    if "too old" in said:
        version = re.search(r"found version (\d+)", said)
        found = f" (it supports CUDA {int(version[1]) // 1000}.{int(version[1]) % 1000 // 10})" if version else ""
        return f"the NVIDIA driver is too old{found} for torch's CUDA {torch.version.cuda}; update it"
    if "no NVIDIA driver" in said:
        return "no NVIDIA driver is installed or running; install one, or use device='cpu'"
    return f"{said.rstrip('.')}; use device='cpu'"


def _trial(device: torch.device) -> str | None:
    """Why a first search on the device fails, if it does: a build for other GPUs is found by nothing else."""
    try:
        with memory_errors(device):
            code = torch.zeros(1, 1, dtype=torch.uint8, device=device)
            topk_op(code, code, 1, 8, 8, None)
    except RuntimeError as error:
        said = _PLACE.sub("", first_line(error))
        if "TORCH_CUDA_ARCH_LIST" not in said:
            return said
        major, minor = torch.cuda.get_device_capability(device)
        name, build = torch.cuda.get_device_name(device), "pip install --no-build-isolation -e ."
        return f"agmh_fast was not built for a {name}; build it with: TORCH_CUDA_ARCH_LIST={major}.{minor} {build}"
    return None
