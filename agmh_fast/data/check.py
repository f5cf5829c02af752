"""Is a dataset whole? Every image read, and what there is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agmh_fast.data.base import RetrievalData
from agmh_fast.data.images import ImageFiles, broken_images
from agmh_fast.data.published import ARCHIVES
from agmh_fast.errors import InputError


def check(data: RetrievalData, advance: Callable[[], object] = lambda: None) -> dict[str, Any]:
    """A report of plain values, as `agmh-fast data check --json` prints it; `advance` is called after each image.

    dataset, folder, classes; official: the published counts of classes, database and query, None for other data;
    splits: of each its images, its classes that have any with the smallest and largest number of images in one, its
    fingerprint, the paths of missing files, and path and reason of those that cannot be read. Raises InputError for
    data that is not in files.
    """
    splits, folder = {}, ""
    for name, images in (("database", data.database), ("query", data.query)):
        if not isinstance(images, ImageFiles):
            raise InputError(f"dataset {data.name!r} has no files to check")
        splits[name], folder = _check_split(images, advance), str(images.folder)
    known = ARCHIVES.get(data.name)
    official = known and {"classes": known.classes, "database": known.database, "query": known.query}
    return {
        "dataset": data.name,
        "folder": folder,
        "classes": data.num_classes,
        "official": official,
        "splits": splits,
    }


def _check_split(images: ImageFiles, advance: Callable[[], object]) -> dict[str, Any]:
    labels = images.labels
    sizes = labels.sum(0) if labels.ndim == 2 else labels.bincount()
    sizes = sizes[sizes > 0]
    missing, broken = [], []
    for item, reason in broken_images(images, advance):
        path = images.paths[item]
        if (images.folder / path).exists():
            broken.append({"path": path, "reason": reason})
        else:
            missing.append(path)
    return {
        "images": len(images),
        "classes": len(sizes),
        "smallest_class": int(sizes.min()),
        "largest_class": int(sizes.max()),
        "fingerprint": images.fingerprint,
        "missing": missing,
        "broken": broken,
    }
