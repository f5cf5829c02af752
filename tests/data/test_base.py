"""Batches: independent of workers, resumable, and strict about what they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agmh_fast.data import RetrievalData, batches
from agmh_fast.data.base import _ahead, epoch_batches
from agmh_fast.errors import InputError


class Ramp:
    """Ten images (3, 4, 5) filled with their item number, plus noise where a view is random."""

    labels = torch.arange(10) % 3

    def __len__(self) -> int:
        return 10

    def load(self, items: Tensor, generator: torch.Generator | None) -> Tensor:
        images = items.float().view(-1, 1, 1, 1).expand(-1, 3, 4, 5)
        return images if generator is None else images + torch.rand(images.shape, generator=generator)


def collect(**options: object) -> tuple[list[Tensor], list[Tensor]]:
    parts = list(batches(Ramp(), torch.tensor([7, 1, 1, 9, 0, 4, 2]), 3, **options))  # type: ignore[arg-type]
    return [items for items, _ in parts], [images for _, images in parts]


@pytest.mark.parametrize("seed", [None, 5])
def test_batches_do_not_depend_on_the_number_of_workers(seed: int | None) -> None:
    items, images = collect(seed=seed, epoch=2)
    assert [part.tolist() for part in items] == [[7, 1, 1], [9, 0, 4], [2]]
    assert all(part.dtype == torch.int64 for part in items)
    for workers in (1, 2):
        other_items, other_images = collect(seed=seed, epoch=2, workers=workers)
        assert all(torch.equal(a, b) for a, b in zip(items, other_items, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(images, other_images, strict=True))


def test_random_views_change_with_seed_epoch_and_batch_and_with_nothing_else() -> None:
    def noise(part: int = 0, **options: int) -> Tensor:
        items, images = collect(**options)
        return images[part] - items[part].view(-1, 1, 1, 1)

    first = noise(seed=5, epoch=2)
    torch.manual_seed(123)
    assert torch.equal(first, noise(seed=5, epoch=2))
    assert not torch.equal(first, noise(seed=6, epoch=2))
    assert not torch.equal(first, noise(seed=5, epoch=3))
    assert not torch.equal(first, noise(seed=5, epoch=2, part=1))
    # (1, 12) and (11, 2) must not meet, as they would if the numbers were only strung together.
    assert not torch.equal(noise(seed=1, epoch=12), noise(seed=11, epoch=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_one_after_the_other_are_those_of_each(workers: int) -> None:
    orders = {epoch: torch.from_numpy(np.random.default_rng(epoch).permutation(10)[:7]) for epoch in range(2, 5)}
    expected = [part for epoch in orders for part in batches(Ramp(), orders[epoch], 3, seed=5, epoch=epoch)]
    found = epoch_batches(Ramp(), orders, range(2, 5), 7, 3, seed=5, workers=workers)
    for (items, images), (own_items, own_images) in zip(found, expected, strict=True):
        assert torch.equal(items, own_items)
        assert torch.equal(images, own_images)
    assert list(epoch_batches(Ramp(), orders, range(0), 7, 3, workers=workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_left_alone(workers: int) -> None:
    before = torch.get_rng_state()
    collect(seed=1, workers=workers)
    assert torch.equal(before, torch.get_rng_state())


def test_what_the_next_batch_raises_is_held_until_this_one_is_worked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)

    def loaded() -> Iterator[Any]:
        yield 0, None
        yield 1, None
        raise InputError("cannot read the image")

    sent = SimpleNamespace(record_stream=lambda stream: None)
    found = _ahead(loaded(), lambda pixels, device: sent, torch.device("cuda"))  # type: ignore[arg-type, return-value]
    assert [next(found)[0], next(found)[0]] == [0, 1]
    with pytest.raises(InputError, match="cannot read"):
        next(found)


def test_order_may_be_a_list_an_array_or_empty() -> None:
    for order in ([3, 0], np.array([3, 0], dtype=np.int32), torch.tensor([3, 0])):
        ((items, images),) = batches(Ramp(), order, 8)
        assert items.tolist() == [3, 0]
        assert images.shape == (2, 3, 4, 5)
    assert list(batches(Ramp(), [], 8)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": [0, 10]}, "order must hold item numbers from 0 to 9"),
        ({"order": [-1]}, "order must hold item numbers from 0 to 9"),
        ({"order": [0.5]}, "order must be a one-dimensional list"),
        ({"order": [[1, 2]]}, "order must be a one-dimensional list"),
        ({"order": [True]}, "order must be a one-dimensional list"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"epoch": -1}, "epoch must be a whole number of at least 0"),
        ({"workers": -1}, "workers must be a whole number of at least 0"),
        ({"workers": 1.5}, "workers must be a whole number of at least 0"),
    ],
)
def test_bad_input_is_refused_before_the_first_batch(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"order": [0, 1], "batch_size": 2, **change}
    with pytest.raises(InputError, match=message):
        batches(Ramp(), **arguments)  # type: ignore[arg-type]


def data(mean: tuple[float, ...], std: tuple[float, ...]) -> RetrievalData:
    return RetrievalData("ramp", ("a", "b", "c"), Ramp(), Ramp(), mean, std)


def test_pictures_undo_the_normalisation() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    images = (pixels / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    pictures = data(tuple(mean.tolist()), tuple(std.tolist())).pictures(images)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, pixels.permute(0, 2, 3, 1).numpy())


def test_pictures_of_grey_images_have_three_channels_and_clamp() -> None:
    grey = data((0.5,), (0.25,))
    assert grey.num_classes == 3
    pictures = grey.pictures(torch.tensor([-9.0, 0.0, 9.0]).view(3, 1, 1, 1))
    assert pictures.reshape(3, 3).tolist() == [[0] * 3, [128] * 3, [255] * 3]
    with pytest.raises(InputError, match=r"images must be a tensor of shape \(B, 1, H, W\)"):
        grey.pictures(torch.zeros(2, 3, 4, 4))
