"""The demo's data: complete, disjoint, reproducible."""

from __future__ import annotations

import inspect
import sys
from typing import cast

import pytest
import torch

from agmh_fast.data import RetrievalData, batches, fonts
from agmh_fast.data.fonts import FACES, MEAN, STD, FontImages
from agmh_fast.errors import InputError


@pytest.fixture(scope="module")
def data() -> RetrievalData:
    return fonts(words_per_class=12, queries_per_class=5)


def splits(data: RetrievalData) -> tuple[FontImages, FontImages]:
    return cast(FontImages, data.database), cast(FontImages, data.query)


def test_every_word_is_set_in_every_face_and_no_query_word_is_in_the_database(data: RetrievalData) -> None:
    assert data.class_names == tuple(FACES)
    assert data.num_classes == 21
    database, query = splits(data)
    for split, texts in ((database, 12), (query, 5)):
        assert len(split) == 21 * texts == len(split.labels) == len(split.words)
        assert split.labels.dtype == torch.int64
        assert len(set(split.words)) == texts
        assert len(set(zip(split.words, split.labels.tolist(), strict=True))) == len(split)
    words = [word.lower() for text in [*database.words[::21], *query.words[::21]] for word in text.split()]
    assert len(words) == len(set(words)) == 2 * (12 + 5)


def test_sizes_of_the_default() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(fonts).parameters.items()}
    assert defaults == {"seed": 0, "size": 64, "words_per_class": 80, "queries_per_class": 25, "lines": 2}


def test_same_seed_same_pixels_other_seed_other_words(data: RetrievalData) -> None:
    again, other = fonts(words_per_class=12, queries_per_class=5), fonts(1, words_per_class=12, queries_per_class=5)
    for one, two in zip(splits(data), splits(again), strict=True):
        assert one.words == two.words
        assert torch.equal(one.pixels, two.pixels)
    assert splits(data)[0].words != splits(other)[0].words


def test_images_are_legible_and_normalised(data: RetrievalData) -> None:
    database, _ = splits(data)
    images = database.load(torch.arange(len(database)), None)
    assert images.shape == (252, 1, 64, 64)
    assert images.dtype == torch.float32
    # The constants were measured at the default size and count; other words move the figures a little.
    assert abs(float(images.mean())) < 0.15
    assert abs(float(images.std()) - 1) < 0.15
    # Black ink on white paper in each, and few are so turned and placed that a letter touches an edge.
    assert int(database.pixels.amax(dim=(1, 2, 3)).min()) == 255
    assert int(database.pixels.amin(dim=(1, 2, 3)).max()) < 90
    inside = database.pixels[:, 0, 1:-1, 1:-1]
    touching = (database.pixels < 128).sum(dim=(1, 2, 3)) > (inside < 128).sum(dim=(1, 2))
    assert float(touching.float().mean()) < 0.1
    assert len(torch.unique(database.pixels.flatten(1), dim=0)) == len(database)


def test_deterministic_view_is_the_rendered_image(data: RetrievalData) -> None:
    database, _ = splits(data)
    items = torch.tensor([3, 77, 3])
    expected = (database.pixels[items] / 255 - MEAN[0]) / STD[0]
    # 1 - (1 - p) and p differ by a rounding of numbers up to 1, which the division by STD enlarges.
    torch.testing.assert_close(database.load(items, None), expected, rtol=0, atol=4 * 2**-24 / STD[0])


def test_random_view_depends_on_the_generator_alone(data: RetrievalData) -> None:
    items = torch.arange(8)
    views = [data.database.load(items, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    torch.manual_seed(99)
    views.append(data.database.load(items, torch.Generator().manual_seed(1)))
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[3])
    assert not torch.equal(views[0], views[2])
    assert not torch.equal(views[0], data.database.load(items, None))
    assert bool(views[0].isfinite().all())


def test_random_views_of_one_image_differ_within_a_batch(data: RetrievalData) -> None:
    views = data.database.load(torch.zeros(4, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert len(torch.unique(views.flatten(1), dim=0)) == 4


def test_batches_do_not_depend_on_workers(data: RetrievalData) -> None:
    order = torch.randperm(len(data.database), generator=torch.Generator().manual_seed(0))[:70]
    alone = list(batches(data.database, order, 32, seed=3, epoch=1))
    helped = list(batches(data.database, order, 32, seed=3, epoch=1, workers=2))
    assert [len(items) for items, _ in alone] == [32, 32, 6]
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


@pytest.mark.parametrize(("size", "lines"), [(16, 2), (33, 1)])
def test_other_sizes_and_single_words(size: int, lines: int) -> None:
    data = fonts(size=size, words_per_class=1, queries_per_class=1, lines=lines)
    assert data.query.load(torch.tensor([20]), None).shape == (1, 1, size, size)
    assert [len(text.split()) for text in splits(data)[1].words] == [lines] * 21


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", -1),
        ("seed", True),
        ("size", 8),
        ("size", 64.0),
        ("words_per_class", 0),
        ("queries_per_class", 5001),
        ("lines", 3),
    ],
)
def test_bad_input_is_named(option: str, value: object) -> None:
    with pytest.raises(InputError, match=f"^{option} must be a whole number"):
        fonts(**{option: value})  # type: ignore[arg-type]


def test_missing_matplotlib_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="fonts data needs matplotlib and pillow: pip install") as caught:
        fonts(words_per_class=1, queries_per_class=1)
    assert "\n" not in str(caught.value)
