"""What the benches of training compute: an op at one shape by everyone who can, the exact answer, and the bytes that
must move.

    workload = WORKLOADS["attention_dispersion.functional"](torch.device("cpu"), torch.float32)
    workload.contestants["published"].results()          # name -> tensor, to hold against workload.exact()

The published computation is always there, under "published"; the others are the op's implementations that have no
obstacle here. torch.compile of the published computation is made with `compiled`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import torch
from contestants import PUBLISHED, Contestant, Named, Outputs, Workload, serving
from hashing_workloads import discrete_step, hashing_loss
from targets import SCALE, scaled
from torch import Tensor, nn

import agmh_fast.functional as af
from agmh_fast.modules import StepwiseExternalAttention
from agmh_fast.official import Feat_Loss, SIExtAttn
from agmh_fast.reference.attention import StepwiseExternalAttention as PublishedAttention
from agmh_fast.reference.descriptor import DescriptorGroup
from agmh_fast.reference.dispersion import attention_dispersion

BATCH, DESCRIPTORS, CHANNELS, SIDE, SLOTS = (32, 6, 512, 14, 128) if SCALE >= 1 else (4, 6, 64, 6, 128)


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
    # The swapped names would compute real maps for whoever counts.
    counted = Contestant(through_functional("torch"), [features, *fused.parameters()], stacked)
    return Workload(contestants, exact, 10 * torch.finfo(dtype).eps + moved, *bytes_moved, counted=counted)


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


def _encoding(device: torch.device, dtype: torch.dtype) -> Workload:
    """Features of a ResNet-50 (32, 2048, 7, 7) to logits of 48 bits: convolution, BatchNorm, ReLU, mean and Θ."""
    torch.manual_seed(0)
    side, channels, bits = max(SIDE // 2, 1), 4 * CHANNELS, 48
    group = DescriptorGroup(channels, DESCRIPTORS, CHANNELS).eval().to(device, dtype)
    for conv, norm, _ in group.conv_list:
        nn.init.normal_(conv.bias, std=0.1)
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    x = torch.randn(BATCH, channels, side, side, device=device).relu().to(dtype)
    theta = torch.randn(bits, DESCRIPTORS * CHANNELS, device=device)
    if device.type == "cuda":
        x = x.contiguous(memory_format=torch.channels_last)

    def published(group: DescriptorGroup, x: Tensor, theta: Tensor) -> Outputs:
        with torch.no_grad():
            return (torch.cat([f.mean(dim=(2, 3)) for f in group(x)], dim=1) @ theta.T,)

    def together(part: int, name: str) -> Tensor:
        return torch.cat([getattr(group.conv_list[d][part], name).detach() for d in range(DESCRIPTORS)])

    weight, bias = together(0, "weight").flatten(1), together(0, "bias")
    norm = [together(1, name).float() for name in ("weight", "bias", "running_mean", "running_var")]

    def through(impl: str) -> Contestant:
        return Contestant(lambda: (af.encode_descriptors(x, weight, bias, *norm, theta, impl=impl)[1],), [], common)

    def common(outputs: Outputs, grads: Sequence[Tensor]) -> Named:
        return {"logits": outputs[0]}

    contestants = {PUBLISHED: Contestant(lambda: published(group, x, theta.to(dtype)), [], common)}
    contestants |= {impl: through(impl) for impl in serving("encode_descriptors", x, weight, bias, *norm, theta)}
    # The features and every weight once; the codes are nothing beside them.
    size = (x.numel() + weight.numel()) * dtype.itemsize + theta.numel() * 4
    band = 10 * torch.finfo(dtype).eps
    return Workload(
        contestants,
        lambda: common(published(copy.deepcopy(group).double(), x.double(), theta.double()), ()),
        band,
        size,
        # The same products; an op of ours is one operator to whoever counts.
        counted=contestants[PUBLISHED],
    )


# The published form keeps S and a copy of it, 16 bytes a pair, which a database of a million has no room for.
WORKLOADS: dict[str, Callable[[torch.device, torch.dtype], Workload]] = {
    "attention_dispersion.functional": functools.partial(_attention, "functional"),
    "attention_dispersion.official": functools.partial(_attention, "official"),
    "descriptor": _descriptor,
    "encoding": _encoding,
    "hashing_loss": hashing_loss,
    "discrete_step.5994": functools.partial(discrete_step, scaled(5_994, 4000), 48),
    "discrete_step.75750": functools.partial(discrete_step, scaled(75_750, 4000), 48),
    "discrete_step.1000000": functools.partial(discrete_step, scaled(1_000_000, 4000), 64),
}
