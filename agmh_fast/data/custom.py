"""Images of your own: folders named after their classes, or list files with one label or several an image."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from agmh_fast.data.archives import read_text
from agmh_fast.data.base import RetrievalData
from agmh_fast.data.images import ImageFiles, image_data
from agmh_fast.errors import InputError, require, shown
from agmh_fast.files import as_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""Of the files that `folder` takes for images."""

_PAIRS = (("train", "test"), ("train", "val"), ("database", "query"))
_LAYOUT = "database and query images in train/class/x.jpg and test/class/x.jpg (or val, or database and query)"
_LISTS = "train.txt and test.txt, of lines 'path label' or 'path label,label', paths relative to the folder"


def folder(root: str | os.PathLike[str] | None = None, size: int = 224, skip_broken: bool = False) -> RetrievalData:
    """torchvision's ImageFolder layout: `root`/train/class/…/x.jpg is the database, `root`/test/… the queries.

    test may be called val, and both database and query. Classes are the folders' names in the order of their
    characters; an image may lie deeper. size, skip_broken and errors as in `agmh_fast.data.published`.
    """
    require(root is not None, f"root: dataset 'folder' needs its folder, with {_LAYOUT}")
    top = as_path(root)  # type: ignore[arg-type]
    pair = next((pair for pair in _PAIRS if all((top / name).is_dir() for name in pair)), None)
    if pair is None:
        raise InputError(f"root: {str(top)!r} must hold {_LAYOUT}")
    found = {name: _class_images(top / name) for name in pair}
    names = sorted({kind for images in found.values() for kind in images})
    label = {name: number for number, name in enumerate(names)}

    def split(name: str) -> ImageFiles:
        listed = [
            (path.relative_to(top).as_posix(), label[kind]) for kind, images in found[name].items() for path in images
        ]
        require(bool(listed), f"root: there is no image in {str(top / name)!r}: put them in a folder a class")
        return ImageFiles(top, [path for path, _ in listed], torch.tensor([number for _, number in listed]), size)

    return image_data("folder", names, split(pair[0]), split(pair[1]), skip_broken)


def listing(
    root: str | os.PathLike[str] | None = None,
    database: str = "train.txt",
    query: str = "test.txt",
    size: int = 224,
    skip_broken: bool = False,
) -> RetrievalData:
    """Images named in two files in `root`, of lines "path label" or "path label,label…"; paths may hold spaces.

    Paths are relative to `root`. Labels are words without spaces and commas; classes are in the order of numbers where
    all labels are whole numbers, else of characters. If any image has several, labels are multi-hot (N, classes), and
    images are relevant to each other that share one. size, skip_broken and errors as in `agmh_fast.data.published`.
    """
    require(root is not None, f"root: dataset 'listing' needs its folder, with {_LISTS}")
    top = as_path(root)  # type: ignore[arg-type]
    lists = [_listed(top / name) for name in (database, query)]
    words = {word for listed in lists for _, labels in listed for word in labels}
    whole = all(word.isascii() and word.isdigit() for word in words)
    names = sorted(words, key=lambda word: (int(word), word)) if whole else sorted(words)
    label = {name: number for number, name in enumerate(names)}
    several = any(len(labels) > 1 for listed in lists for _, labels in listed)

    def split(listed: list[tuple[str, list[str]]]) -> ImageFiles:
        numbers = [[label[word] for word in labels] for _, labels in listed]
        tensor = _multi_hot(numbers, len(names)) if several else torch.tensor(numbers, dtype=torch.int64).flatten()
        return ImageFiles(top, [path for path, _ in listed], tensor, size)

    return image_data("listing", names, split(lists[0]), split(lists[1]), skip_broken)


def _class_images(top: Path) -> dict[str, list[Path]]:
    """Image files of each folder in `top` that has any, sorted."""
    found = {}
    for kind in sorted(path for path in top.iterdir() if path.is_dir()):
        images = sorted(path for path in kind.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if images:
            found[kind.name] = images
    return found


def _listed(path: Path) -> list[tuple[str, list[str]]]:
    listed = []
    for number, line in enumerate(read_text(path, _missing(path)).splitlines(), 1):
        if not line.strip():
            continue
        words = line.strip().rsplit(maxsplit=1)
        place = f"root: {str(path)!r}, line {number}"
        require(len(words) == 2, f"{place}: expected 'path label' or 'path label,label', got {shown(line)}")
        labels = words[1].split(",")
        require(all(labels), f"{place}: a label is empty in {shown(words[1])}")
        require(len(set(labels)) == len(labels), f"{place}: a label is given twice in {shown(words[1])}")
        listed.append((words[0], labels))
    return listed


def _missing(path: Path) -> InputError:
    return InputError(f"root: {str(path)!r} is missing: the folder has {_LISTS}")


def _multi_hot(numbers: list[list[int]], classes: int) -> Tensor:
    labels = torch.zeros(len(numbers), classes, dtype=torch.uint8)
    for row, columns in enumerate(numbers):
        labels[row, columns] = 1
    return labels
