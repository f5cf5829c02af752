"""What tile sizes and arithmetic depend on: the GPU, and how float32 is to be multiplied."""

from __future__ import annotations

import torch


def padded(size: int) -> int:
    """The next power of two, at least the 16 of a tensor core's tile."""
    return max(16, 1 << (size - 1).bit_length())


# A constant of the machine: torch.compile asks while it traces and keeps the answer.
@torch.compiler.assume_constant_result
def capability(device: torch.device) -> int:
    """Compute capability as 10 · major + minor; elsewhere than on a GPU that of an H100."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: exactly unless `torch.set_float32_matmul_precision` allows tf32."""
    if dtype != torch.float32:
        return "tf32"  # not looked at: 16-bit products are exact
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
