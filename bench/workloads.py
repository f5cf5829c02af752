"""What the benches of training compute: an op at one shape by everyone who can, the exact answer, and the bytes that
must move.

    workload = WORKLOADS["attention_dispersion.functional"](torch.device("cpu"), torch.float32)
    workload.contestants["published"].results()          # name -> tensor, to hold against workload.exact()

The published computation is always there, under "published"; the others are the op's implementations that have no
obstacle here. torch.compile of the published computation is made with `compiled`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import agmh_fast.functional as af
from agmh_fast.modules import StepwiseExternalAttention
from agmh_fast.official import Feat_Loss, SIExtAttn
from agmh_fast.reference import hashing as reference
from agmh_fast.reference.attention import StepwiseExternalAttention as PublishedAttention
from agmh_fast.reference.dispersion import attention_dispersion
from agmh_fast.train import HashingState

Outputs = Sequence[Tensor]
Named = dict[str, Tensor]

BATCH, DESCRIPTORS, CHANNELS, SIDE, SLOTS = 32, 6, 512, 14, 128
PUBLISHED, COMPILED = "published", "published, torch.compile"


@dataclass(frozen=True)
class Contestant:
    """One way to compute a workload. `weights` are the gradients of the outputs; `common` names what all compute."""

    forward: Callable[[], Outputs]
    leaves: Sequence[Tensor]
    common: Callable[[Outputs, Sequence[Tensor]], Named]
    weights: Sequence[Tensor] | None = None

    def gradients(self, outputs: Outputs) -> Sequence[Tensor]:
        """Of every leaf."""
        return torch.autograd.grad(outputs, self.leaves, self.weights)

    def results(self) -> Named:
        """What all contestants compute, by name."""
        outputs = self.forward()
        grads = self.gradients(outputs) if self.leaves else ()
        return {name: tensor.detach() for name, tensor in self.common(outputs, grads).items()}


@dataclass(frozen=True)
class Workload:
    """A race: its contestants, the exact answer, the error allowed beside twice the baseline's, and the fewest bytes
    that forward and backward move. A band of 0 asks for the exact answer itself of all but the published computation.
    """

    contestants: dict[str, Contestant]
    exact: Callable[[], Named]
    band: float
    forward_bytes: int
    backward_bytes: int = 0
    baseline: str = PUBLISHED

    @property
    def directions(self) -> tuple[str, ...]:
        """What can be timed."""
        return ("forward", "backward", "both") if self.contestants[self.baseline].leaves else ("forward",)

    def minimal_bytes(self, direction: str) -> int:
        """The fewest bytes that must move."""
        parts = {"forward": self.forward_bytes, "backward": self.backward_bytes}
        return parts.get(direction, sum(parts.values()))


def compiled(workload: Workload) -> Contestant:
    """The published computation under torch.compile; it is compiled when it is first called."""
    published = workload.contestants[PUBLISHED]
    return dataclasses.replace(published, forward=torch.compile(published.forward))


def serving(op: str, *args: object) -> list[str]:
    """Implementations of an op that can serve these arguments, less the reference."""
    implementations = af.OPS[op].implementations
    return [name for name in implementations if name != "reference" and af.OPS[op].obstacle(name, *args) is None]


def attention_modules(
    device: torch.device | str = "cpu",
) -> tuple[list[PublishedAttention], StepwiseExternalAttention, list[SIExtAttn]]:
    """The published modules, ours and the swapped names, all with the same parameters."""
    torch.manual_seed(0)
    published = [PublishedAttention(CHANNELS).to(device) for _ in range(DESCRIPTORS)]
    swapped = [SIExtAttn(CHANNELS, 4).to(device) for _ in range(DESCRIPTORS)]
    for ours, theirs in zip(swapped, published, strict=True):
        ours.load_state_dict(theirs.state_dict())
    fused = StepwiseExternalAttention(DESCRIPTORS, CHANNELS).to(device)
    with torch.no_grad():
        for d, module in enumerate(published):
            fused.conv_weight[d] = module.conv1.weight[..., 0, 0]
            fused.conv_bias[d] = module.conv1.bias
            fused.query[d] = torch.stack([conv.weight[..., 0] for conv in module.qry_conv])
            fused.mix[d] = torch.stack([conv.weight[..., 0] for conv in module.alt_conv])
            fused.value[d] = module.linear.weight[..., 0]
            fused.project[d] = module.conv2[0].weight[..., 0, 0]
    return published, fused, swapped


def _attention_bytes(size: int) -> tuple[int, int]:
    """kernels/peak_response/README.md's table without the split sums, for elements of `size` bytes.

    Nothing of (C × positions) but the features moves: twice forward, since BatchNorm needs every position before any
    peak, and once backward beside their gradient; between them the attention of every position.
    """
    positions = BATCH * DESCRIPTORS * SIDE**2
    features, attention = positions * CHANNELS * size, positions * SLOTS * size
    weight = DESCRIPTORS * CHANNELS * SLOTS
    forward = 2 * features + 3 * attention + 2 * weight * size + 10 * positions
    backward = 2 * features + 5 * attention + 3 * weight * size + 8 * weight + (3 * size + 10) * positions
    return forward, backward


def _attention(path: str, device: torch.device, dtype: torch.dtype) -> Workload:
    """SIEA and ADL of features (32, 6·512, 14, 14), from features to the loss."""
    published, fused, swapped = attention_modules(device)
    features = torch.randn(BATCH, DESCRIPTORS * CHANNELS, SIDE, SIDE, device=device).relu().to(dtype)
    if device.type == "cuda":
        features = features.contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    modules = nn.ModuleList(published)

    def forward(modules: nn.ModuleList, x: Tensor, autocast: bool) -> Outputs:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            parts = x.chunk(DESCRIPTORS, dim=1)
            return (attention_dispersion([attend(part) for attend, part in zip(modules, parts, strict=True)]),)

    def common(per_module: Sequence[str]) -> Callable[[Outputs, Sequence[Tensor]], Named]:
        def pick(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
            named = {name: grads[1 + i :: len(per_module)] for i, name in enumerate(per_module)}
            stacked = {name: torch.stack(list(named[key])).flatten(1) for name, key in _COMMON.items()}
            return {"loss": outputs[0], "features": grads[0]} | stacked

        return pick

    def through_names(impl: str) -> Callable[[], Outputs]:
        def run() -> Outputs:
            for attend in swapped:
                attend.impl = impl
            maps = [attend(x) for attend, x in zip(swapped, features.chunk(DESCRIPTORS, dim=1), strict=True)]
            return (Feat_Loss()(None, None, maps, "cpu"),)

        return run

    def through_functional(impl: str) -> Callable[[], Outputs]:
        return lambda: (af.attention_dispersion(features, fused.params, impl=impl),)

    def stacked(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
        named = dict(zip([name for name, _ in fused.named_parameters()], grads[1:], strict=True))
        return {"loss": outputs[0], "features": grads[0]} | {name: named[name].flatten(1) for name in _COMMON}

    names = [name for name, _ in published[0].named_parameters()]
    contestants = {
        PUBLISHED: Contestant(
            lambda: forward(modules, features, dtype != torch.float32), [features, *modules.parameters()], common(names)
        )
    }
    for impl in serving("attention_dispersion", features, fused.params):
        if path == "official":
            leaves = [features, *nn.ModuleList(swapped).parameters()]
            contestants[impl] = Contestant(through_names(impl), leaves, common(names))
        else:
            contestants[impl] = Contestant(through_functional(impl), [features, *fused.parameters()], stacked)

    def exact() -> Named:
        x, double = features.detach().double().requires_grad_(), copy.deepcopy(modules).double()
        return Contestant(lambda: forward(double, x, False), [x, *double.parameters()], common(names)).results()

    # Two of the 37 632 positions may have another arg max where two channels come close: that moves an entry of the
    # gradient each.
    moved = (2 * 2 / (BATCH * DESCRIPTORS * SIDE**2)) ** 0.5
    bytes_moved = _attention_bytes(dtype.itemsize)
    return Workload(contestants, exact, 10 * torch.finfo(dtype).eps + moved, *bytes_moved)


# Our parameters that have a published twin of the same elements in the same order.
_COMMON = {
    "conv_weight": "conv1.weight",
    "value": "linear.weight",
    "project": "conv2.0.weight",
    "bn_weight": "conv2.1.weight",
    "bn_bias": "conv2.1.bias",
}


def _descriptor(device: torch.device, dtype: torch.dtype) -> Workload:
    """BatchNorm, ReLU and the mean over positions of a convolution's output (32, 6·512, 14, 14)."""
    torch.manual_seed(0)
    channels = DESCRIPTORS * CHANNELS
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    y, weight = (
        torch.randn(BATCH, channels, SIDE, SIDE, device=device).to(dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    y.requires_grad_()
    pooled_weight = torch.randn(BATCH, channels, device=device)
    norms = nn.ModuleList(nn.BatchNorm2d(CHANNELS) for _ in range(DESCRIPTORS)).to(device)
    gamma, beta = (torch.full((channels,), value, device=device, requires_grad=True) for value in (1.0, 0.0))
    running = torch.zeros(channels, device=device), torch.ones(channels, device=device)

    def published(norms: nn.ModuleList, y: Tensor) -> Outputs:
        features = [norm(part).relu() for norm, part in zip(norms, y.chunk(DESCRIPTORS, dim=1), strict=True)]
        return *features, torch.cat([f.mean(dim=(2, 3)) for f in features], dim=1)

    def by_module(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
        return {
            "features": torch.cat(list(outputs[:-1]), dim=1),
            "pooled": outputs[-1],
            "y": grads[0],
            "gamma": torch.cat(list(grads[1::2])),
            "beta": torch.cat(list(grads[2::2])),
        }

    def common(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
        return dict(zip(("features", "pooled", "y", "gamma", "beta"), (*outputs, *grads), strict=True))

    def through(impl: str) -> Contestant:
        return Contestant(
            lambda: af.batch_norm_relu_mean(y, gamma, beta, *running, impl=impl),
            [y, gamma, beta],
            common,
            [weight, pooled_weight],
        )

    def exact() -> Named:
        x, double = y.detach().double().requires_grad_(), copy.deepcopy(norms).double()
        weights = [*weight.double().chunk(DESCRIPTORS, dim=1), pooled_weight.double()]
        return Contestant(lambda: published(double, x), [x, *double.parameters()], by_module, weights).results()

    weights = [*weight.chunk(DESCRIPTORS, dim=1), pooled_weight.to(dtype)]
    contestants = {
        PUBLISHED: Contestant(lambda: published(norms, y), [y, *norms.parameters()], by_module, weights),
        **{impl: through(impl) for impl in serving("batch_norm_relu_mean", y, gamma, beta, *running, True, 0.1, 1e-5)},
    }
    # y twice, for the statistics and for F; backward y and dF twice, for the sums and for dy.
    each = y.numel() * dtype.itemsize
    eps = torch.finfo(dtype).eps
    # ReLU passes or stops an element's gradient whose sign a rounding decides: one in 1/eps.
    return Workload(contestants, exact, 10 * eps + eps**0.5, 3 * each, 5 * each)


def _hashing_state(count: int, bits: int, device: torch.device) -> tuple[HashingState, Tensor]:
    """A database of 101 classes at the start of an outer iteration with 2000 sampled items."""
    torch.manual_seed(0)
    state = HashingState(torch.randint(0, 101, (count,)).to(device), bits)
    sampled = torch.randperm(count)[:2000].to(device)
    state.codes = state.codes.sign()
    state.begin_iteration(sampled)
    return state, sampled


def _hashing_loss(device: torch.device, dtype: torch.dtype) -> Workload:
    """Pairwise and quantization loss of 32 images, 48 bits, N = 75 750."""
    count, bits = 75_750, 48
    state, sampled = _hashing_state(count, bits, device)
    embedding, items = torch.tanh(torch.randn(BATCH, bits, device=device)).requires_grad_(), sampled[:BATCH]
    similarity = reference.similarity(state.labels[sampled], state.labels, torch.float32)[:BATCH]

    def published(u: Tensor, codes: Tensor, s: Tensor) -> Outputs:
        pairwise = reference.pairwise_loss(u, codes, s)
        return (pairwise + reference.quantization_loss(u, codes[items], count, state.gamma),)

    def common(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
        return {"loss": outputs[0], "embedding": grads[0]}

    def through(impl: str) -> Contestant:
        return Contestant(
            lambda: (af.asymmetric_hashing_loss(embedding, items, state, impl=impl).total,), [embedding], common
        )

    def exact() -> Named:
        u, s = embedding.detach().double().requires_grad_(), similarity.double()
        return Contestant(lambda: published(u, state.codes.double(), s), [u], common).results()

    contestants = {
        PUBLISHED: Contestant(lambda: published(embedding, state.codes, similarity), [embedding], common),
        **{impl: through(impl) for impl in serving("asymmetric_hashing_loss", embedding, items, state)},
    }
    # The batch's embedding, targets (float64) and codes, the Gram matrix (float64); backward reads them again.
    bytes_moved = BATCH * bits * (4 + 8 + 4) + 8 * bits**2
    # Sums of N float32 products in whatever order.
    band = torch.finfo(dtype).eps * count**0.5
    return Workload(contestants, exact, band, bytes_moved, bytes_moved + 4 * BATCH * bits)


def _discrete_step(count: int, bits: int, device: torch.device, dtype: torch.dtype) -> Workload:
    """A sweep over the bits of N codes for 2000 sampled items; S is given to the published form for free."""
    state, sampled = _hashing_state(count, bits, device)
    embeddings = torch.tanh(torch.randn(2000, bits, device=device))
    dense = count * len(sampled) <= 2 * 10**8
    similarity = reference.similarity(state.labels[sampled], state.labels, torch.float32) if dense else None

    def published() -> Outputs:
        """As published, in float32: for every bit B' times U'ᵀu, without the bit's own column."""
        B, spread = state.codes.clone(), torch.zeros_like(state.codes)
        spread[sampled] = embeddings
        Q = (bits * similarity).T @ embeddings + state.gamma * spread
        for bit in range(bits):
            others = [i for i in range(bits) if i != bit]
            B[:, bit] = (Q[:, bit] - B[:, others] @ embeddings[:, others].T @ embeddings[:, bit]).sign()
        return (B,)

    def common(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
        return {"codes": outputs[0]}

    def through(impl: str) -> Contestant:
        return Contestant(lambda: (af.OPS["update_database_codes"](state, embeddings, sampled, impl=impl),), [], common)

    def exact() -> Named:
        impl = "reference" if dense else "torch"
        return {"codes": af.OPS["update_database_codes"](state, embeddings, sampled, impl=impl)}

    contestants = {PUBLISHED: Contestant(published, [], common)} if dense else {}
    contestants |= {impl: through(impl) for impl in serving("update_database_codes", state, embeddings, sampled)}
    # Codes in and out, two int64 an item that say which targets and embeddings are its own.
    bytes_moved = count * (8 * bits + 16)
    return Workload(contestants, exact, 0, bytes_moved, baseline=PUBLISHED if dense else "torch")


# The published form keeps S and a copy of it, 16 bytes a pair, which a database of a million has no room for.
WORKLOADS: dict[str, Callable[[torch.device, torch.dtype], Workload]] = {
    "attention_dispersion.functional": functools.partial(_attention, "functional"),
    "attention_dispersion.official": functools.partial(_attention, "official"),
    "descriptor": _descriptor,
    "hashing_loss": _hashing_loss,
    "discrete_step.5994": functools.partial(_discrete_step, 5_994, 48),
    "discrete_step.75750": functools.partial(_discrete_step, 75_750, 48),
    "discrete_step.1000000": functools.partial(_discrete_step, 1_000_000, 64),
}
