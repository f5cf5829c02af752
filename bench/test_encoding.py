"""Images to codes, ResNet-50 at 224², 48 bits: the published forward, our model, and the one made for encoding.

All logits are held against float64 ones first. A row's `extra_info` has p20, p50 and p80 of every contestant, its
ratio to the published forward and its targets; on a CPU also whether it has a matrix unit for bfloat16, without which
that target is out of reach.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import DEVICE
from hamming_targets import SCALE, Target, judged
from measuring import Timed, percentiles
from published import PublishedAGMH
from torch import Tensor

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


def _matrix_unit() -> bool:
    """Whether bfloat16 products have hardware of their own."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return DEVICE.type == "cuda" or bool(found.get("amx_bf16"))


@pytest.mark.benchmark(group="encoding, ResNet-50, 224x224, 48 bits")
@pytest.mark.parametrize("batch", [8, 1] if DEVICE.type == "cpu" else [256, 8])
def test_encoding(benchmark, take_turns, say, request, batch):
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

    seconds = take_turns(
        {
            "for_encoding, float32": Timed(lambda: made["float32"].encode(images)),
            "for_encoding, bfloat16": Timed(lambda: made["bfloat16"].encode(images)),
            "model.encode": Timed(lambda: model.encode(images)),
            "published": Timed(forward),
        },
        budget=60,
    )
    times = {name: percentiles(taken) for name, taken in seconds.items()}
    for facts in times.values():
        facts["speedup"] = times["published"]["p50_s"] / facts["p50_s"]
        facts["images_per_s"] = batch / facts["p50_s"]
    measured = {name: times[f"for_encoding, {name}"]["speedup"] for name in made}
    targets = [Target("float32", least=1.6), *([Target("bfloat16", least=3.5)] if _matrix_unit() else [])]
    say(f"\n{request.node.name}:{'' if _matrix_unit() else ' no matrix unit for bfloat16 here'}")
    for name, facts in times.items():
        say(f"  {name}: {facts['p50_s'] * 1e3:.3g} ms, {facts['speedup']:.3g}x, {facts['images_per_s']:.3g} images/s")
    benchmark.extra_info.update(
        batch=batch,
        scale=SCALE,
        speedup=measured["float32"],
        rounds=len(seconds["published"]),
        matrix_unit=_matrix_unit(),
        errors=errors,
        contestants=times,
        **(judged(targets, measured) if batch == 8 and DEVICE.type == "cpu" else {}),
    )
