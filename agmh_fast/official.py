"""Names, signatures and state-dict keys of the published AGMH code: change a script's import lines and nothing else.

    from agmh_fast.official import ADSH_Loss, Feat_Loss, agmh, mean_average_precision, solve_dcc

Attention maps are lazy: `Feat_Loss` takes all descriptors at once and never forms a map; a map becomes a real tensor,
gradient included, when anything else uses it. Results agree with the published ones up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from agmh_fast import functional, metrics
from agmh_fast.errors import InputError, require
from agmh_fast.modules.backbone import build_backbone
from agmh_fast.ops.attention import AttentionParams
from agmh_fast.ops.codes import pack_codes
from agmh_fast.reference import attention as _reference_attention
from agmh_fast.reference import descriptor as _reference_descriptor
from agmh_fast.reference import dispersion

__all__ = [
    "AGMH",
    "ADSH_Loss",
    "Feat_Loss",
    "LazyAttention",
    "SIExtAttn",
    "agmh",
    "mean_average_precision",
    "solve_dcc",
]

# What a lazy map answers without being computed.
_METADATA = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.__len__,
}


class LazyAttention(Tensor):
    """The attended features (B, C, H, W) of one descriptor, computed when they are first used as a tensor.

    Made by `SIExtAttn`. The module's running statistics move once, when the map or a loss over it is first computed.
    """

    _module: SIExtAttn
    _features: Tensor
    _training: bool
    _tensor: Tensor | None
    _tracked: bool

    @staticmethod
    def __new__(cls, module: SIExtAttn, features: Tensor) -> LazyAttention:
        lazy = Tensor._make_wrapper_subclass(cls, features.shape, dtype=features.dtype, device=features.device)
        lazy._module, lazy._features, lazy._training = module, features, module.training
        lazy._tensor, lazy._tracked = None, False
        return lazy

    def materialize(self) -> Tensor:
        """The attended features as an ordinary, differentiable tensor; computed once."""
        if self._tensor is None:
            self._tensor = _compute([self], functional.stepwise_external_attention)
        return self._tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _METADATA:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        args, kwargs = tree_map_only(LazyAttention, LazyAttention.materialize, (args, kwargs or {}))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise InputError(f"attn_group: {func} needs a real attention map; pass attention.materialize()")


def _compute(lazies: Sequence[LazyAttention], function: Callable[..., Tensor]) -> Tensor:
    """`function(features, params, …)` of functional.py over the descriptors of `lazies`, all at once."""
    modules = [lazy._module for lazy in lazies]
    norms = [_batch_norm(module.conv2) for module in modules]
    params = _stack(modules)
    result = function(
        _side_by_side([lazy._features for lazy in lazies]),
        params,
        training=lazies[0]._training,
        momentum=norms[0].momentum,
        eps=norms[0].eps,
        impl=modules[0].impl,
    )
    for d, lazy in enumerate(lazies):
        if lazy._training and not lazy._tracked:
            _track(norms[d], params.running_mean[d], params.running_var[d])  # type: ignore[index]
        lazy._tracked = True
    return result


def _batch_norm(block: Any) -> Any:
    """The BatchNorm of a published block (convolution, BatchNorm, …)."""
    return block[1]


@torch.no_grad()
def _track(norm: Any, mean: Tensor, var: Tensor) -> None:
    """Store new running statistics in a BatchNorm."""
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    norm.num_batches_tracked.add_(1)


def _stack(modules: Sequence[SIExtAttn]) -> AttentionParams:
    """The modules' parameters as one; the running statistics are copies."""

    def stack(name: str) -> Tensor:
        tensors = [module.get_parameter(name) for module in modules]
        return torch.stack([tensor.flatten(2)[..., 0] if tensor.dim() > 2 else tensor for tensor in tensors])

    heads = len(modules[0].qry_conv)
    slots, norm = modules[0].linear.in_channels, "conv2.1"
    mix = [stack(f"alt_conv.{i}.weight") for i in range(heads - 1)]
    empty = modules[0].linear.weight.new_empty(len(modules), 0, slots, 2 * slots)
    return AttentionParams(
        conv_weight=stack("conv1.weight"),
        conv_bias=stack("conv1.bias"),
        query=torch.stack([stack(f"qry_conv.{i}.weight") for i in range(heads)], dim=1),
        mix=torch.stack(mix, dim=1) if mix else empty,
        value=stack("linear.weight"),
        project=stack("conv2.0.weight"),
        bn_weight=stack(f"{norm}.weight"),
        bn_bias=stack(f"{norm}.bias"),
        running_mean=torch.stack([module.get_buffer(f"{norm}.running_mean") for module in modules]),
        running_var=torch.stack([module.get_buffer(f"{norm}.running_var") for module in modules]),
    )


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """Descriptors (B, C, H, W) as one (B, D·C, H, W): the tensor they are chunks of, or a copy."""
    base, channels = parts[0]._base, sum(part.shape[1] for part in parts)
    if base is not None and base.dim() == 4 and base.shape[1] == channels:
        # Chunks made without gradients are of the same memory, but not of its history.
        whole = all(
            part.data_ptr() == chunk.data_ptr()
            and part.stride() == chunk.stride()
            and (part.grad_fn is not None) == base.requires_grad
            for part, chunk in zip(parts, base.chunk(len(parts), dim=1), strict=True)
        )
        if whole:
            return base
    return torch.cat(parts, dim=1)


