"""Training steps as they run on a GPU: autocast, DistributedDataParallel, torch.compile and graph capture, together.

What is compiled and captured is the loss part: from the backbone's features to the loss, by the public API. On a CPU
the same steps run small, with the backend that needs no compiler; a graph is captured on a GPU only.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from cuda_graphs import capture
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import agmh_fast as af
from agmh_fast.train import HashingState

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CHANNELS, COUNT, BATCH = 12, 64, 8


@dataclass(frozen=True)
class Sizes:
    bits: int
    descriptors: int
    dim: int
    slots: int
    side: int


SIZES = {"cpu": Sizes(12, 2, 16, 8, 5), "cuda": Sizes(48, 6, 512, 128, 14)}


class Training(nn.Module):
    """Images to loss: a backbone, and AGMH behind it with the hashing loss, which may be compiled."""

    def __init__(self, device: str, compiled: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        sizes = SIZES[device]
        self.backbone = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1)
        self.head = af.AGMH(
            sizes.bits,
            backbone=nn.Identity(),
            feature_channels=CHANNELS,
            num_descriptors=sizes.descriptors,
            descriptor_dim=sizes.dim,
            memory_size=sizes.slots,
        )
        labels = torch.arange(COUNT) % 5
        self.state = HashingState(labels.to(device), sizes.bits)
        self.state.codes = torch.randn(5, sizes.bits).sign()[labels].to(device)
        self.state.begin_iteration(torch.arange(COUNT, device=device))
        backend = "inductor" if device == "cuda" else "aot_eager"
        self.loss = torch.compile(self.loss_part, fullgraph=True, backend=backend) if compiled else self.loss_part
        self.to(device)

    def loss_part(self, x: Tensor, items: Tensor) -> Tensor:
        out = self.head(x)
        loss = af.functional.asymmetric_hashing_loss(out.embedding.float(), items, self.state)
        return loss.total + 0.5 * out.attention_dispersion

    def forward(self, images: Tensor, items: Tensor) -> Tensor:
        return self.loss(self.backbone(images), items)


def _batch(device):
    """Images and items: noise, with a pattern of its own for each of five classes."""
    size = 2 * SIZES[device].side
    patterns = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(3))
    items = torch.randperm(COUNT)[:BATCH]
    images = patterns[items % 5] + 0.3 * torch.randn(BATCH, 3, size, size)
    return images.to(device), items.to(device)


@contextmanager
def _one_rank(device):
    """A process group of this process alone."""
    backend = "nccl" if device == "cuda" and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _steps(model, device, count):
    """Losses of SGD steps on batches drawn from one seed."""
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    losses = []
    for _ in range(count):
        with torch.autocast(device, torch.bfloat16):
            loss = model(*_batch(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_steps_under_ddp_and_autocast_are_plain_steps(device):
    plain = Training(device, compiled=False)
    expected = _steps(plain, device, 3)
    together = Training(device, compiled=True)
    with _one_rank(device):
        losses = _steps(DistributedDataParallel(together), device, 3)
    # A compiler may round elsewhere: a few roundings of bfloat16, which SGD carries from step to step.
    assert torch.allclose(losses, expected, rtol=20 * torch.finfo(torch.bfloat16).eps)
    for (name, actual), wanted in zip(together.named_parameters(), plain.parameters(), strict=True):
        assert (actual - wanted).norm() <= 0.05 * wanted.norm() + 1e-3, name
    for name in ("running_mean", "running_var"):
        actual, wanted = (getattr(model.head.attention, name) for model in (together, plain))
        assert torch.allclose(actual, wanted, rtol=0.05, atol=1e-2), name


@pytest.mark.parametrize("device", DEVICES)
def test_every_parameter_gets_a_finite_gradient(device):
    """What DistributedDataParallel waits for: a parameter without a gradient would hang it."""
    model = Training(device, compiled=True)
    with _one_rank(device), torch.autocast(device, torch.bfloat16):
        DistributedDataParallel(model)(*_batch(device)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_long_run_learns(device):
    model = Training(device, compiled=False)
    losses = _steps(model, device, 60)
    assert losses.isfinite().all()
    assert losses[-10:].mean() < 0.8 * losses[:10].mean()


@pytest.mark.parametrize("device", DEVICES)
def test_outer_iterations_go_on_from_new_codes(device):
    """Train, take the discrete step, begin again: by what `auto` takes, whose codes are those of torch."""
    model = Training(device, compiled=False)
    sampled = torch.arange(COUNT, device=device)
    for _ in range(2):
        assert _steps(model, device, 3).isfinite().all()
        embeddings = torch.randn(COUNT, model.state.bits, device=device).tanh()
        expected = af.functional.OPS["update_database_codes"](model.state, embeddings, sampled, impl="torch")
        assert torch.equal(af.functional.update_database_codes(model.state, embeddings, sampled), expected)
        model.state.begin_iteration(sampled)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_gpu_memory_does_not_grow(compiled):
    model = Training("cuda", compiled)
    _steps(model, "cuda", 5)
    used = []
    for _ in range(5):
        _steps(model, "cuda", 20)
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated())
    assert used[-1] == used[1]


@pytest.mark.gpu
def test_gpu_graph_of_the_loss_part():
    """Forward and backward of the loss part, captured once, replayed on new features and other items."""
    model, sizes = Training("cuda", compiled=False), SIZES["cuda"]
    features = torch.randn(BATCH, CHANNELS, sizes.side, sizes.side, device="cuda", requires_grad=True)
    _, items = _batch("cuda")
    leaves = [features, *model.head.parameters()]

    def step():
        # Cached casts would belong to the first capture.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = model.loss_part(features, items)
        return loss, *torch.autograd.grad(loss, leaves)

    graph, captured = capture(step)
    for _ in range(2):
        with torch.no_grad():
            features.copy_(torch.randn_like(features))
            items.copy_(_batch("cuda")[1])
        graph.replay()
        replayed = [tensor.detach().clone() for tensor in captured]
        assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))
