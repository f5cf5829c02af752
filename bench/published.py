"""The published model and its step of training, of the reference's modules: what whole models are raced against."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import agmh_fast as af
from agmh_fast.reference.attention import StepwiseExternalAttention
from agmh_fast.reference.descriptor import DescriptorGroup, HashLayer


class PublishedAGMH(nn.Module):
    """An AGMH's twin: D convolutions, BatchNorms and attentions, of which all are computed, in eval mode too."""

    def __init__(self, model: af.AGMH) -> None:
        super().__init__()
        count, heads, slots, dim = model.attention.query.shape
        channels = model.descriptors.conv.in_channels
        # Its own: the twin's statistics must not move with ours.
        self.backbone = type(model)(1, "resnet50").backbone
        self.conv_list = DescriptorGroup(channels, count, dim).conv_list
        self.attn_list = nn.ModuleList(StepwiseExternalAttention(dim, heads, slots) for _ in range(count))
        self.hash = HashLayer(count * dim, model.bits)
        state = {
            name.removeprefix("refine.").replace("hash_map", "hash.weight"): value
            for name, value in model.to_official_state_dict().items()
        }
        self.load_state_dict(state)
        self.train(model.training)

    def describe(self, x: Tensor) -> list[Tensor]:
        """Backbone features (B, 2048, H, W) -> D descriptors (B, C, H, W)."""
        return [conv(x) for conv in self.conv_list]

    def attend(self, descriptors: list[Tensor]) -> list[Tensor]:
        """D attended descriptors."""
        return [attend(x) for attend, x in zip(self.attn_list, descriptors, strict=True)]

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embedding (B, bits) and D attended descriptors, as published whether they are used or not."""
        descriptors = self.describe(self.backbone(images))
        attended = self.attend(descriptors)
        return self.hash(descriptors), attended

    def logits(self, images: Tensor) -> Tensor:
        """What the embedding is the tanh of."""
        descriptors = self.describe(self.backbone(images))
        return torch.cat([f.mean(dim=(2, 3)) for f in descriptors], dim=1) @ self.hash.weight.T