class SIExtAttn(_reference_attention.StepwiseExternalAttention):
    """Stepwise Interactive External Attention of one descriptor: (B, dim, H, W) -> a lazy map of that shape.

    `impl` names the implementation that computes it, as in `agmh_fast.functional`.
    """

    impl = "auto"

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """A `LazyAttention` of x (B, dim, H, W)."""
        return LazyAttention(self, x)


class _Refine(_reference_descriptor.DescriptorGroup):
    """Descriptors and their lazy attention under the published names, by one convolution and one BatchNorm."""

    def __init__(self, in_channels: int, num_descriptors: int, descriptor_dim: int, num_heads: int) -> None:
        super().__init__(in_channels, num_descriptors, descriptor_dim)
        self.attn_list = nn.ModuleList(SIExtAttn(descriptor_dim, num_heads) for _ in range(num_descriptors))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:  # type: ignore[override]
        """The descriptors' mean over positions (B, D·C), the descriptors as views of one tensor, their attention."""
        blocks: list[Any] = list(self.conv_list)
        convs, norms = [block[0] for block in blocks], [_batch_norm(block) for block in blocks]
        y = F.conv2d(x, torch.cat([c.weight for c in convs]), torch.cat([c.bias for c in convs]))
        mean, var = torch.cat([norm.running_mean for norm in norms]), torch.cat([norm.running_var for norm in norms])
        weight, bias = torch.cat([norm.weight for norm in norms]), torch.cat([norm.bias for norm in norms])
        momentum, eps = norms[0].momentum, norms[0].eps
        features, pooled = functional.batch_norm_relu_mean(
            y, weight, bias, mean, var, training=self.training, momentum=momentum, eps=eps
        )
        if self.training:
            for norm, own_mean, own_var in zip(norms, mean.chunk(len(norms)), var.chunk(len(norms)), strict=True):
                _track(norm, own_mean, own_var)
        descriptors = list(features.chunk(len(convs), dim=1))
        return pooled, descriptors, [attend(f) for attend, f in zip(self.attn_list, descriptors, strict=True)]


