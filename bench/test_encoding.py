"""Images to codes, ResNet-50 at 224², 48 bits: the published forward, our model, and the one made for encoding.

All logits are held against float64 ones first. A row also says what multiplies bfloat16: the target of that was set
where AMX does, and without any of it there is none.
"""

from __future__ import annotations

import copy

import pytest
import torch
from contest import Side, cases
from limits import Work, roof, roofs
from measuring import DEVICE, bf16_unit
from published import PublishedAGMH
from targets import SCALE, Target
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import agmh_fast as af

SIDE = 224 if SCALE >= 1 else 64


def _trained() -> af.AGMH:
    """A ResNet-50 whose statistics are those of its own features, as after training."""
    torch.manual_seed(0)
    model = af.AGMH(48).train()
    with torch.no_grad():
        for _ in range(3):
            model.features(torch.randn(4, 3, SIDE, SIDE))
    return model.eval().to(DEVICE)


@pytest.mark.benchmark(group="encoding, ResNet-50, 224x224, 48 bits")
@cases("batch", [8] if DEVICE.type == "cpu" else [256], [1] if DEVICE.type == "cpu" else [8])
def test_encoding(contest, batch):
    model, images = _trained(), torch.randn(batch, 3, SIDE, SIDE, device=DEVICE)
    published = PublishedAGMH(model).to(DEVICE)
    made = {"float32": model.for_encoding(), "bfloat16": model.for_encoding(torch.bfloat16)}

    def logits(model: af.AGMH) -> Tensor:
        with torch.no_grad():
            return model.logits(model.features(images)).double()

    with torch.no_grad():
        exact = copy.deepcopy(published).double().logits(images[:2].double())
        own = (published.logits(images[:2]) - exact).norm() / exact.norm()
    errors = {name: float((logits(encoder)[:2] - exact).norm() / exact.norm()) for name, encoder in made.items()}
    assert errors["float32"] <= 2 * own + 10 * torch.finfo(torch.float32).eps
    # 54 layers round their activations to 8 bits.
    assert errors["bfloat16"] <= 54 * torch.finfo(torch.bfloat16).eps

    def forward() -> Tensor:
        with torch.no_grad():
            return published(images)[0] >= 0

    # Of the model as it is: the counter does not know the operators that the encoder is made of.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        published.logits(images)
    weights = sum(p.numel() for p in made["float32"].parameters())
    work = Work(4 * (weights + images.numel()), counter.get_total_flops(), "flop", images=batch)
    targets = [Target("speedup", least=1.6), *([Target("bf16", least=3.5)] if bf16_unit(DEVICE) else [])]
    contest(
        {
            "for_encoding, float32": Side(lambda: made["float32"].encode(images)),
            "for_encoding, bfloat16": Side(lambda: made["bfloat16"].encode(images)),
            "model.encode": Side(lambda: model.encode(images)),
            "published": Side(forward),
        },
        work, "published", roof(work, DEVICE, torch.float32),
        targets if batch == 8 and DEVICE.type == "cpu" else (),
        lambda medians: {"bf16": medians["published"] / medians["for_encoding, bfloat16"]}, budget=15,
        batch=batch, bf16_unit=bf16_unit(DEVICE), errors=errors, **roofs(DEVICE, torch.float32),
    )  # fmt: skip
