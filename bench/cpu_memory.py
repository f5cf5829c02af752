"""Peak memory on the CPU of every contestant of a workload, as JSON.

    python bench/cpu_memory.py WORKLOAD [--compiled]

A process of its own, because it lets the C library return memory at once, which slows everything else down.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from contestants import COMPILED, Contestant, compiled
from measuring import resident_peak, return_memory_at_once
from workloads import WORKLOADS


def peaks(contestant: Contestant) -> dict[str, int]:
    """Bytes by direction; a backward alone has the forward's memory before it, and is left out."""

    def both() -> None:
        contestant.gradients(contestant.forward())

    found = {"forward": resident_peak(lambda: contestant.forward())}
    return found | ({"both": resident_peak(both)} if contestant.leaves else {})


if __name__ == "__main__":
    return_memory_at_once()
    workload = WORKLOADS[sys.argv[1]](torch.device("cpu"), torch.float32)
    contestants = dict(workload.contestants)
    if "--compiled" in sys.argv:
        contestants[COMPILED] = compiled(workload)
    print(json.dumps({name: peaks(contestant) for name, contestant in contestants.items()}))
