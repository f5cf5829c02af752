"""Files decoded on the device that trains on them: near the published pixels, in every other way the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from agmh_fast.data import ImageFiles, RetrievalData, batches, decoded_on_device
from agmh_fast.data.images import MEAN, STD, image_data
from agmh_fast.errors import InputError
from agmh_fast.train import TrainConfig

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def data(tmp_path: Path) -> RetrievalData:
    """Smooth images of several sizes and kinds: what two decoders round differently is seen, and nothing else."""
    kinds = ["RGB", "L", "RGBA", "CMYK", "RGB", "RGB"]
    for number, kind in enumerate(kinds):
        y, x = np.mgrid[0 : 40 + 7 * number, 0 : 90 - 9 * number]
        pixels = np.stack([128 + 100 * np.sin(x / 9 + number), 2.0 * y, 128 + 90 * np.cos((x + y) / 11)], axis=2)
        suffix = "png" if kind == "RGBA" else "jpg"
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(kind)
        image.save(tmp_path / f"{number}.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    paths = sorted(path.name for path in tmp_path.iterdir())
    split = ImageFiles(tmp_path, paths[:4], torch.zeros(4, dtype=torch.int64), size=32)
    other = ImageFiles(tmp_path, paths[4:], torch.zeros(2, dtype=torch.int64), size=32)
    return image_data("files", ("",), split, other, skip_broken=False)


def _levels(views: torch.Tensor) -> torch.Tensor:
    """Normalised images on the scale where white is 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (views.cpu() * std + mean) * 255


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("workers", [0, 1])
def test_views_are_near_those_of_pillow(data: RetrievalData, device: str, seed: int | None, workers: int) -> None:
    there = decoded_on_device(data).database
    order = [3, 0, 1, 1, 2]
    options = {"seed": seed, "workers": workers}
    found = list(batches(there, order, 3, device=torch.device(device), **options))
    for (items, views), (own_items, own) in zip(found, batches(data.database, order, 3, **options), strict=True):
        assert torch.equal(items, own_items)
        assert views.device.type == device
        assert views.dtype == torch.float32
        away = (_levels(views) - _levels(own)).abs()
        # A crop drawn otherwise would be tens of levels away; a GPU rounds in its colour conversion too.
        assert away.mean() < 2
        assert away.max() <= (1.01 if device == "cpu" else 24)


def test_a_part_is_that_of_the_whole_and_may_be_empty(data: RetrievalData) -> None:
    there = decoded_on_device(data).database
    whole = list(batches(there, [3, 0, 1], 2, seed=1))
    parts = [list(batches(there, [3, 0, 1], 2, seed=1, part=(i, 2))) for i in range(2)]
    for (_, views), *both in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part[1] for part in both]), views)
    assert len(parts[1][1][1]) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_damaged_file_is_named(data: RetrievalData, device: str) -> None:
    images = decoded_on_device(data).database
    path = images.folder / images.paths[0]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cannot read the image '.*0\.jpg': .*skip_broken") as caught:
        list(batches(images, [1, 0], 2, device=torch.device(device)))
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        images.load(torch.tensor([0]), None)


def test_only_files_can_be_decoded_and_only_a_gpu_is_asked(data: RetrievalData) -> None:
    with pytest.raises(InputError, match="no image files to decode"):
        decoded_on_device(decoded_on_device(data))
    with pytest.raises(InputError, match="gpu_decode needs a CUDA device"):
        TrainConfig(gpu_decode=True, device="cpu")
