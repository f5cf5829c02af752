"""What the ranks of a test of training do: importable by their processes."""

from __future__ import annotations

import torch
from torch import nn

import agmh_fast as af
from agmh_fast.modules import synchronize_statistics
from agmh_fast.modules.small import SmallResNet

IMAGES, SPLIT = 5, 3
"""The images of a step, and how many of them the first of two ranks has."""


def made(dtype: torch.dtype, impl: str = "auto") -> af.AGMH:
    """A small model and its statistics, the same in every process."""
    torch.manual_seed(3)
    sizes = {"num_descriptors": 2, "descriptor_dim": 8, "num_heads": 2, "memory_size": 4}
    model = af.AGMH(12, SmallResNet(1, (4, 4, 8, 8)), impl=impl, **sizes).to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def loss_of(model: af.AGMH, images: torch.Tensor) -> torch.Tensor:
    """The mean over images of something that every parameter bears on."""
    out = model(images)
    return out.embedding.sin().mean() + 10 * out.attention_dispersion


def step(rank: int, dtype: torch.dtype, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """This rank's part of the gradients of the loss over all images, and the buffers after two passes."""
    model = synchronize_statistics(made(dtype)).train()
    part = images[:SPLIT] if rank == 0 else images[SPLIT:]
    for _ in range(2):
        model.zero_grad()
        (loss_of(model, part) * len(part) / len(images)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return gradients | dict(model.named_buffers())