class AGMH(nn.Module):
    """The published model; `num_descriptors` and `num_heads` are additions, with the paper's values.

    code_length: bits. num_classes and att_size belong to the published signature and change nothing. feat_size:
    channels of the backbone's features, 2048. device: kept as an attribute; move the model with `.to(device)` as usual.
    pretrained: start from torchvision's IMAGENET1K_V1 weights (downloaded by torchvision, or raises InputError).
    """

    def __init__(
        self,
        code_length: int = 12,
        num_classes: int = 200,
        att_size: int = 3,
        feat_size: int = 2048,
        device: str | torch.device = "cpu",
        pretrained: bool = True,
        num_descriptors: int = 6,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.device, self.top_k = device, num_descriptors
        self.backbone, channels = build_backbone("resnet50", "IMAGENET1K_V1" if pretrained else None, None)
        require(
            feat_size == channels,
            f"feat_size must be {channels}, the channels of ResNet-50's features, got {feat_size}",
        )
        dim = 512
        self.refine = _Refine(channels, num_descriptors, dim, num_heads)
        self.hash_map = nn.Parameter(torch.empty(code_length, num_descriptors * dim))
        nn.init.kaiming_uniform_(self.hash_map, a=math.sqrt(5))

    def forward(self, x: Tensor, is_train: bool = True) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """(embedding (B, bits), backbone features, D descriptors, D lazy attention maps) of images (B, 3, H, W).

        `is_train` is part of the published signature; what is not used is not computed, whatever it says.
        """
        back_feat = self.backbone(x)
        pooled, feat_group, attn_group = self.refine(back_feat)
        embedding = torch.tanh(F.linear(pooled.to(self.hash_map.dtype), self.hash_map))
        return embedding, back_feat, feat_group, attn_group


def agmh(
    code_length: int,
    num_classes: int,
    att_size: int,
    feat_size: int,
    device: str | torch.device,
    pretrained: bool = False,
    **kwargs: Any,
) -> AGMH:
    """The published constructor; arguments as `AGMH`."""
    return AGMH(code_length, num_classes, att_size, feat_size, device, pretrained, **kwargs)


class Feat_Loss(nn.Module):
    """Attention Dispersion Loss of the D maps in `attn_group`, lazy (fused) or real tensors (B, C, H, W): a scalar."""

    def forward(
        self, back_feat: Tensor, feat_group: Sequence[Tensor], attn_group: Sequence[Tensor], device: object = None
    ) -> Tensor:
        """The loss of `attn_group`; the other arguments belong to the published signature and change nothing."""
        require(len(attn_group) > 0, "attn_group is empty: pass the list of attention maps that the model returned")
        lazies = [a for a in attn_group if isinstance(a, LazyAttention) and a._tensor is None]
        if len(lazies) == len(attn_group):
            return _compute(lazies, functional.attention_dispersion)
        return dispersion.attention_dispersion(list(attn_group))


class ADSH_Loss(nn.Module):
    """(pairwise loss, quantization loss) of embeddings F (b, L) against codes B (N, L).

    S (b, N) are the batch's rows of the similarity matrix, omega (b,) the batch's database positions. The time grows
    with N because S does: `functional.asymmetric_hashing_loss` needs neither.
    """

    def __init__(self, code_length: int, gamma: float) -> None:
        super().__init__()
        self.code_length, self.gamma = code_length, gamma

    def forward(self, F: Tensor, B: Tensor, S: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses, scalars."""
        scale = 12 / (self.code_length * F.shape[0] * B.shape[0])
        pairwise = torch.addmm(S, F, B.T, beta=self.code_length, alpha=-1).square().sum() * scale
        return pairwise, (F - B[omega]).square().sum() * (self.gamma * scale)


@torch.no_grad()
def solve_dcc(B: Tensor, U: Tensor, expand_U: Tensor, S: Tensor, code_length: int, gamma: float) -> Tensor:
    """The discrete step, in place as published: B (N, L) ← sign, with U (m, L), expand_U (N, L) and S (m, N).

    Where a score is exactly 0 the bit is +1. One product with S remains; `functional.update_database_codes` needs no S.
    """
    target = torch.addmm(expand_U, S.T, U, beta=gamma, alpha=code_length)
    gram = (U.T @ U).fill_diagonal_(0)
    for bit in range(code_length):
        B[:, bit] = torch.where(target[:, bit] >= B @ gram[:, bit], 1.0, -1.0)
    return B


def mean_average_precision(
    query_code: Tensor,
    database_code: Tensor,
    query_labels: Tensor,
    database_labels: Tensor,
    device: object = None,
    topk: int | None = None,
) -> float:
    """mAP of ±1 codes (Q, L) against (N, L), labels one- or multi-hot, over the first `topk` ranks (None or −1: all).

    Ties keep database order; AP divides by the relevant items retrieved, as published.
    """
    result = metrics.retrieval(
        pack_codes(query_code.float()),
        pack_codes(database_code.float()),
        (query_labels > 0).long(),
        (database_labels > 0).long(),
        bits=query_code.shape[1],
        ties="stable",
        k=None if topk is None or topk < 0 else topk,
    )
    return result.map
