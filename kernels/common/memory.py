"""Memory laid out as features are; needs no Triton."""

from __future__ import annotations

import torch
from torch import Tensor


def like(features: Tensor) -> Tensor:
    """Memory of the features' shape and dtype: channels_last as they are, else contiguous."""
    last = features.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(features, memory_format=torch.channels_last if last else torch.contiguous_format)
