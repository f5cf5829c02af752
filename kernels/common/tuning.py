"""Opt-in measuring of tuning data: which of a few configurations is fastest on the GPU at hand.

Off unless the environment has AGMH_FAST_AUTOTUNE=1, or =print, which also prints what was chosen as the dataclass
literal that config.py could hold. A launcher asks after its heuristic, and gives itself, called the same way, as what
is to be timed:

    default = config.choose(features, slots)
    tuning = fastest("peak_response.forward", (slots,), features, default, config.tiles, lambda: forward(features))

That inner call asks too, and is given the configuration being timed. It must write nothing but new tensors: no running
statistics, no ticket.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

Config = TypeVar("Config", bound=Any)
Run = Callable[[], object]

# Read once, as every other switch of the environment.
MODE = os.environ.get("AGMH_FAST_AUTOTUNE") or "0"

_chosen: dict[Hashable, Any] = {}
_trial = threading.local()
_lock = threading.RLock()


def around(size: int) -> list[int]:
    """Half and twice the size of a tile: at least 16, a tensor core's own. None where the tile has no such size."""
    return [other for other in (size // 2, 2 * size) if other >= 16]


def variants(part: Config, **fields: Iterable[Any]) -> list[Config]:
    """Copies of a frozen dataclass that differ from it in one field each, e.g. `variants(tile, warps=(4, 8))`."""
    return [
        dataclasses.replace(part, **{name: value})
        for name, values in fields.items()
        for value in values
        if value != getattr(part, name)
    ]


def milliseconds(run: Run) -> float:
    """Time of `run` on the current GPU without the host's share: the median over replays of a CUDA graph of ten."""
    run()
    graph, times = torch.cuda.CUDAGraph(), []
    # Neither torch's own stream, which is that of the first GPU used, nor its mode, which fails where another thread
    # pins memory meanwhile.
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
        for _ in range(10):
            run()
    for _ in range(11):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 10)
    return statistics.median(times)


def fastest(
    kernel: str,
    shape: Hashable,
    tensor: Tensor,
    default: Config,
    alternatives: Callable[[Config], Mapping[str, Iterable[Any]]],
    run: Run,
) -> Config:
    """`default`, or with AGMH_FAST_AUTOTUNE the fastest found by replacing its fields one after the other.

    A choice is kept for the kernel, the default, the tensor's device, dtype, strides and shape, whose first size counts
    up to a power of two, and whatever else `shape` names. alternatives: field -> other values, asked once a choice. A
    configuration that does not compile or fit is passed over. Nothing is measured while a CUDA graph is captured, in
    the interpreter, or under `torch.use_deterministic_algorithms(True)`, where two processes must not choose
    differently: what was chosen before is used, else the default.
    """
    if MODE == "0":
        return default
    batch, *sizes = tensor.shape
    form = (1 << max(batch - 1, 0).bit_length(), *sizes), tensor.stride()[1:]
    key = (kernel, (*form, shape), tensor.device, tensor.dtype, default)
    trials = _trial.__dict__
    if key in trials:
        return trials[key]
    if key not in _chosen:
        if not _measurable(tensor):
            return default
        with _lock, torch.no_grad(), torch.cuda.device_of(tensor):
            if key not in _chosen:
                _chosen[key] = _search(key, default, alternatives(default), run)
    return _chosen[key]


def _measurable(tensor: Tensor) -> bool:
    """Whether kernels launched now run on a GPU, may be repeated, and may differ from process to process."""
    return (
        tensor.device.type == "cuda"
        and os.environ.get("TRITON_INTERPRET", "0") != "1"
        and not torch.are_deterministic_algorithms_enabled()
        and not torch.cuda.is_current_stream_capturing()
    )


def _search(
    key: tuple[Any, ...],
    default: Config,
    alternatives: Mapping[str, Iterable[Any]],
    run: Run,
) -> Config:
    """The default improved field by field; a field's best value stands while the next is tried."""
    best, time = default, _timed(key, default, run)
    first = time
    for field, values in alternatives.items():
        for candidate in [dataclasses.replace(best, **{field: value}) for value in values]:
            if candidate != best and (taken := _attempt(key, candidate, run)) < time:
                best, time = candidate, taken
    if MODE == "print":
        kernel, shape, device, dtype, _ = key
        where = f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else device}, {dtype}, {shape}"
        print(f"{kernel} on {where}: {best!r}  # {time:.4f} ms, heuristic {first:.4f} ms", file=sys.stderr)
    return best


def _timed(key: Hashable, candidate: Any, run: Run) -> float:
    """Time of `run` with `candidate` in the place of the heuristic's choice."""
    _trial.__dict__[key] = candidate
    try:
        return milliseconds(run)
    finally:
        del _trial.__dict__[key]


def _attempt(key: Hashable, candidate: Any, run: Run) -> float:
    """As `_timed`, infinite where Triton cannot compile the candidate or the GPU has not the room for it."""
    from triton.errors import TritonError

    try:
        return _timed(key, candidate, run)
    except TritonError:
        return math.inf
    except RuntimeError as error:
        # What the compiler raises where one of its passes fails.
        if "PassManager" not in str(error):
            raise
        return math.inf
