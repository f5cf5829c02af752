"""Images without labels, to encode: those of a folder, of a list file, or named one by one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from agmh_fast.data.archives import read_text
from agmh_fast.data.custom import SUFFIXES
from agmh_fast.data.images import ImageFiles, readable
from agmh_fast.errors import InputError, require, shown
from agmh_fast.files import as_path

Source = str | os.PathLike[str]


def unlabelled(source: Source | Sequence[Source], size: int = 224, skip_broken: bool = False) -> ImageFiles:
    """The images of a folder at any depth, of a list file of one path a line, or several files; labels are all 0.

    A folder's come in the order of their paths. Paths in a list file are relative to its folder. skip_broken reads
    every image once, and leaves out those that cannot be read. Raises InputError where there is nothing.
    """
    if isinstance(source, str | os.PathLike):
        folder, paths = _found(as_path(source))
    else:
        folder, paths = Path(), [as_path(path).as_posix() for path in source]
    require(bool(paths), f"images: there is no image in {shown(str(source))}")
    images = ImageFiles(folder, paths, torch.zeros(len(paths), dtype=torch.int64), size)
    if skip_broken:
        images = readable(images)
        require(len(images) > 0, f"images: none in {os.fspath(source)!r} can be read")  # type: ignore[arg-type]
    return images


def is_image(path: Source) -> bool:
    """Whether a file's name is that of an image."""
    return as_path(path).suffix.lower() in SUFFIXES


def _found(source: Path) -> tuple[Path, list[str]]:
    if source.is_dir():
        found = sorted(
            path.relative_to(source).as_posix() for path in source.rglob("*") if is_image(path) and path.is_file()
        )
        return source, found
    if is_image(source):
        return source.parent, [source.name]
    text = read_text(source, InputError(f"images: there is no folder and no list file {str(source)!r}"))
    return source.parent, [line.strip() for line in text.splitlines() if line.strip()]
