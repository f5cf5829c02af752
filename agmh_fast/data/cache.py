"""Decoded images in a file: uint8, the shorter side as the deterministic view wants it, mapped by all who read it.

Repeated epochs then neither decode nor shrink. The deterministic view stays what it was, bit for bit; random crops are
cut from the smaller image. A cache of whole images keeps them at their own size: nothing is decoded again, all views
stay what they were, and it takes several times the room.

A cache is one file: 32 bytes that say what it is, the last 8 of them the shorter side or 0 for whole images, (height,
width) int32 of each image, then its pixels (height, width, 3) one after the other. Its name holds a hash of paths,
sizes and times of the images, so that a changed image means another cache. It is written as `….partial`, which a
killed process leaves to be continued, and renamed when all is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from agmh_fast.data.base import RetrievalData
from agmh_fast.data.images import ImageFiles, files_hash, read_image
from agmh_fast.errors import InputError, require
from agmh_fast.files import as_path, atomic_write, output_folder, size_text

if TYPE_CHECKING:
    from PIL.Image import Image

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

_HEAD = struct.Struct("<16sqq")
_MAGIC = b"agmh_fast cache1"
# Images that are decoded between two syncs: what a power cut may cost.
_CHUNK = 512


class CachedImages(ImageFiles):
    """`ImageFiles` whose pictures come from a cache: `whole`, or with their shorter side `side` pixels long."""

    def __init__(self, images: ImageFiles, cache: Path, whole: bool = False) -> None:
        super().__init__(images.folder, images.paths, images.labels, images.size)
        self.cache, self.whole, self.decoded = cache, whole, not whole
        self._map()

    def picture(self, item: int) -> Image | Tensor:
        """Image `item` in RGB as it is in its file; or shrunk or enlarged, uint8 (3, H, W), channels last in memory."""
        height, width = self._shapes[item].tolist()
        start = self._starts[item]
        pixels = self._pixels[start : start + 3 * height * width]
        if self.whole:
            from PIL import Image

            return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)
        # A copy, as torch takes no memory that may not be written to.
        pixels = pixels.copy()
        return torch.from_numpy(pixels).view(height, width, 3).permute(2, 0, 1)

    def _map(self) -> None:
        try:
            with self.cache.open("rb") as file:
                magic, count, side = _HEAD.unpack(file.read(_HEAD.size))
                self._shapes = np.fromfile(file, np.int32, 2 * count).reshape(-1, 2).astype(np.int64)
            self._starts = _starts(self._shapes)
            size = self._starts[-1]
            fits = (magic, count, side) == (
                _MAGIC,
                len(self),
                _side(self, self.whole),
            ) and self.cache.stat().st_size == size
            require(fits, f"cache: {str(self.cache)!r} is damaged: delete it, and it is written anew")
            self._pixels = np.memmap(self.cache, np.uint8, "r")
        except (OSError, ValueError, struct.error) as error:
            raise InputError(f"cache: cannot read {str(self.cache)!r}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        # A map that is pickled, for a worker say, would be a copy of the file.
        return {name: value for name, value in self.__dict__.items() if name != "_pixels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def cached(
    data: RetrievalData,
    folder: str | os.PathLike[str],
    tell: Callable[[str], object] = print,
    whole: bool = False,
) -> RetrievalData:
    """The dataset with both splits read from caches in `folder`, which are written where they are missing.

    whole: of the images at their own size, so that every pixel is as without a cache. Before they are written `tell`
    gets a line with their size. Raises InputError for a dataset that is not in files, for images that cannot be read,
    and where there is no room for the caches.
    """
    place = output_folder(as_path(folder))
    splits = []
    for images in (data.database, data.query):
        if not isinstance(images, ImageFiles):
            raise InputError(f"cache: dataset {data.name!r} has no files to cache")
        splits.append(images)
    files = [place / f"{data.name}-{_key(images, whole)}.cache" for images in splits]
    plans = [
        (images, file, _shapes(images, whole)) for images, file in zip(splits, files, strict=True) if not file.exists()
    ]
    if plans:
        needed = sum(int(_starts(shapes)[-1]) for _, _, shapes in plans)
        there = sum(part.stat().st_size for part in map(_partial, files) if part.exists())
        count = sum(len(shapes) for _, _, shapes in plans)
        tell(f"cache: {count} decoded images take {size_text(needed)} in {str(place)!r}")
        free = shutil.disk_usage(place).free + there
        require(free >= needed, f"cache: {str(place)!r} has {size_text(free)} free, {size_text(needed)} are needed")
    for images, file, shapes in plans:
        _write(images, file, shapes, whole)
    database, query = (CachedImages(images, file, whole) for images, file in zip(splits, files, strict=True))
    return RetrievalData(data.name, data.class_names, database, query, data.mean, data.std)


def _side(images: ImageFiles, whole: bool) -> int:
    """What a cache says of its images' size: their shorter side, 0 for whole ones."""
    return 0 if whole else images.side


