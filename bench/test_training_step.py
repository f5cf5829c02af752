"""A step of training from JPEG files, ResNet-50 at 224², 48 bits, N = 5994: the published step and ours.

Parts are timed one by one, forward and backward of each, with the graph cut between them: data, backbone, descriptors
(with the mean and the hash layer), attention with the dispersion loss, hashing loss, optimiser. `whole` is the same
step uncut, without data; its ratio to the published one has the targets. Losses of all are held against the published
ones first. Data: the published loader decodes, crops and normalises an image at a time; ours reads a cache.
`python bench/plot_training_step.py RUN.json OUT.png` draws the parts.

Ours runs as `fit` does, with the memory that it frees kept, the published step as a script does: before ours is timed a
step fills that memory, and it is given back after.

The targets are those of batch 32. AGMH_BENCH_SCALE=0.1 takes small images, to try the bench itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from contest import Side, cases
from jpegs import jpeg_data, published_batch
from limits import Work, roof, roofs
from measuring import DEVICE, Clock, bf16_unit
from published import PublishedAGMH
from targets import SCALE, Target
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import agmh_fast as af
import agmh_fast.functional as F
from agmh_fast.data import cached
from agmh_fast.reference import hashing as reference
from agmh_fast.reference.dispersion import attention_dispersion
from agmh_fast.train import TrainConfig
from agmh_fast.train.memory import kept_memory
from agmh_fast.train.step import Step

SIDE = 224 if SCALE >= 1 else 64
COUNT, BITS, ROUNDS = 5994, 48, 5
PARTS = ("data", "backbone", "descriptors", "attention", "hashing loss", "optimiser")
Cut = dict[str, float]
# pytest-benchmark's row is the first.
ORDER = ("ours, fp32", "ours, bf16", "published")


class Timer:
    """Seconds of parts that follow each other."""

    def __init__(self) -> None:
        self.seconds: Cut = dict.fromkeys(PARTS, 0.0)
        self._clock = Clock(DEVICE)

    def __call__(self, part: str, run: Callable[[], Any]) -> Any:
        kept: list[Any] = []
        self.seconds[part] += self._clock.seconds(lambda: kept.append(run()))
        return kept[0]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


class Published:
    """The published step: S of the batch's rows, D attentions of their own, plain SGD, float32."""

    def __init__(self, model: af.AGMH, state: af.train.HashingState, sampled: Tensor) -> None:
        self.model, self.state = PublishedAGMH(model).to(DEVICE).train(), state
        self.similarity = reference.similarity(state.labels[sampled], state.labels, torch.float32)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, nesterov=True)

    def _hashing(self, embedding: Tensor, items: Tensor) -> Tensor:
        pairwise = reference.pairwise_loss(embedding, self.state.codes, self.similarity[: len(items)])
        own = reference.quantization_loss(embedding, self.state.codes[items], len(self.state), self.state.gamma)
        return pairwise + own

    memory = staticmethod(nullcontext)

    def whole(self, items: Tensor, images: Tensor) -> Tensor:
        self.sgd.zero_grad()
        embedding, attended = self.model(images)
        loss = self._hashing(embedding, items) + 0.5 * attention_dispersion(attended)
        loss.backward()
        self.sgd.step()
        return loss.detach()

    def parts(self, items: Tensor, images: Tensor, timer: Timer) -> None:
        model = self.model
        self.sgd.zero_grad()
        x = timer("backbone", lambda: model.backbone(images))
        own = _leaf(x)
        described = timer("descriptors", lambda: model.describe(own))
        cut = [_leaf(f) for f in described]
        timer("attention", lambda: (0.5 * attention_dispersion(model.attend(cut))).backward())
        embedding = timer("descriptors", lambda: model.hash(cut))
        last = _leaf(embedding)
        timer("hashing loss", lambda: self._hashing(last, items).backward())
        timer("descriptors", lambda: embedding.backward(last.grad))
        timer("descriptors", lambda: torch.autograd.backward(described, [f.grad for f in cut]))
        timer("backbone", lambda: x.backward(own.grad))
        timer("optimiser", self.sgd.step)


class Ours:
    """The trainer's own step, with channels_last, a fused optimiser and a precision."""

    def __init__(self, model: af.AGMH, state: af.train.HashingState, precision: str) -> None:
        config = TrainConfig(
            bits=BITS, channels_last=True, fused=True, precision=precision, device=DEVICE.type, schedule="constant"
        )
        self.step = Step(model.to(memory_format=torch.channels_last).train(), state, config)
        self.precision = config.precision

    memory = staticmethod(lambda: kept_memory(DEVICE))

    def whole(self, items: Tensor, images: Tensor) -> Tensor:
        losses = self.step(items, images, 1e-3)[1]
        return losses[0] + losses[1] + 0.5 * losses[2]

    def parts(self, items: Tensor, images: Tensor, timer: Timer) -> None:
        model = self.step.model
        images = images.contiguous(memory_format=torch.channels_last)
        self.step.optimizer.zero_grad()

        def forward(run: Callable[[], Any]) -> Callable[[], Any]:
            def within() -> Any:
                with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16"):
                    return run()

            return within

        x = timer("backbone", forward(lambda: model.backbone(images)))
        own = _leaf(x)
        features, pooled = timer("descriptors", forward(lambda: model.descriptors(own)))
        cut, mean = _leaf(features), _leaf(pooled)
        loss = timer("attention", forward(lambda: 0.5 * model.attention(cut)))
        timer("attention", loss.backward)
        embedding = timer("descriptors", lambda: torch.tanh(mean @ model.hash_weight.T))
        last = _leaf(embedding)
        timer("hashing loss", lambda: F.asymmetric_hashing_loss(last, items, self.step.state).total.backward())
        timer("descriptors", lambda: embedding.backward(last.grad))
        timer("descriptors", lambda: torch.autograd.backward([features, pooled], [cut.grad, mean.grad]))
        timer("backbone", lambda: x.backward(own.grad))
        timer("optimiser", self.step.optimizer.step)


