"""A tiny dataset, importable by the processes of a test."""

from __future__ import annotations

import torch

from agmh_fast.data import RetrievalData

CLASSES = 3


class Patterns:
    """Noisy copies of one random 16×16 pattern a class; a random view adds more noise."""

    def __init__(self, per_class: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        patterns = torch.randn(CLASSES, 1, 16, 16, generator=torch.Generator().manual_seed(99))
        self.labels = torch.arange(CLASSES).repeat(per_class)
        noise = torch.randn(len(self.labels), 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.images = (patterns[self.labels] + 0.5 * noise).to(dtype)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, items: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        images = self.images[items]
        if generator is None:
            return images
        return images + 0.2 * torch.randn(images.shape, generator=generator)


def patterns(dtype: torch.dtype = torch.float32) -> RetrievalData:
    """18 database images and 6 queries of 3 classes."""
    names = tuple(f"pattern {i}" for i in range(CLASSES))
    return RetrievalData("patterns", names, Patterns(6, 1, dtype), Patterns(2, 2, dtype), (0.0,), (1.0,))
