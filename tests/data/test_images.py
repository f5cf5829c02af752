"""Views of image files: what published loaders give, from the generator alone, on any number of workers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from agmh_fast.data import ImageFiles, batches, fingerprint
from agmh_fast.data.images import MEAN, STD
from agmh_fast.errors import InputError


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    """Six files of different sizes and kinds; two of them are smaller than the crop."""
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (90, 30), (33, 33), (8, 12), (1, 1), (64, 64)]
    kinds = ["RGB", "L", "RGBA", "P", "RGB", "CMYK"]
    for number, ((height, width), kind) in enumerate(zip(sizes, kinds, strict=True)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        suffix = "jpg" if kind in ("RGB", "L", "CMYK") else "png"
        Image.fromarray(pixels).convert(kind).save(tmp_path / f"{number}.{suffix}")
    paths = sorted(path.name for path in tmp_path.iterdir())
    return ImageFiles(tmp_path, paths, torch.arange(6), size=32)


def test_the_deterministic_view_is_the_published_one(images: ImageFiles) -> None:
    published = v2.Compose(
        [v2.Resize(37), v2.CenterCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    for item, path in enumerate(images.paths):
        expected = published(Image.open(images.folder / path).convert("RGB"))
        assert torch.equal(images.load(torch.tensor([item]), None)[0], expected)
    assert images.load(torch.tensor([], dtype=torch.int64), None).shape == (0, 3, 32, 32)


def test_resize_is_256_and_crop_224_by_default(images: ImageFiles) -> None:
    view = ImageFiles(images.folder, images.paths, images.labels)._fixed_view
    assert [type(step).__name__ for step in view.transforms[:2]] == ["Resize", "CenterCrop"]
    assert (view.transforms[0].size, tuple(view.transforms[1].size)) == ([256], (224, 224))


def test_random_views_are_published_crops_and_flips_of_the_generator_alone(images: ImageFiles) -> None:
    items = torch.arange(6)

    def views(seed: int) -> torch.Tensor:
        return images.load(items, torch.Generator().manual_seed(seed))

    first = views(1)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert torch.equal(first, views(1))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, views(2))
    assert not torch.equal(first, images.load(items, None))
    twice = images.load(torch.tensor([0, 0]), torch.Generator().manual_seed(1))
    assert not torch.equal(twice[0], twice[1])
    # A wide image, black to the left and white to the right: a flip turns that round, in half of the views.
    Image.fromarray(np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None], 64, 0)).save(images.folder / "0.jpg")
    ramps = images.load(torch.zeros(60, dtype=torch.int64), torch.Generator().manual_seed(3))
    rising = (ramps[:, 0, :, -1].mean(1) > ramps[:, 0, :, 0].mean(1)).sum()
    assert 15 < int(rising) < 45


def test_batches_do_not_depend_on_workers(images: ImageFiles) -> None:
    order = [3, 1, 1, 0, 5]
    alone, helped = (list(batches(images, order, 2, seed=3, epoch=1, workers=workers)) for workers in (0, 2))
    for one, two in zip(alone, helped, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut", None])
def test_files_that_are_no_images_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        buffer = io.BytesIO()
        Image.new("RGB", (50, 50), (3, 4, 5)).save(buffer, "PNG")
        content = buffer.getvalue()[:60]
    (tmp_path / "bad one.jpg").write_bytes(content)
    images = ImageFiles(tmp_path, ["bad one.jpg"], torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match=r"cannot read the image '.*bad one.jpg': .*skip_broken") as caught:
        images.load(torch.tensor([0]), None)
    assert "\n" not in str(caught.value)


def test_fingerprints_of_several_labels() -> None:
    several = torch.tensor([[1, 0, 1], [0, 1, 0]], dtype=torch.uint8)
    one = fingerprint(["b é.jpg", "a.jpg"], several)
    # printf 'a.jpg\t1\nb é.jpg\t0,2\n' | sha256sum
    assert one == "24affcbaa2b835dbc8a1fb2e3be1b9940e2fd416d24443e6b478ac5839f7aa63"
    assert fingerprint(["a.jpg", "b é.jpg"], several.flip(0)) == one
    assert fingerprint(["a.jpg", "b é.jpg"], several) != one


@pytest.mark.parametrize("size", [0, True, "224"])
def test_a_bad_size_is_named(tmp_path: Path, size: object) -> None:
    with pytest.raises(InputError, match="size must be a whole number"):
        ImageFiles(tmp_path, [], torch.zeros(0), size)  # type: ignore[arg-type]
