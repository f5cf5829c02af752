"""A kernel that only counts bits, in registers: what the device's population counts give at best."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROUNDS, _ABREAST, _BLOCK = 256, 16, 1024
COUNTS_OF_A_THREAD = _ROUNDS * _ABREAST


@triton.jit
def popcount_kernel(out, ROUNDS: tl.constexpr, ABREAST: tl.constexpr, BLOCK: tl.constexpr):
    """out[i]: the sum of the population counts of i xor each of the first ROUNDS * ABREAST numbers."""
    x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.int32)
    for i in range(ROUNDS):
        for j in tl.static_range(ABREAST):
            total += tl.inline_asm_elementwise(
                "popc.b32 $0, $1;", "=r,r", [x ^ (i * ABREAST + j)], dtype=tl.int32, is_pure=True, pack=1
            )
    tl.store(out + x, total)


def count(out: torch.Tensor) -> None:
    """Run it, a thread for each number of `out` (int32, a multiple of 1024)."""
    popcount_kernel[(len(out) // _BLOCK,)](out, ROUNDS=_ROUNDS, ABREAST=_ABREAST, BLOCK=_BLOCK)
