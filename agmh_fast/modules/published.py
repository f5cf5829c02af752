"""State dicts of the published code and of ours, one into the other.

Published: a convolution, a BatchNorm and an attention of their own for each descriptor; ours: the same tensors stacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agmh_fast.errors import InputError, require

_BN = ("weight", "bias", "running_mean", "running_var")
# Our attention's names, the published ones, and the trailing axes of size one that convolutions have.
_ATTENTION = (
    ("conv_weight", "conv1.weight", 2),
    ("conv_bias", "conv1.bias", 0),
    ("value", "linear.weight", 1),
    ("project", "conv2.0.weight", 2),
    ("bn_weight", "conv2.1.weight", 0),
    ("bn_bias", "conv2.1.bias", 0),
    ("running_mean", "conv2.1.running_mean", 0),
    ("running_var", "conv2.1.running_var", 0),
)
_HEADS = (("query", "qry_conv"), ("mix", "alt_conv"))


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in state:
        count += 1
    return count


def read_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `AGMH` that fit a published state dict."""
    require("hash_map" in state, "the checkpoint has no 'hash_map': it is not a published AGMH state dict")
    descriptors = _count(state, "refine.conv_list.{}.0.weight")
    require(
        descriptors > 0, "the checkpoint has no 'refine.conv_list.0.0.weight': it is not a published AGMH state dict"
    )
    attention = "refine.attn_list.0."
    heads = _count(state, attention + "qry_conv.{}.weight")
    require(heads > 0, f"the checkpoint has no '{attention}qry_conv.0.weight'")
    return {
        "bits": state["hash_map"].shape[0],
        "backbone": _resnet_name(state),
        "num_descriptors": descriptors,
        "descriptor_dim": state["refine.conv_list.0.0.weight"].shape[0],
        "num_heads": heads,
        "memory_size": state[attention + "qry_conv.0.weight"].shape[0],
    }


def _resnet_name(state: Mapping[str, Tensor]) -> str:
    deep = "backbone.layer1.0.conv3.weight" in state
    blocks = _count(state, "backbone.layer3.{}.conv1.weight")
    names = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50", (True, 23): "resnet101"}
    if (deep, blocks) not in names:
        raise InputError(f"the checkpoint's backbone (layer3 of {blocks} blocks) is no ResNet-18, 34, 50 or 101")
    return names[deep, blocks]


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from a published one; raises InputError naming a missing, left-over or misshapen tensor."""
    remaining = {key: value for key, value in state.items() if not key.startswith("backbone.fc.")}

    def take(key: str) -> Tensor:
        require(key in remaining, f"the checkpoint has no {key!r}")
        return remaining.pop(key)

    def stack(pattern: str, count: int) -> Tensor:
        parts = [take(pattern.format(i)) for i in range(count)]
        same = all(part.shape == parts[0].shape for part in parts)
        require(same, f"the checkpoint's {pattern.format('*')!r} differ in shape")
        return torch.stack(parts)

    config = read_config(state)
    descriptors, heads = config["num_descriptors"], config["num_heads"]
    ours = {key: take(key) for key in list(remaining) if key.startswith("backbone.")}
    ours["descriptors.conv.weight"] = stack("refine.conv_list.{}.0.weight", descriptors).flatten(0, 1)
    ours["descriptors.conv.bias"] = stack("refine.conv_list.{}.0.bias", descriptors).flatten(0, 1)
    for name in _BN:
        ours[f"descriptors.bn.{name}"] = stack(f"refine.conv_list.{{}}.1.{name}", descriptors).flatten(0, 1)
    for name, published, ones in _ATTENTION:
        tensor = stack(f"refine.attn_list.{{}}.{published}", descriptors)
        ours[f"attention.{name}"] = tensor.flatten(tensor.dim() - ones - 1) if ones else tensor
    for name, published in _HEADS:
        count = heads if name == "query" else heads - 1
        each = [stack(f"refine.attn_list.{{}}.{published}.{i}.weight", descriptors) for i in range(count)]
        size = config["memory_size"]
        ours[f"attention.{name}"] = (
            torch.stack(each, dim=1)[..., 0] if each else torch.empty(descriptors, 0, size, 2 * size)
        )
    for ours_name, published in (
        ("descriptors.bn", "refine.conv_list.{}.1"),
        ("attention", "refine.attn_list.{}.conv2.1"),
    ):
        counts = [
            remaining.pop(f"{published.format(d)}.num_batches_tracked", torch.tensor(0)) for d in range(descriptors)
        ]
        ours[f"{ours_name}.num_batches_tracked"] = torch.stack(counts).max()
    ours["hash_weight"] = take("hash_map")
    require(not remaining, f"the checkpoint has a tensor that is not AGMH's: {next(iter(remaining), '')!r}")
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict (detached clones) from ours."""
    descriptors, heads = state["attention.query"].shape[:2]
    result = {key: value for key, value in state.items() if key.startswith("backbone.")}
    for d in range(descriptors):
        conv, attention = f"refine.conv_list.{d}", f"refine.attn_list.{d}"
        result[f"{conv}.0.weight"] = state["descriptors.conv.weight"].chunk(descriptors)[d]
        result[f"{conv}.0.bias"] = state["descriptors.conv.bias"].chunk(descriptors)[d]
        for name in _BN:
            result[f"{conv}.1.{name}"] = state[f"descriptors.bn.{name}"].chunk(descriptors)[d]
        result[f"{conv}.1.num_batches_tracked"] = state["descriptors.bn.num_batches_tracked"]
        for name, published, ones in _ATTENTION:
            tensor = state[f"attention.{name}"][d]
            result[f"{attention}.{published}"] = tensor.reshape(*tensor.shape, *[1] * ones)
        for name, published in _HEADS:
            for i in range(heads if name == "query" else heads - 1):
                result[f"{attention}.{published}.{i}.weight"] = state[f"attention.{name}"][d, i, :, :, None]
        result[f"{attention}.conv2.1.num_batches_tracked"] = state["attention.num_batches_tracked"]
    result["hash_map"] = state["hash_weight"]
    return {key: value.detach().clone() for key, value in result.items()}
