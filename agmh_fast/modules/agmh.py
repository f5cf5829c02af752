"""AGMH: Attributes Grouping and Mining Hashing, from images to compact binary codes. Lu et al., ACM MM 2023."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agmh_fast.errors import InputError, require, require_int
from agmh_fast.modules import published
from agmh_fast.modules.attention import StepwiseExternalAttention
from agmh_fast.modules.backbone import build_backbone, read_state_dict
from agmh_fast.modules.descriptor import DescriptorGroup, mean
from agmh_fast.modules.folded import FoldedBackbone, fold_backbone
from agmh_fast.ops.codes import MAX_BITS, pack_codes


class AGMHOutput(NamedTuple):
    """embedding (B, bits) in (−1, 1); attention_dispersion, a scalar in training mode and None in eval mode."""

    embedding: Tensor
    attention_dispersion: Tensor | None


class AGMH(nn.Module):
    """Backbone, descriptors and hash layer; the attention works in training only, for the dispersion loss.

    bits: 1..4096. backbone: "resnet18|34|50|101" or a module that returns (B, C, H, W). weights: None, the name of
    torchvision weights such as "IMAGENET1K_V2", or a local file. num_descriptors D, descriptor_dim C, num_heads h and
    memory_size K as in the paper. impl: which implementation computes descriptors, attention and codes.
    feature_channels: the backbone's output channels where it has neither `out_channels` nor `num_features`. Raises
    InputError for anything that does not fit; so do all methods that take images or descriptors.
    """

    def __init__(
        self,
        bits: int,
        backbone: str | nn.Module = "resnet50",
        weights: str | os.PathLike[str] | None = None,
        num_descriptors: int = 6,
        descriptor_dim: int = 512,
        num_heads: int = 4,
        memory_size: int = 128,
        impl: str = "auto",
        feature_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.bits = require_int("bits", bits, 1, MAX_BITS)
        self.backbone, channels = build_backbone(backbone, weights, feature_channels)
        self.descriptors = DescriptorGroup(channels, num_descriptors, descriptor_dim, impl=impl)
        self.attention = StepwiseExternalAttention(num_descriptors, descriptor_dim, num_heads, memory_size, impl=impl)
        self.hash_weight = nn.Parameter(torch.empty(bits, num_descriptors * descriptor_dim))
        nn.init.kaiming_uniform_(self.hash_weight, a=math.sqrt(5))

    def features(self, images: Tensor) -> Tensor:
        """Descriptors (B, D·C, H, W) of images (B, channels, H, W)."""
        return self._describe(images)[0]

    def logits(self, features: Tensor) -> Tensor:
        """Θv (B, bits) of descriptors (B, D·C, H, W); its sign is the code."""
        return self._hash(mean(features))

    def forward(self, images: Tensor) -> AGMHOutput:
        """images: (B, channels, H, W) floating, normalised as the backbone expects."""
        features, pooled = self._describe(images)
        dispersion = self.attention(features) if self.training else None
        return AGMHOutput(torch.tanh(self._hash(pooled)), dispersion)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Packed codes (B, ceil(bits/8)) uint8 on the images' device, in eval mode whatever the module's own; NaN is
        an InputError. The check for NaN waits for a GPU, and is left out inside torch.compile.
        """
        _check_images(images, self.hash_weight.device)
        with _evaluating(self):
            x = self.backbone(images)
            encoded = self.descriptors.encode(x, self.hash_weight)
            if encoded is None:
                return pack_codes(self._hash(self.descriptors(x)[1]))
        codes, logits = encoded
        if not torch.compiler.is_compiling() and bool(logits.isnan().any()):
            row = int(logits.isnan().any(dim=1).nonzero()[0])
            raise InputError(f"images: image {row} gives NaN, which has no sign: look for NaN in it and in the model")
        return codes

    def _describe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors (B, D·C, H, W) and their mean over positions (B, D·C)."""
        _check_images(images, self.hash_weight.device)
        return self.descriptors(self.backbone(images))

    def _hash(self, pooled: Tensor) -> Tensor:
        return nn.functional.linear(pooled.to(self.hash_weight.dtype), self.hash_weight)

    @torch.no_grad()
    def for_encoding(self, dtype: torch.dtype | None = None) -> AGMH:
        """A copy that encodes the same images faster and cannot be trained; such a one is itself returned.

        The BatchNorms of our own backbones are folded into their convolutions, and images are read channels_last; codes
        differ where rounding decides a logit's sign. dtype: of backbone and descriptors, None for what they are in;
        bfloat16 pays on GPUs and on CPUs that multiply it (AMX, AVX-512 BF16). Raises InputError for an integer dtype.
        """
        dtype = dtype or self.descriptors.conv.weight.dtype
        require(dtype.is_floating_point, f"dtype must be floating, got {dtype}")
        if isinstance(self.backbone, FoldedBackbone) and self.backbone.dtype == dtype:
            return self
        model = copy.deepcopy(self)
        model.backbone = fold_backbone(model.backbone, dtype)
        # BatchNorm and hash layer stay wide beside 16-bit products.
        (model.descriptors.conv if dtype.itemsize < 4 else model).to(dtype)
        return model.eval()

    @torch.no_grad()
    def attention_maps(self, images: Tensor) -> Tensor:
        """Where each descriptor looks: (B, D, H, W), each map summing to 1, in eval mode whatever the module's own."""
        with _evaluating(self):
            return self.attention.maps(self.features(images))

    @classmethod
    def from_official(
        cls, state: Mapping[str, Tensor] | str | os.PathLike[str], bits: int | None = None, impl: str = "auto"
    ) -> AGMH:
        """A model from a published checkpoint: its state dict, or a file of plain tensors (never unpickled code).

        Every size is read from the tensors; `bits`, when given, must agree. Raises InputError naming what is missing
        or odd.
        """
        tensors = state if isinstance(state, Mapping) else read_state_dict(state)
        config = published.read_config(tensors)
        if bits is not None and bits != config["bits"]:
            raise InputError(f"bits is {bits}, but the checkpoint's hash_map has {config['bits']}")
        model = cls(**config, impl=impl)
        model.load_state_dict(published.to_ours(tensors))
        return model

    def to_official_state_dict(self) -> dict[str, Tensor]:
        """The published code's keys and shapes, tensors detached and cloned; `from_official` reads it back."""
        return published.to_published(self.state_dict())


class _evaluating:
    """Context in which a module is in eval mode; each submodule's own mode comes back after."""

    def __init__(self, module: nn.Module) -> None:
        self.modes = [(m, m.training) for m in module.modules()]
        self.module = module

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes:
            module.training = training


def _check_images(images: Tensor, device: torch.device) -> None:
    if images.dim() != 4:
        raise InputError(f"images must be (B, channels, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise InputError(
            f"images must be floating point and normalised, got {images.dtype}: divide by 255 and normalise first"
        )
    if images.device != device:
        raise InputError(f"images are on {images.device} and the model on {device}: move one of them")
