"""Datasets for retrieval: a database split and a query split, loaded by name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

from agmh_fast.data.base import ImageSet, RetrievalData, batches
from agmh_fast.data.cache import CachedImages, cached
from agmh_fast.data.custom import folder, listing
from agmh_fast.data.fonts import fonts
from agmh_fast.data.gpu import decoded_on_device
from agmh_fast.data.images import ImageFiles, fingerprint
from agmh_fast.data.published import aircraft, cub, food101, nabirds, vegfru
from agmh_fast.data.unlabelled import is_image, unlabelled
from agmh_fast.errors import require

__all__ = [
    "DATASETS",
    "CachedImages",
    "ImageFiles",
    "ImageSet",
    "RetrievalData",
    "aircraft",
    "batches",
    "cached",
    "cub",
    "decoded_on_device",
    "fingerprint",
    "folder",
    "fonts",
    "food101",
    "is_image",
    "listing",
    "load",
    "nabirds",
    "unlabelled",
    "vegfru",
]

DATASETS: dict[str, Callable[..., RetrievalData]] = {
    "aircraft": aircraft,
    "cub": cub,
    "folder": folder,
    "fonts": fonts,
    "food101": food101,
    "listing": listing,
    "nabirds": nabirds,
    "vegfru": vegfru,
}
"""Name -> function that makes the dataset."""


def load(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> RetrievalData:
    """The dataset `name` of `DATASETS`, read from the folder `root` where it has files, made with its own `options`.

    Raises InputError for an unknown name, for an option the dataset does not have and for what the dataset refuses.
    """
    require(name in DATASETS, f"dataset {name!r} is not known: choose one of {', '.join(sorted(DATASETS))}")
    make = DATASETS[name]
    if root is not None:
        options["root"] = root
    accepted = list(inspect.signature(make).parameters)
    for option in options:
        require(option in accepted, f"dataset {name!r} takes no {option}: its options are {', '.join(accepted)}")
    return make(**options)
