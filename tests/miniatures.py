"""Small copies of the published datasets: every class and file of their layouts, a few tiny images."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image


@cache
def jpeg(seed: int, mode: str = "RGB") -> bytes:
    shape = (20, 26, 3) if mode == "RGB" else (20, 26)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def put(folder: Path, paths: list[str]) -> None:
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        # A grey one now and then, as there is in CUB.
        (folder / path).write_bytes(jpeg(number % 5, "L" if number % 7 == 0 else "RGB"))


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def cub(folder: Path) -> Path:
    """200 classes: two database images and a query each, but only one image of the last class."""
    images = [*((kind, split) for kind in range(1, 200) for split in (1, 0, 1)), (200, 1)]
    paths = [f"{kind:03d}.Some_Bird/Some Bird {number}.jpg" for number, (kind, _) in enumerate(images)]
    write(folder / "images.txt", [f"{number + 1} {path}" for number, path in enumerate(paths)])
    write(folder / "image_class_labels.txt", [f"{number + 1} {kind}" for number, (kind, _) in enumerate(images)])
    write(folder / "train_test_split.txt", [f"{number + 1} {split}" for number, (_, split) in enumerate(images)])
    write(folder / "classes.txt", [f"{kind} {kind:03d}.Some_Bird" for kind in range(1, 201)])
    put(folder / "images", paths)
    return folder


def aircraft(folder: Path) -> Path:
    """100 variants, names with spaces and slashes among them, an image of each in both splits."""
    names = ["707-320", "F/A-18", "Cessna Citation 525", *(f"A{number}" for number in range(97))]
    data = folder / "data"
    write(data / "variants.txt", names)
    write(data / "images_variant_trainval.txt", [f"{10 + i:07d} {name}" for i, name in enumerate(names)])
    write(data / "images_variant_test.txt", [f"{510 + i:07d} {name}" for i, name in enumerate(reversed(names))])
    put(data / "images", [f"{start + i:07d}.jpg" for start in (10, 510) for i in range(100)])
    return folder


def food101(folder: Path, as_json: bool = False) -> Path:
    """101 dishes, two database images and one query each."""
    names = ["Apple pie", "Baby back ribs", *(f"Dish number {number}" for number in range(99))]
    kinds = [name.lower().replace(" ", "_") for name in names]
    write(folder / "meta" / "labels.txt", names)
    for split, numbers in (("train", (101, 7)), ("test", (55,))):
        listed = {kind: [f"{kind}/{number}" for number in numbers] for kind in kinds}
        if as_json:
            (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
        else:
            write(folder / "meta" / f"{split}.txt", [image for images in listed.values() for image in images])
        put(folder / "images", [f"{image}.jpg" for images in listed.values() for image in images])
    return folder


def nabirds(folder: Path) -> Path:
    """555 of the class ids 100, 102, …, listed backwards; an image of each in both splits."""
    images = [(f"{kind:04x}{split}-0a0b-4c{split}", kind, split) for kind in range(1208, 98, -2) for split in (0, 1)]
    assert len(images) == 2 * 555
    paths = {key: f"{kind:04d}/{key.replace('-', '')}.jpg" for key, kind, _ in images}
    write(folder / "images.txt", [f"{key} {path}" for key, path in paths.items()])
    write(folder / "image_class_labels.txt", [f"{key} {kind}" for key, kind, _ in images])
    write(folder / "train_test_split.txt", [f"{key} {split}" for key, _, split in images])
    write(folder / "classes.txt", [f"{kind} Bird {kind} (Adult, male)" for kind in range(0, 1300)])
    write(folder / "hierarchy.txt", [f"{kind} {kind // 2}" for kind in range(1, 1300)])
    put(folder / "images", list(paths.values()))
    return folder


def vegfru(folder: Path, apart: bool = False) -> Path:
    """292 kinds, an image of each in every split; `apart`: in lists of vegetables and of fruits."""
    kinds = [*(f"veg200_images/veg kind {i}" for i in range(200)), *(f"fru92_images/fruit{i}" for i in range(92))]
    for split in ("train", "val", "test"):
        lines = [f"{kind}/v_{split}_{label}.jpg {label}" for label, kind in enumerate(kinds)]
        if apart:
            write(folder / "veg200_lists" / f"veg_{split}.txt", [line.split("/", 1)[1] for line in lines[:200]])
            fruits = [f"{kind}/v_{split}_{200 + i}.jpg {i}" for i, kind in enumerate(kinds[200:])]
            write(folder / "fru92_lists" / f"fru_{split}.txt", fruits)
        else:
            write(folder / "vegfru_list" / f"vegfru_{split}.txt", lines)
        put(folder, [line.rsplit(" ", 1)[0] for line in lines])
    return folder
