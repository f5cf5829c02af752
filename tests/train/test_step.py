"""One step of SGD and its options."""

from __future__ import annotations

import copy

import pytest
import torch

import agmh_fast as af
from agmh_fast import InputError
from agmh_fast.modules.small import SmallResNet
from agmh_fast.train import HashingState
from agmh_fast.train.step import Step


def _step(config, device="cpu") -> Step:
    torch.manual_seed(1)
    model = af.AGMH(12, SmallResNet(1, (4, 4, 8, 8)), num_descriptors=2, descriptor_dim=8, num_heads=2, memory_size=4)
    state = HashingState((torch.arange(18) % 3).to(device), 12, gamma=config.gamma)
    return Step(model.to(device).train(), state, config)


def _steps(step: Step, device="cpu", count=4) -> torch.Tensor:
    """Losses of steps on two batches' shapes, in two outer iterations."""
    generator, losses = torch.Generator().manual_seed(2), []
    for _ in range(2):
        step.begin_iteration(torch.arange(18, device=device))
        for number in range(count):
            size = 6 if number % 2 else 4
            items = torch.randperm(18, generator=generator)[:size]
            images = torch.randn(size, 1, 16, 16, generator=generator).to(device)
            losses.append(step(items.to(device), images, 0.01)[1])
        step.state.codes = step.state.codes.sign()
    return torch.stack(losses)


def _require_same(a: Step, b: Step, eps: float) -> None:
    theirs = b.model.state_dict()
    for name, value in a.model.state_dict().items():
        assert (value - theirs[name]).double().norm() <= eps * (1 + theirs[name].double().norm()), name


def test_a_step_is_that_of_plain_torch(make_config):
    config = make_config(weight_decay=0.1)
    step, twin = _step(config), copy.deepcopy(_step(config).model)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1)
    items, images = torch.tensor([3, 1, 7]), torch.randn(3, 1, 16, 16)
    step.begin_iteration(torch.arange(18))
    embedding, losses = step(items, images, 0.02)
    out = twin(images)
    loss = af.functional.asymmetric_hashing_loss(out.embedding, items, step.state)
    (loss.total + 0.5 * out.attention_dispersion).backward()
    sgd.step()
    assert torch.equal(embedding, out.embedding.detach())
    assert losses.tolist() == [loss.pairwise.item(), loss.quantization.item(), out.attention_dispersion.item()]
    for ours, theirs in zip(step.model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_fused_optimiser_takes_the_same_steps(make_config):
    plain, fused = _step(make_config()), _step(make_config(fused=True))
    # Eight updates, each a few roundings of float32.
    eps = 100 * torch.finfo(torch.float32).eps
    assert torch.allclose(_steps(plain), _steps(fused), rtol=eps, atol=eps)
    _require_same(plain, fused, eps)
    assert fused.optimizer.param_groups[0]["fused"]


def test_a_cuda_graph_needs_cuda(make_config):
    with pytest.raises(InputError, match="cuda_graph needs a CUDA device"):
        make_config(cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_captured_step_is_the_eager_one(make_config, precision):
    made = {
        graph: make_config(device="cuda", precision=precision, fused=True, cuda_graph=graph) for graph in (False, True)
    }
    eager, captured = _step(made[False], "cuda"), _step(made[True], "cuda")
    expected, actual = _steps(eager, "cuda"), _steps(captured, "cuda")
    # cuDNN may choose other algorithms in a capture: a few roundings, which SGD carries from step to step.
    eps = 1e-3 if precision == "fp32" else 5e-2
    assert torch.allclose(actual, expected, rtol=eps)
    _require_same(captured, eager, eps)
    assert captured.model.descriptors.bn.num_batches_tracked == 8
