"""JPEG files of the size of photographs in fine-grained sets, and the published way to load a batch of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agmh_fast.data import ImageFiles, RetrievalData
from agmh_fast.data.images import MEAN, STD

# Of CUB-200-2011's images: the longer side is 500 pixels.
WIDTH, HEIGHT = 500, 375


def jpeg_data(folder: Path, count: int, side: int = 224) -> RetrievalData:
    """A dataset of `count` JPEGs of 500 × 375 in `folder`, written there: the database, and half of it the queries.

    side: of the views.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    paths = [f"{number}.jpg" for number in range(count)]
    for path in paths:
        # Noise at four scales, of falling weight as in photographs: some 60 KB a file, as CUB's have.
        picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for step, weight in ((64, 90), (16, 50), (4, 22), (1, 6)):
            small = numbers.normal(0, weight, (HEIGHT // step + 1, WIDTH // step + 1, 3)).astype(np.float32)
            picture += np.kron(small, np.ones((step, step, 1), np.float32))[:HEIGHT, :WIDTH]
        Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8)).save(folder / path, quality=90)
    database = ImageFiles(folder, paths, torch.zeros(count, dtype=torch.int64), side)
    query = database.keep(range(max(1, count // 2)))
    return RetrievalData("jpegs", ("",), database, query, MEAN, STD)


def published_batch(images: ImageFiles, items: Tensor, side: int = 224) -> Tensor:
    """A batch as the published loader makes it: an image at a time, by torchvision's first transforms."""
    from PIL import Image
    from torchvision import transforms

    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(side),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return torch.stack([view(Image.open(images.folder / images.paths[item]).convert("RGB")) for item in items.tolist()])
