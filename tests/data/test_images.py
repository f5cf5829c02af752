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
    plain = ImageFiles(images.folder, images.paths, images.labels)
    published = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.ToImage()])
    for item, path in enumerate(images.paths):
        expected = published(Image.open(images.folder / path).convert("RGB"))
        assert torch.equal(plain.pixels(torch.tensor([item]), slice(None), None)[0], expected)


@pytest.mark.parametrize("decoded", [False, True])
def test_random_views_are_those_of_the_transforms(images: ImageFiles, decoded: bool, monkeypatch) -> None:
    """What RandomResizedCrop and RandomHorizontalFlip give after the same seed, of files and of decoded images."""
    view = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ToImage()])
    pictures = [images.picture(item) for item in range(6)]
    if decoded:
        pictures = [v2.functional.pil_to_tensor(picture) for picture in pictures]
        monkeypatch.setattr(images, "picture", pictures.__getitem__)
    items = torch.arange(6).repeat(5)
    seeds = torch.randint(2**63 - 1, (30,), generator=torch.Generator().manual_seed(4)).tolist()
    found = images.pixels(items, slice(None), torch.Generator().manual_seed(4))
    for item, seed, actual in zip(items.tolist(), seeds, found, strict=True):
        torch.manual_seed(seed)
        assert torch.equal(actual, view(pictures[item]))


def test_a_part_of_a_batch_is_that_of_the_whole(images: ImageFiles) -> None:
    order = [3, 1, 1, 0, 5]
    whole = list(batches(images, order, 3, seed=3, epoch=1))
    for workers in (0, 1):
        parts = [list(batches(images, order, 3, seed=3, epoch=1, workers=workers, part=(i, 2))) for i in range(2)]
        for (items, views), *both in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([part[0] for part in both]), items)
            assert torch.equal(torch.cat([part[1] for part in both]), views)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_on_a_gpu_are_those_of_the_cpu(images: ImageFiles, workers: int) -> None:
    options = {"seed": 3, "workers": workers}
    there = batches(images, range(6), 2, device=torch.device("cuda"), **options)
    for (items, views), (own_items, own) in zip(there, batches(images, range(6), 2, **options), strict=True):
        assert views.is_cuda
        torch.cuda._sleep(10_000_000)  # the next batch is there long before this one is looked at
        assert torch.equal(items, own_items)
        # A division by 255 and one by the deviation, which a GPU may round otherwise.
        assert torch.allclose(views.cpu(), own, rtol=0, atol=1e-6)


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
