"""Time, memory and bandwidth, measured the same way for everyone."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Run = Callable[[], object]
# Where the benches run.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Larger than any cache in use; on a GPU it is overwritten before every timed run, so that each starts from memory.
_FLUSH_BYTES = 256 * 2**20


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Timed:
    """What is to be timed: `run`, or `run(prepare())` with the preparation left out of the time."""

    run: Callable[..., object]
    prepare: Run | None = None

    def once(self) -> Run:
        """Prepare, and return what is to be timed."""
        if self.prepare is None:
            return self.run
        prepared = self.prepare()
        return lambda: self.run(prepared)


class Clock:
    """Seconds of a call, the device's work included; what the host needs to launch it counts too."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cuda = device.type == "cuda"
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device) if cuda else None

    def ready(self) -> None:
        """Before every timed call: caches of a GPU hold nothing of use, and nothing is under way."""
        if self._flush is not None:
            self._flush.zero_()
        synchronize(self.device)

    def seconds(self, run: Run) -> float:
        """Of one call."""
        self.ready()
        start = time.perf_counter()
        self.finished(run)
        return time.perf_counter() - start

    def finished(self, run: Run) -> None:
        """Call and wait for the device."""
        run()
        synchronize(self.device)

    def graph_seconds(self, run: Run, rounds: int) -> list[float]:
        """Of replays of a CUDA graph of the call: the device's own time, without the host's."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        taken = []
        for _ in range(rounds):
            self.ready()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            synchronize(self.device)
            taken.append(start.elapsed_time(end) * 1e-3)
        return taken


def bf16_unit(device: torch.device) -> str | None:
    """What multiplies bfloat16 there: "cuda", "amx_bf16", "avx512_bf16", half as fast at best, or nothing."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    on_cpu = next((unit for unit in ("amx_bf16", "avx512_bf16") if found.get(unit)), None)
    return "cuda" if device.type == "cuda" else on_cpu


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p20, p50 and p80 of several timings, in seconds."""
    quintiles = statistics.quantiles(seconds, n=5, method="inclusive")
    return {"p20_s": quintiles[0], "p50_s": statistics.median(seconds), "p80_s": quintiles[3]}


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second of copying a large tensor, read and written bytes counted: what memory gives in practice."""
    count = (2**30 if device.type == "cuda" else 2**28) // 4
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    clock = Clock(device)
    target.copy_(source)
    return 2 * 4 * count / statistics.median(clock.seconds(lambda: target.copy_(source)) for _ in range(7))


def cuda_peak(run: Run) -> int:
    """Bytes that a call holds at its peak beyond what was held before it, by the allocator's count."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_peak(run: Run) -> int:
    """Bytes that this process holds at the peak of a call beyond what it held before it, by the kernel's count.

    Linux only. The peak that the kernel keeps (VmHWM) is reset first. Whatever is allocated counts, inside libraries
    too, if `return_memory_at_once` was called when the process began.
    """
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def return_memory_at_once() -> None:
    """Have the C library unmap blocks above 64 KiB as soon as they are freed: slow, so not where time counts."""
    trim_threshold, mmap_threshold = -1, -3
    for option in (trim_threshold, mmap_threshold):
        ctypes.CDLL(None).mallopt(option, 64 * 1024)


def _status(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def cpu_peaks(workload: str, with_compiled: bool) -> dict[str, dict[str, int]]:
    """`resident_peak` of every contestant of a workload on the CPU, by direction, from a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("cpu_memory.py")), workload]
    command += ["--compiled"] if with_compiled else []
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr.strip().splitlines()[-1])
    return json.loads(run.stdout.splitlines()[-1])
