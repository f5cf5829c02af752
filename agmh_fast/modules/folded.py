"""Backbones for encoding alone: each BatchNorm in the convolution before it, ReLU and shortcut sum with that one.

With γ, β, mean and variance that stand still, BN(W x + b) = s W x + s (b − mean) + β, s = γ / sqrt(variance + ε):
another convolution. On a CPU oneDNN adds the shortcut and cuts off below zero before the result leaves the cache, and
takes weights that were laid out for it once.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from agmh_fast.errors import require
from agmh_fast.modules.backbone import ResNetFeatures
from agmh_fast.modules.descriptor import SyncedBatchNorm2d, untouched
from agmh_fast.modules.small import SmallResNet

_SUMS = (operator.add, operator.iadd)


class FusedConv(nn.Module):
    """(B, C, H, W) -> act(conv(x) + other) with act the identity or ReLU, and `other` what is added if anything.

    overwrites: whether the result may take the place of `other` in memory, which saves writing it elsewhere.
    """

    weight: Tensor
    bias: Tensor
    overwrites = False

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("weight", conv.weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.place: tuple[Any, ...] = conv.padding, conv.stride, conv.dilation
        self.groups, self.relu = conv.groups, relu
        self._packed: Tensor | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if _by_onednn(x):
            return self._onednn(x, other)
        padding, stride, dilation = self.place
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, self.groups)
        y = y if other is None else y.add_(other)
        return y.relu_() if self.relu else y

    def _onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        place = *(list(values) for values in self.place), self.groups
        ops = torch.ops.mkldnn
        if self._packed is None:
            self._packed = ops._reorder_convolution_weight(self.weight, *place, list(x.shape))
        if other is None:
            act = "relu" if self.relu else "none"
            return ops._convolution_pointwise(x, self._packed, self.bias, *place, act, [], "")
        how = self.bias, *place, "add", 1.0, "relu" if self.relu else None, [], None
        if self.overwrites:
            return ops._convolution_pointwise_.binary(other, x, self._packed, *how)
        return ops._convolution_pointwise.binary(x, other, self._packed, *how)

    def _apply(self, fn: Any, recurse: bool = True) -> FusedConv:
        self._packed = None  # of weights that are now elsewhere or of another dtype
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}


class FoldedBackbone(nn.Module):
    """A backbone for encoding alone, (B, channels, H, W) of any dtype -> (B, C, H', W') in its weights' dtype.

    Raises InputError in training mode.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, images: Tensor) -> Tensor:
        require(not self.training, "model: one made for encoding cannot be trained: train the one that it was made of")
        return self.net(images.to(self.dtype, memory_format=torch.channels_last))


def fold_backbone(backbone: nn.Module, dtype: torch.dtype) -> FoldedBackbone:
    """What encodes as a backbone does in eval mode, in `dtype`; the backbone itself is changed in place.

    Our own backbones are folded. Others are only converted: tracing a module whose Python code asks what its tensors
    are may follow another path than a call does.
    """
    if isinstance(backbone, FoldedBackbone):
        return FoldedBackbone(backbone.net.to(dtype), dtype)
    backbone.eval().to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    module: Any
    for module in backbone.modules():
        if type(module) in (SyncedBatchNorm2d,):
            module.__class__ = nn.BatchNorm2d  # which it is outside of training
    if type(backbone) not in (ResNetFeatures, SmallResNet):
        return FoldedBackbone(backbone, dtype)
    traced = fx.symbolic_trace(backbone)
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        conv = _module(node, modules)
        if isinstance(conv, nn.Conv2d) and untouched(conv, nn.Conv2d):
            _fuse(traced, node, conv, modules)
    _overwrite_shortcuts(traced)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return FoldedBackbone(traced, dtype)


def _fuse(traced: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, modules: dict[str, nn.Module]) -> None:
    """Put a FusedConv in the place of a convolution and of what follows it."""
    last, arguments = node, [node.args[0]]
    norm = _only_user(last)
    bn = _module(norm, modules)
    if (
        norm is not None
        and isinstance(bn, nn.BatchNorm2d)
        and untouched(bn, nn.BatchNorm2d)
        and bn.running_mean is not None
    ):
        conv, last = fuse_conv_bn_eval(conv, bn), norm
    total = _only_user(last)
    if total is not None and total.target in _SUMS:
        # The sum may be of two convolutions: the first one met computes it.
        arguments.append(total.args[0] if total.args[1] is last else total.args[1])
        last = total
    act = _only_user(last)
    relu = act is not None and isinstance(_module(act, modules), nn.ReLU)
    last = act if act is not None and relu else last
    name = f"fused_{node.name}"
    traced.add_submodule(name, FusedConv(conv, relu))
    with traced.graph.inserting_before(last):
        fused = traced.graph.call_module(name, tuple(arguments))
    last.replace_all_uses_with(fused)
    traced.graph.eliminate_dead_code()


def _overwrite_shortcuts(traced: fx.GraphModule) -> None:
    """Let a sum take the memory of a shortcut that nothing reads after it."""
    modules = dict(traced.named_modules())
    order = {node: position for position, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        conv = _module(node, modules)
        if isinstance(conv, FusedConv) and len(node.args) == 2:
            x, other = node.args
            # Results in memory of their own: an image is not ours to write to, and what else reads may return a view.
            owned = isinstance(_module(other, modules), (FusedConv, nn.MaxPool2d)) and x is not other
            conv.overwrites = owned and all(
                order[user] <= order[node] and isinstance(_module(user, modules), FusedConv) for user in other.users
            )


def _module(node: fx.Node | None, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node is not None and node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _by_onednn(x: Tensor) -> bool:
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    ops = torch.ops.mkldnn
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and bool(ops._is_mkldnn_bf16_supported()))
