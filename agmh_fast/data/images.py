"""A split of image files: read, cropped as published, and told from other splits by a fingerprint."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from agmh_fast.data.base import RetrievalData
from agmh_fast.errors import InputError, require, require_int, shown

if TYPE_CHECKING:
    from PIL.Image import Image

A = TypeVar("A")
B = TypeVar("B")

# A box to crop, and whether to flip.
Draw = tuple[dict[str, int], bool]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, on the scale where white is 1."""


def in_threads(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """What `work` makes of every item, by as many threads as torch has here: decoders leave Python's lock alone.

    A loader's worker processes have one, and so do the ranks of torchrun.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        return _one_by_one(work, items)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))


def _one_by_one(work: Callable[[A], B], items: Sequence[A]) -> list[B]:
    return [work(item) for item in items]


class ImageFiles:
    """Images of the files `folder`/`paths`[i], an `ImageSet` of colour images (3, size, size).

    The random view is RandomResizedCrop(size) and a flip, the deterministic one Resize(size · 8 / 7) of the shorter
    side and CenterCrop(size), as published for size = 224; both are normalised with ImageNet's mean and deviation.

    paths: relative to `folder`, with "/". labels: (N,) int64 classes from 0, or (N, classes) uint8 multi-hot.
    """

    # Whether `picture` has little to do; torch's own crops divide their work themselves.
    decoded = False

    def __init__(self, folder: Path, paths: Sequence[str], labels: Tensor, size: int = 224) -> None:
        self.folder, self.paths, self.labels = folder, tuple(paths), labels
        self.size = require_int("size", size, 8, 4096)
        # Of the shorter side before the centre is cut out: 256 for 224.
        self.side = round(self.size * 8 / 7)

    def __len__(self) -> int:
        return len(self.paths)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the split, as `fingerprint` says."""
        return fingerprint(self.paths, self.labels)

    def load(self, items: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images (B, 3, size, size) float32, normalised; see `ImageSet.load`.

        Raises InputError that names a file that is missing or cannot be read.
        """
        return self.finish(self.pixels(items, slice(None), generator))

    def pixels(self, items: Tensor, part: slice, generator: torch.Generator | None) -> Tensor:
        """Views (b, 3, size, size) uint8 of items[part]; see `PixelSet`. Raises as `load` does."""
        own = items[part].tolist()
        if not own:
            return torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        each = _one_by_one if self.decoded else in_threads
        pictures = each(self.picture, own)
        draws: Sequence[Draw | None] = [None] * len(own)
        if generator is not None:
            draws = random_draws(pictures, self.size, items, part, generator)
        drawn = list(zip(pictures, draws, strict=True))
        return torch.stack(each(lambda one: view_of(*one, self.side, self.size), drawn))

    def finish(self, pixels: Tensor, device: torch.device | None = None) -> Tensor:
        """Normalised images (b, 3, size, size) float32 on `device`, None for where the pixels are."""
        from torchvision.transforms.v2 import functional

        if device is not None and device.type == "cuda":
            pixels = pixels.pin_memory().to(device, non_blocking=True)
        mean, std = _statistics(pixels.device)
        return functional.to_dtype(pixels, torch.float32, scale=True).sub_(mean).div_(std)

    def picture(self, item: int) -> Image | Tensor:
        """Image `item` as it is in its file, in RGB; or uint8 (3, H, W)."""
        return read_image(self.folder / self.paths[item])

    def keep(self, items: Sequence[int]) -> ImageFiles:
        """The split of these items alone."""
        return ImageFiles(self.folder, [self.paths[item] for item in items], self.labels[list(items)], self.size)


def read_image(path: Path) -> Image:
    """A file's image in RGB; raises InputError that names a missing or damaged one."""
    image = _decoded(path)
    if isinstance(image, str):
        how = "mend it, or leave out such images with skip_broken"
        raise InputError(f"cannot read the image {str(path)!r}: {image}; {how}")
    return image


def _decoded(path: Path) -> Image | str:
    """The image, or why there is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # whatever a decoder raises on bytes that are not what it takes them for
        told = error.strerror if isinstance(error, OSError) else None
        return " ".join((told or str(error) or type(error).__name__).split())


def fingerprint(paths: Sequence[str], labels: Tensor) -> str:
    """What tells one split from another, whatever order its images are listed in: SHA-256 in hexadecimal digits.

    It is that of one line an image, `path<TAB>label<LF>` in UTF-8, the lines sorted by their bytes. The path is
    relative to the dataset's folder, with "/"; the label is the class number from 0, of several the numbers ascending,
    with commas between them.
    """
    if labels.ndim == 1:
        shown = [str(label) for label in labels.tolist()]
    else:
        shown = [",".join(str(number) for number in row.nonzero()[:, 0].tolist()) for row in labels]
    lines = [os.fsencode(f"{path}\t{label}\n") for path, label in zip(paths, shown, strict=True)]
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def files_hash(images: ImageFiles, head: str) -> str:
    """SHA-256 of the line `head` and of path, size and time of every file: 64 hexadecimal digits.

    It tells images that were changed from those that were not, and reads none. Raises InputError for a missing file.
    """
    hasher = hashlib.sha256(os.fsencode(f"{head}\n"))
    for path in images.paths:
        try:
            found = (images.folder / path).stat()
        except OSError:
            read_image(images.folder / path)  # says why not
            raise
        hasher.update(os.fsencode(f"{path}\t{found.st_size}\t{found.st_mtime_ns}\n"))
    return hasher.hexdigest()


def image_data(
    name: str, class_names: Sequence[str], database: ImageFiles, query: ImageFiles, skip_broken: bool
) -> RetrievalData:
    """The dataset of two splits; `skip_broken` reads every image once, and leaves out those that cannot be read.

    Raises InputError for a split that is empty or lists a file twice, and for a file in both.
    """
    require(isinstance(skip_broken, bool), f"skip_broken must be True or False, got {shown(skip_broken)}")
    if skip_broken:
        database, query = readable(database), readable(query)
    for split, images in (("database", database), ("query", query)):
        require(len(images) > 0, f"dataset {name!r}: its {split} split is empty")
        require(len(set(images.paths)) == len(images), f"dataset {name!r}: its {split} split lists a file twice")
    shared = sorted(set(database.paths) & set(query.paths))
    if shared:
        raise InputError(f"dataset {name!r}: {shared[0]!r} is in both splits")
    return RetrievalData(name, tuple(class_names), database, query, MEAN, STD)


def readable(images: ImageFiles) -> ImageFiles:
    """The split without images that cannot be read, after reading every one."""
    broken = {item for item, _ in broken_images(images)}
    return images.keep([item for item in range(len(images)) if item not in broken]) if broken else images


# torchvision's transforms spend as long on finding out what they are given as on a crop: their functions are called
# straight, with what the transforms would draw, in the same order.


def random_draws(
    pictures: Sequence[Any], size: int, items: Tensor, part: slice, generator: torch.Generator
) -> list[Draw]:
    """What RandomResizedCrop and a flip draw for items[part], of which `pictures` are, in a batch of all `items`."""
    from torchvision.transforms import v2

    # The transforms draw from torch's own generator: it gets a seed an image, and its state back.
    seeds = torch.randint(2**63 - 1, (len(items),), generator=generator)[part].tolist()
    state, crop = torch.get_rng_state(), v2.RandomResizedCrop(size)
    try:
        draws = []
        for picture, seed in zip(pictures, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            draws.append((crop.make_params([picture]), bool(torch.rand(1) < 0.5)))
    finally:
        torch.set_rng_state(state)
    return draws


def view_of(image: Image | Tensor, draw: Draw | None, side: int, size: int) -> Tensor:
    """The random view drawn, or Resize of the shorter side and CenterCrop, of an image or uint8 (3, H, W): uint8."""
    from torchvision.transforms.v2 import functional

    if draw is None:
        return _pixels(functional.center_crop(functional.resize(image, [side]), [size, size]))
    box, flip = draw
    view = functional.resized_crop(image, **box, size=[size, size])
    return _pixels(functional.horizontal_flip(view) if flip else view)


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and STD (3, 1, 1) on a device, made once: to send them there the host would wait for it."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return mean, std


def _pixels(image: Image | Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return image if isinstance(image, Tensor) else functional.pil_to_tensor(image)


def broken_images(images: ImageFiles, advance: Callable[[], object] = lambda: None) -> list[tuple[int, str]]:
    """Items that cannot be read and why, after reading every image; `advance` is called after each."""

    def fault(item: int) -> str | None:
        image = _decoded(images.folder / images.paths[item])
        return image if isinstance(image, str) else None

    broken = []
    # Decoders leave Python's lock alone.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for item, reason in enumerate(pool.map(fault, range(len(images)))):
            advance()
            if reason is not None:
                broken.append((item, reason))
    return broken
