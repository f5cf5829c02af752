"""The cache of decoded images: the same deterministic view, bit for bit; whole, continued, or an error."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import miniatures
import numpy as np
import pytest
import torch
from PIL import Image

from agmh_fast.data import CachedImages, RetrievalData, batches, cache, cached, fonts, load
from agmh_fast.errors import InputError
from agmh_fast.train import TrainConfig, load_data


@pytest.fixture
def data(tmp_path: Path) -> RetrievalData:
    """Nine images of different shapes, one grey, one smaller than the view."""
    rng = np.random.default_rng(0)
    shapes = [(40, 61), (61, 40), (33, 33), (7, 13), (64, 20), (37, 37), (38, 50), (100, 41), (1, 1)]
    (tmp_path / "images").mkdir()
    for number, shape in enumerate(shapes):
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("L" if number == 2 else "RGB")
        image.save(tmp_path / "images" / f"{number}.jpg")
    miniatures.write(tmp_path / "train.txt", [f"images/{number}.jpg {number % 2}" for number in range(6)])
    miniatures.write(tmp_path / "test.txt", [f"images/{number}.jpg {number % 2}" for number in range(6, 9)])
    return load("listing", tmp_path, size=32)


def require_same(data: RetrievalData, other: RetrievalData) -> None:
    for images, copies in ((data.database, other.database), (data.query, other.query)):
        assert isinstance(copies, CachedImages)
        items = torch.arange(len(images))
        assert torch.equal(copies.load(items, None), images.load(items, None))
        assert torch.equal(copies.labels, images.labels)
        assert copies.fingerprint == images.fingerprint


def test_the_deterministic_view_stays_and_the_size_is_told_before(data, tmp_path):
    told = []

    def tell(line: str) -> None:
        assert not list((tmp_path / "cache").glob("*.cache"))
        told.append(line)

    whole = cached(data, tmp_path / "cache", tell)
    require_same(data, whole)
    files = sorted((tmp_path / "cache").iterdir())
    assert [file.suffix for file in files] == [".cache", ".cache"]
    size = sum(file.stat().st_size for file in files)
    assert told == [f"cache: 9 decoded images take {size / 1e3:.3g} kB in {str(tmp_path / 'cache')!r}"]
    # There already: nothing is told, written or decoded.
    before = [file.stat().st_mtime_ns for file in files]
    require_same(data, cached(data, tmp_path / "cache", tell))
    assert len(told) == 1
    assert [file.stat().st_mtime_ns for file in files] == before


def test_random_views_come_from_the_generator_alone_on_any_number_of_workers(data, tmp_path):
    images = cached(data, tmp_path / "cache", lambda _: None).database
    alone, helped = (list(batches(images, [3, 1, 1, 0], 2, seed=3, workers=workers)) for workers in (0, 2))
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one[1], two[1])
    # A spawned worker gets the path of the file, not what is in it.
    data = pickle.dumps(images)
    assert len(data) < 4000 + images.cache.stat().st_size / 10
    assert torch.equal(pickle.loads(data).load(torch.tensor([1]), None), images.load(torch.tensor([1]), None))


def test_a_cache_of_whole_images_changes_no_pixel(data, tmp_path):
    place, told = tmp_path / "cache", []
    whole = cached(data, place, told.append, whole=True)
    require_same(data, whole)
    pixels = [3 * 61 * 40, 3 * 61 * 40, 3 * 33 * 33, 3 * 7 * 13, 3 * 64 * 20, 3 * 37 * 37]
    assert whole.database.cache.stat().st_size == 32 + 6 * 8 + sum(pixels)
    own, kept = (list(batches(images, [3, 1, 2, 0], 2, seed=3)) for images in (data.database, whole.database))
    for one, two in zip(own, kept, strict=True):
        assert torch.equal(one[1], two[1])
    again = pickle.loads(pickle.dumps(whole.database))
    assert torch.equal(again.load(torch.tensor([1]), None), data.database.load(torch.tensor([1]), None))
    # Beside one of shrunk images, each for itself.
    require_same(data, cached(data, place, told.append))
    require_same(data, cached(data, place, told.append, whole=True))
    assert len(told) == 2
    assert len(list(place.iterdir())) == 4


def test_a_changed_image_means_another_cache(data, tmp_path):
    place = tmp_path / "cache"
    cached(data, place, lambda _: None)
    (tmp_path / "images" / "0.jpg").write_bytes(miniatures.jpeg(3))
    require_same(data, cached(data, place, lambda _: None))
    require_same(load("listing", tmp_path, size=16), cached(load("listing", tmp_path, size=16), place, lambda _: None))
    assert len(list(place.iterdir())) == 2 + 1 + 2


@pytest.mark.parametrize("stop", [0, 2, 4, 5])
def test_an_interrupted_cache_is_continued(data, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(cache, "_CHUNK", 2)
    decode, decoded = cache.read_image, []

    def interrupted(path: Path) -> Image.Image:
        if len(decoded) >= stop:
            raise KeyboardInterrupt
        decoded.append(path.name)
        return decode(path)

    monkeypatch.setattr(cache, "_threads", lambda: InThisThread())
    monkeypatch.setattr(cache, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(data, tmp_path / "cache", lambda _: None)
    assert not list((tmp_path / "cache").glob("*.cache"))
    left = next((tmp_path / "cache").glob("*.partial"))
    with left.open("ab") as file:
        file.write(b"half an image that was never synced")
    again = []
    monkeypatch.setattr(cache, "read_image", lambda path: again.append(path.name) or decode(path))
    require_same(data, cached(data, tmp_path / "cache", lambda _: None))
    assert again == [f"{number}.jpg" for number in range(stop // 2 * 2, 9)]
    assert len(list((tmp_path / "cache").iterdir())) == 2


class InThisThread:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    map = staticmethod(map)


def test_mistakes_are_one_line(data, tmp_path, monkeypatch):
    place = tmp_path / "cache"
    with pytest.raises(InputError, match="cache: dataset 'fonts' has no files to cache"):
        cached(fonts(words_per_class=1, queries_per_class=1, size=16), place)
    usage = shutil.disk_usage
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"cache: .* has 1 kB free, .* kB are needed"):
        cached(data, place, lambda _: None)
    monkeypatch.setattr(cache.shutil, "disk_usage", usage)
    image = tmp_path / "images" / "4.jpg"
    good = image.read_bytes()
    for bad in (good[:-200], b"", None):
        image.unlink() if bad is None else image.write_bytes(bad)
        with pytest.raises(InputError, match=r"cannot read the image '.*4.jpg'"):
            cached(data, place, lambda _: None)
    image.write_bytes(good)
    file = cached(data, place, lambda _: None).database.cache
    content = file.read_bytes()
    for bad in (content[:-1], content[:20], b"", b"x" + content[1:]):
        file.write_bytes(bad)
        with pytest.raises(InputError, match="cache: ") as caught:
            cached(data, place, lambda _: None)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output folder"):
        cached(data, tmp_path / "file", lambda _: None)


def test_training_takes_a_cache_that_its_settings_name(data, tmp_path, capsys):
    config = TrainConfig(dataset="listing", root=str(tmp_path), cache=str(tmp_path / "cache"))
    loaded = load_data(config)
    assert isinstance(loaded.query, CachedImages)
    size = sum(split.cache.stat().st_size for split in (loaded.query, loaded.database))
    where = str(tmp_path / "cache")
    assert capsys.readouterr().err == f"cache: 9 decoded images take {size / 1e6:.3g} MB in {where!r}\n"
    assert loaded.fingerprints == data.fingerprints
    whole = load_data(config.replace(cache_whole=True))
    assert whole.database.whole
    assert not loaded.database.whole
    with pytest.raises(InputError, match="cache must name a folder where cache_whole is asked for"):
        config.replace(cache=None, cache_whole=True)


@pytest.mark.skipif(cache.fcntl is None, reason="no file locks")
def test_one_process_writes_at_a_time(data, tmp_path, monkeypatch):
    place = tmp_path / "cache"
    name = f"listing-{cache._key(data.database, False)}.cache.partial"
    place.mkdir()
    with cache._opened(place / name), pytest.raises(InputError, match="another process is writing"):
        cached(data, place, lambda _: None)
    require_same(data, cached(data, place, lambda _: None))
