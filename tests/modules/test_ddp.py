"""Two gloo ranks under DistributedDataParallel against one process on both halves."""

from __future__ import annotations

import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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


def _rank(rank: int, port: int, images: torch.Tensor, results: mp.Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = DistributedDataParallel(_model())
    for _ in range(2):
        model.zero_grad()
        _step(model, images[rank]).backward()
    if rank == 0:
        results.put([p.grad.numpy() for p in model.parameters()])
    dist.barrier()
    dist.destroy_process_group()


def test_gradients_are_the_mean_over_ranks():
    images = torch.randn(2, 3, 3, 9, 9, dtype=torch.float64)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, port, images, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    gradients = results.get(timeout=120)
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    model = _model()
    for half in images:
        (_step(model, half) / 2).backward()
    for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert torch.allclose(p.grad, torch.from_numpy(gradient), rtol=1e-9, atol=1e-12), name
