"""What the ranks of a test of training do: importable by their processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from interruptions import Stopper
from patterns import patterns
from torch import nn

import agmh_fast as af
from agmh_fast.modules import synchronize_statistics
from agmh_fast.modules.small import SmallResNet
from agmh_fast.train import TrainConfig, fit, silent

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


def trained(rank: int, config: TrainConfig, dtype: torch.dtype, stop: int | None = None) -> dict[str, Any] | None:
    """What a run of `fit` by this rank has learned; None if it was stopped after so many steps."""
    try:
        result = fit(config, patterns(dtype), made(dtype), Stopper(stop) if stop else silent)
    except KeyboardInterrupt:
        return None
    rows = [
        {key: row[key] for key in ("step", "pairwise", "quantization", "attention_dispersion")}
        for row in result.history
    ]
    maps = [row.get("map") for row in result.history]
    return {"history": rows, "maps": maps, "codes": result.state.codes, "model": dict(result.model.state_dict())}


def all_reduced(rank: int, config: TrainConfig) -> int:
    """Bytes that a run hands to all_reduce, but for the gradients, which DistributedDataParallel sums by itself."""
    all_reduce, seen = dist.all_reduce, []

    def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append(tensor.nbytes)
        return all_reduce(tensor, *args, **options)

    dist.all_reduce = counted
    try:
        fit(config, patterns(), made(torch.float32), silent)
    finally:
        dist.all_reduce = all_reduce
    return sum(seen)


def trained_in(rank: int, config: TrainConfig, folder: str) -> None:
    """A run whose output this rank has in a folder of its own."""
    fit(config.replace(output=f"{folder}/{rank}"), patterns(), progress=silent)


def failed(rank: int, config: TrainConfig) -> str:
    """Why a run does not begin."""
    try:
        fit(config, patterns(), progress=silent)
    except af.InputError as error:
        return str(error)
    return "it began"
