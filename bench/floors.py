"""What this GPU gives without us, as JSON: bandwidth of a plain copy and of a read, and the time of an empty launch.

python bench/floors.py [FILE]
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measuring import Clock, copy_bandwidth


def floors(device: torch.device) -> dict[str, float | str]:
    """Medians; bytes a second and seconds."""
    clock, values = Clock(device), torch.ones((2**30 if device.type == "cuda" else 2**28) // 4, device=device)
    small = torch.ones(1, device=device)
    for run in (values.sum, lambda: small.add_(0)):
        run()
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "copy_bytes_per_s": copy_bandwidth(device),
        "read_bytes_per_s": 4 * values.numel() / statistics.median(clock.seconds(values.sum) for _ in range(7)),
        "launch_and_wait_s": statistics.median(clock.seconds(lambda: small.add_(0)) for _ in range(50)),
    }


if __name__ == "__main__":
    found = json.dumps(floors(torch.device("cuda" if torch.cuda.is_available() else "cpu")), indent=1)
    print(found)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(found + "\n")
