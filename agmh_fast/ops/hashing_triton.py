"""The hashing loss and the discrete step by the Triton kernels, and what these need of their arguments.

An op each, opaque to torch.compile; agmh_fast/ops/hashing.py registers them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agmh_fast.kernels.discrete.config import MAX_BITS as MAX_STEP_BITS
from agmh_fast.kernels.hashing_loss.config import MAX_BITS as MAX_LOSS_BITS
from agmh_fast.ops.gpu import gpu_obstacle

_library = torch.library.Library("agmh_fast", "FRAGMENT")
_library.define(
    "triton_hashing_loss(Tensor embedding, Tensor items, Tensor groups, Tensor targets, Tensor square_sums, "
    "Tensor gram, Tensor codes, float gamma) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "triton_discrete_step(Tensor codes, Tensor targets, Tensor groups, Tensor sampled, Tensor embeddings, "
    "Tensor gram, float gamma) -> Tensor"
)


@torch.library.impl(_library, "triton_hashing_loss", "CompositeExplicitAutograd")
def _loss(embedding, *arguments):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.hashing_loss import kernel

    with torch.cuda.device_of(embedding):
        return kernel.hashing_loss(embedding, *arguments)


@torch.library.impl(_library, "triton_discrete_step", "CompositeExplicitAutograd")
def _step(codes, *arguments):  # type: ignore[no-untyped-def]
    from agmh_fast.kernels.discrete import kernel

    with torch.cuda.device_of(codes):
        return kernel.discrete_step(codes, *arguments)


@torch.library.register_fake("agmh_fast::triton_hashing_loss")
def loss_fake(embedding: Tensor, *_: object) -> tuple[Tensor, ...]:
    """Shapes and dtypes of the loss ops: three scalars and their gradients (3, B, L), at least float32."""
    dtype = torch.promote_types(embedding.dtype, torch.float32)
    losses = (embedding.new_empty((), dtype=dtype) for _ in range(3))
    return *losses, embedding.new_empty((3, *embedding.shape), dtype=dtype)


@torch.library.register_fake("agmh_fast::triton_discrete_step")
def step_fake(codes: Tensor, *_: object) -> Tensor:
    """Shape and dtype of the ops of the discrete step."""
    return torch.empty_like(codes)


def loss_obstacle(embedding: Tensor, items: Tensor, groups: Tensor) -> str | None:
    """Why the kernels cannot compute the loss of embedding (B, L) for a state with these groups, or None."""
    if (obstacle := gpu_obstacle("embedding", embedding)) is not None:
        return obstacle
    for name, tensor in (("items", items), ("the labels", groups)):
        if tensor.device != embedding.device:
            return f"embedding is on {embedding.device}, and {name} are on {tensor.device}"
    return _bits_obstacle(embedding.shape[1], MAX_LOSS_BITS)


def step_obstacle(codes: Tensor) -> str | None:
    """Why the kernels cannot take the discrete step of codes (N, L), or None."""
    return gpu_obstacle("the labels", codes) or _bits_obstacle(codes.shape[1], MAX_STEP_BITS)


def _bits_obstacle(bits: int, most: int) -> str | None:
    return None if bits <= most else f"it takes at most {most} bits, not {bits}"
