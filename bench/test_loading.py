"""Images a second of the loader alone: JPEG files of 500 × 375, random views of 224², batches of 32, all cores.

The published loader decodes and transforms an image at a time in the training process. Ours gives the same pixels from
workers, and from a cache of decoded images. An image is the unit of a pass over all, workers' start included; the limit
is what the pass cannot do without: decoding the files by all cores, or writing the views.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contest import Side, cases
from jpegs import jpeg_data, published_batch
from limits import Limit, Work, copy_rate
from PIL import Image
from targets import Target, scaled
from torchvision.transforms import v2

from agmh_fast.data import batches, cached
from agmh_fast.data.images import MEAN, STD

COUNT, BATCH = scaled(256, least=64), 32
WORKERS = len(os.sched_getaffinity(0))
TARGETS = {"files": 1.7, "cache": 4.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jpeg_data(tmp_path_factory.mktemp("images"), COUNT)


@pytest.fixture(scope="module")
def from_cache(data, tmp_path_factory):
    return cached(data, tmp_path_factory.mktemp("cache"), lambda line: None)


@pytest.mark.benchmark(group="loading, 500x375 JPEG to random 224x224, batch 32")
@cases("source", ["files", "cache"], ["whole"])
def test_loading(contest, data, from_cache, tmp_path, source):
    made = {"files": lambda: data, "cache": lambda: from_cache}
    ours = made.get(source, lambda: cached(data, tmp_path, lambda line: None, whole=True))().database
    view = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    normalise = v2.Normalize(MEAN, STD)
    few = torch.arange(4)
    expected = torch.stack([normalise(view(data.database.picture(item))) for item in few.tolist()])
    assert torch.equal(ours.load(few, None), expected)
    if source == "whole":
        random = (images.load(few, torch.Generator().manual_seed(1)) for images in (ours, data.database))
        assert torch.equal(*random)

    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))

    def published() -> int:
        return sum(len(published_batch(data.database, part)) for part in order.split(BATCH))

    def loaded(workers: int) -> Callable[[], int]:
        return lambda: sum(len(items) for items, _ in batches(ours, order, BATCH, seed=0, workers=workers))

    def decode() -> None:
        """Every file, by one process, to pixels and no further."""
        for path in data.database.paths:
            Image.open(data.database.folder / path).convert("RGB")

    sizes = [Path(data.database.folder, path).stat().st_size for path in data.database.paths]
    views = COUNT * 3 * 224**2 * 4
    work = Work(views + (sum(sizes) if source == "files" else ours.cache.stat().st_size), images=COUNT)
    rivals = {
        f"{source}, {WORKERS} workers": Side(loaded(WORKERS), COUNT),
        f"{source}, no workers": Side(loaded(0), COUNT),
        "published": Side(published, COUNT),
    }
    if source == "files":
        # Of all cores, if decoding divides among them without loss.
        rivals["decoding"], limit = Side(decode, COUNT * WORKERS), Limit("decoding", "decoding")
    else:
        limit = Limit("copy bandwidth", seconds=work.bytes / copy_rate(torch.device("cpu")))
    contest(
        rivals, work, "published", limit, [Target("best", least=TARGETS[source])] if source in TARGETS else [],
        lambda medians: {"best": medians["published"] / min(medians[name] for name in rivals if source in name)},
        rounds=5, images=COUNT, workers=WORKERS, file_bytes=sizes[0],
    )  # fmt: skip