def _entrants() -> tuple[dict[str, Published | Ours], Tensor]:
    """Everyone from the same weights, codes and sampled items; which are returned."""
    torch.manual_seed(0)
    model = af.AGMH(BITS)
    state = af.train.HashingState(torch.randint(0, 200, (COUNT,)).to(DEVICE), BITS)
    state.codes = state.codes.sign()
    sampled = torch.randperm(COUNT)[:2000].to(DEVICE)
    state.begin_iteration(sampled)
    weights = model.state_dict()

    def copied() -> af.AGMH:
        twin = af.AGMH(BITS)
        twin.load_state_dict(weights)
        return twin.to(DEVICE)

    return {
        "published": Published(copied(), state, sampled),
        "ours, fp32": Ours(copied(), state, "fp32"),
        "ours, bf16": Ours(copied(), state, "bf16"),
    }, sampled


@pytest.mark.benchmark(group="training step, ResNet-50, 224x224, 48 bits, N=5994")
@cases("batch", [8], [32])
def test_training_step(contest, say, tmp_path, batch):
    entrants, sampled = _entrants()
    data = jpeg_data(tmp_path / "images", batch, SIDE)
    from_cache = cached(data, tmp_path / "cache", lambda line: None).database
    order = torch.arange(batch)

    def images_of(name: str) -> Tensor:
        if name == "published":
            return published_batch(data.database, order, SIDE)
        return from_cache.load(order, torch.Generator().manual_seed(0))

    items = sampled[:batch]
    images = torch.randn(batch, 3, SIDE, SIDE, device=DEVICE)
    losses = {}
    for name, entrant in entrants.items():
        with FlopCounterMode(display=False) as counter:
            losses[name] = float(entrant.whole(items, images))
    # From the same weights: sums of float32 in other orders, of which a GPU's convolutions keep 10 bits (TF32);
    # bfloat16 rounds the activations of some hundred layers.
    assert losses["ours, fp32"] == pytest.approx(losses["published"], rel=1e-3 if DEVICE.type == "cuda" else 1e-4)
    assert losses["ours, bf16"] == pytest.approx(losses["published"], rel=0.05)

    parts = {
        name: _parts(entrant, items, images, lambda name=name: images_of(name)) for name, entrant in entrants.items()
    }
    for name, cut in parts.items():
        say(f"\n  {name}: {', '.join(f'{part} {taken * 1e3:.3g}' for part, taken in cut.items())} ms")
    targets = [Target("speedup", least=1.3), *([Target("bf16", least=2.2)] if bf16_unit(DEVICE) else [])]
    parameters = sum(p.numel() for p in entrants["published"].model.parameters())
    # Parameters, gradients and momenta, read and written; images.
    work = Work(4 * (6 * parameters + images.numel()), counter.get_total_flops(), "flop", images=batch)
    with ExitStack() as memory:
        sides = {
            name: Side(
                lambda entrant: entrant.whole(items, images),
                prepare=lambda entrant=entrants[name]: _ready(entrant, memory, items, images),
                facts={"parts_s": parts[name]},
            )
            for name in ORDER
        }
        contest(
            sides, work, "published", roof(work, DEVICE, torch.float32),
            targets if batch == 32 and DEVICE.type == "cpu" else (),
            lambda medians: {"bf16": medians["published"] / medians["ours, bf16"]}, rounds=ROUNDS,
            batch=batch, bf16_unit=bf16_unit(DEVICE), losses=losses, **roofs(DEVICE, torch.float32),
        )  # fmt: skip


def _ready(entrant: Published | Ours, memory: ExitStack, items: Tensor, images: Tensor) -> Published | Ours:
    """The entrant, with memory as it is in the middle of a run: of ours on a CPU filled by the step before."""
    memory.close()
    memory.enter_context(entrant.memory())
    if DEVICE.type == "cpu" and isinstance(entrant, Ours):
        entrant.whole(items, images)
    return entrant


def _parts(entrant: Published | Ours, items: Tensor, images: Tensor, data: Callable[[], Tensor]) -> Cut:
    """Median seconds of every part."""
    cuts: list[Cut] = []
    with entrant.memory():
        for _ in range(ROUNDS):
            timer = Timer()
            timer("data", data)
            entrant.parts(items, images, timer)
            cuts.append(timer.seconds)
    return {part: statistics.median(cut[part] for cut in cuts) for part in PARTS}