def _key(images: ImageFiles, whole: bool) -> str:
    """What the cache's contents depend on, as 16 hexadecimal digits."""
    return files_hash(images, f"{_side(images, whole)}")[:16]


def _shapes(images: ImageFiles, whole: bool) -> np.ndarray:
    """(height, width) of every image in the cache, (N, 2) int64, from the heads of the files."""
    from PIL import Image

    def shape(path: str) -> tuple[int, int]:
        try:
            with Image.open(images.folder / path) as image:
                width, height = image.size
        except Exception:
            read_image(images.folder / path)  # says why not
            raise
        if whole:
            return height, width
        short = min(height, width)
        # The longer side as torchvision's Resize rounds it.
        return tuple(images.side if n == short else int(images.side * n / short) for n in (height, width))  # type: ignore[return-value]

    with _threads() as pool:
        return np.array(list(pool.map(shape, images.paths)), np.int64).reshape(-1, 2)


def _starts(shapes: np.ndarray) -> np.ndarray:
    """Where in the file the pixels of each image begin, and at last where the file ends: (N + 1,) int64."""
    first = _HEAD.size + 8 * len(shapes)
    return first + np.concatenate([[0], np.cumsum(3 * shapes.prod(axis=1))])


def _write(images: ImageFiles, file: Path, shapes: np.ndarray, whole: bool) -> None:
    """Write a cache, from where an earlier process stopped."""
    from torchvision.transforms.v2 import functional
    from tqdm import tqdm

    def pixels(item: int) -> np.ndarray:
        image = read_image(images.folder / images.paths[item])
        array = np.asarray(image if whole else functional.resize(image, [images.side]))
        told = tuple(shapes[item])
        require(array.shape[:2] == told, f"cache: {images.paths[item]!r} is not of the size that its head says")
        return array

    starts, progress = _starts(shapes), file.with_name(f"{file.name}.progress")
    try:
        with _opened(_partial(file)) as out, _threads() as pool:
            done = _images_done(progress, out, starts)
            out.truncate(starts[done] if done else 0)
            out.seek(0, os.SEEK_END)
            if not done:
                out.write(_HEAD.pack(_MAGIC, len(images), _side(images, whole)))
                out.write(shapes.astype(np.int32).tobytes())
            with tqdm(total=len(images), initial=done, unit="image", desc="caching", disable=None) as bar:
                for start in range(done, len(images), _CHUNK):
                    items = range(start, min(start + _CHUNK, len(images)))
                    for array in pool.map(pixels, items):
                        out.write(array.tobytes())
                    out.flush()
                    os.fsync(out.fileno())
                    with atomic_write(progress) as temporary:
                        temporary.write_text(str(items.stop))
                    bar.update(len(items))
            out.flush()
            os.replace(_partial(file), file)
            progress.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cache: cannot write {str(file)!r}: {error.strerror or error}") from error


def _images_done(progress: Path, out: BinaryIO, starts: np.ndarray) -> int:
    """Images that an earlier process has written and synced."""
    with contextlib.suppress(OSError, ValueError):
        done = int(progress.read_text())
        if 0 <= done < len(starts) and os.fstat(out.fileno()).st_size >= starts[done]:
            return done
    return 0


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file to go on with, held by this process alone."""
    path.touch()
    with path.open("r+b") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"cache: another process is writing {str(path)!r}: wait for it") from None
        yield file


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.partial")


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))
