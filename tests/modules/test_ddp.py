"""Two gloo ranks under DistributedDataParallel against one process on both halves."""

from __future__ import annotations

import numpy as np
import torch
from ranks import ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def _model() -> nn.Module:
    import agmh_fast as af

    torch.manual_seed(1)
    backbone = nn.Conv2d(3, 8, 3, stride=2)
    return af.AGMH(12, backbone=backbone, num_descriptors=2, descriptor_dim=5, memory_size=4).double()


def _step(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    out = model(images)
    return out.embedding.square().mean() + out.attention_dispersion


def gradients(rank: int, images: torch.Tensor) -> list[np.ndarray]:
    """Of two ranks, each on its half, after two steps."""
    model = DistributedDataParallel(_model())
    for _ in range(2):
        model.zero_grad()
        _step(model, images[rank]).backward()
    return [p.grad.numpy() for p in model.parameters()]


def test_gradients_are_the_mean_over_ranks():
    images = torch.randn(2, 3, 3, 9, 9, dtype=torch.float64)
    with ranks(2) as two:
        found, same = two.run(gradients, images)
    assert all(map(np.array_equal, found, same))
    model = _model()
    for half in images:
        (_step(model, half) / 2).backward()
    for (name, p), gradient in zip(model.named_parameters(), found, strict=True):
        assert torch.allclose(p.grad, torch.from_numpy(gradient), rtol=1e-9, atol=1e-12), name
