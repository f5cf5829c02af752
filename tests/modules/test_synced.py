"""Batch statistics over two ranks are those of one process on all images."""

from __future__ import annotations

import copy

import distributed_cases as cases
import pytest
import torch
from ranks import ranks

from agmh_fast.modules import synchronize_statistics


@pytest.fixture(scope="module")
def two():
    with ranks(2) as group:
        yield group


# float64 by torch operators, float32 by the compiled ops: some dozen layers' roundings of sums in another order.
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 1e-11), (torch.float32, 2e-3)])
def test_gradients_and_buffers_are_those_of_one_process(two, dtype, eps):
    images = torch.randn(cases.IMAGES, 1, 32, 32, dtype=dtype)
    first, second = two.run(cases.step, dtype, images)
    model = cases.made(dtype).train()
    for _ in range(2):
        model.zero_grad()
        cases.loss_of(model, images).backward()
    scale = max(float(parameter.grad.norm()) for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        error = (first[name] + second[name] - parameter.grad).norm()
        assert error <= eps * (parameter.grad.norm() + 1e-2 * scale), name
    for name, buffer in model.named_buffers():
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - buffer).double().norm() <= eps * (1 + buffer.double().norm()), name


def test_a_synchronised_model_encodes_and_is_saved_as_before():
    model = cases.made(torch.float32)
    synced = synchronize_statistics(copy.deepcopy(model)).eval()
    images = torch.randn(3, 1, 32, 32)
    assert torch.equal(synced.encode(images), model.encode(images))
    assert torch.equal(synced.for_encoding().encode(images), model.for_encoding().encode(images))
    assert list(synced.state_dict()) == list(model.state_dict())
    kinds = {type(module).__name__ for module in synced.for_encoding().backbone.modules()}
    assert "SyncedBatchNorm2d" not in kinds
