"""Images a second of the loader alone: JPEG files of 500 × 375, random views of 224², batches of 32, all cores.

The published loader decodes and transforms an image at a time in the training process. Ours gives the same pixels from
workers, and from a cache of decoded images. A row's `extra_info` has everyone's p20, p50 and p80 of a pass over all
images, workers' start included, and the ratio to the published loader with its target.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hamming_targets import Target, judged, scaled
from jpegs import jpeg_data, published_batch
from measuring import Timed, percentiles
from torchvision.transforms import v2

from agmh_fast.data import batches, cached
from agmh_fast.data.images import MEAN, STD

COUNT, BATCH = scaled(512, least=64), 32
WORKERS = len(os.sched_getaffinity(0))
TARGETS = {"files": 1.7, "cache": 4.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return jpeg_data(tmp_path_factory.mktemp("images"), COUNT)


@pytest.fixture(scope="module")
def from_cache(data, tmp_path_factory):
    return cached(data, tmp_path_factory.mktemp("cache"), lambda line: None)


@pytest.mark.benchmark(group="loading, 500x375 JPEG to random 224x224, batch 32")
@pytest.mark.parametrize("source", ["files", "cache"])
def test_loading(benchmark, take_turns, say, request, data, from_cache, source):
    ours = {"files": data, "cache": from_cache}[source].database
    view = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    normalise = v2.Normalize(MEAN, STD)
    few = torch.arange(4)
    expected = torch.stack([normalise(view(data.database.picture(item))) for item in few.tolist()])
    assert torch.equal(ours.load(few, None), expected)

    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))

    def published() -> int:
        return sum(len(published_batch(data.database, part)) for part in order.split(BATCH))

    def loaded(workers: int) -> Callable[[], int]:
        return lambda: sum(len(items) for items, _ in batches(ours, order, BATCH, seed=0, workers=workers))

    seconds = take_turns(
        {
            f"{source}, {WORKERS} workers": Timed(loaded(WORKERS)),
            f"{source}, no workers": Timed(loaded(0)),
            "published": Timed(published),
        },
        rounds=5,
    )
    times = {name: percentiles(taken) for name, taken in seconds.items()}
    say(f"\n{request.node.name}:")
    for name, facts in times.items():
        facts["speedup"] = times["published"]["p50_s"] / facts["p50_s"]
        facts["images_per_s"] = COUNT / facts["p50_s"]
        say(f"  {name}: {facts['images_per_s']:.4g} images/s, {facts['speedup']:.3g}x")
    best = max(facts["speedup"] for name, facts in times.items() if name != "published")
    benchmark.extra_info.update(
        images=COUNT,
        workers=WORKERS,
        file_bytes=Path(data.database.folder / data.database.paths[0]).stat().st_size,
        speedup=best,
        contestants=times,
        **judged([Target("speedup", least=TARGETS[source])], {"speedup": best}),
    )
