"""The five published datasets of fine-grained retrieval, as their archives lay them out.

The official training images are the database, the official test images the queries. `root` is the dataset's folder or
the one that its archive was unpacked in; `size` is that of the images, `skip_broken` leaves out those that cannot be
read. All raise InputError for missing files, lines that cannot be understood and numbers of classes that do not fit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

import torch

from agmh_fast.data.archives import Archive, number, read_text
from agmh_fast.data.base import RetrievalData
from agmh_fast.data.images import ImageFiles
from agmh_fast.errors import InputError, require

Root = str | os.PathLike[str] | None

CUB = Archive(
    "cub",
    ("CUB_200_2011",),
    ("images.txt",),
    "images.txt, image_class_labels.txt, train_test_split.txt and images/001.Name/x.jpg",
    "CUB_200_2011.tgz from www.vision.caltech.edu/datasets/cub_200_2011",
    classes=200,
    database=5994,
    query=5794,
)
AIRCRAFT = Archive(
    "aircraft",
    ("fgvc-aircraft-2013b", "data"),
    ("variants.txt",),
    "data/variants.txt, data/images_variant_trainval.txt, data/images_variant_test.txt and data/images/0034309.jpg",
    "fgvc-aircraft-2013b.tar.gz from www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
    classes=100,
    database=6667,
    query=3333,
)
FOOD101 = Archive(
    "food101",
    ("food-101",),
    ("meta/labels.txt",),
    "meta/labels.txt, meta/train.txt, meta/test.txt (or .json) and images/apple_pie/134.jpg",
    "food-101.tar.gz from data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
    classes=101,
    database=75750,
    query=25250,
)
NABIRDS = Archive(
    "nabirds",
    ("nabirds",),
    ("images.txt",),
    "images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and images/0817/x.jpg",
    "nabirds.tar.gz from dl.allaboutbirds.org/nabirds",
    classes=555,
    database=23929,
    query=24633,
)
VEGFRU = Archive(
    "vegfru",
    ("VegFru",),
    ("vegfru_list/vegfru_train.txt", "veg200_lists/veg_train.txt"),
    "vegfru_list/vegfru_train.txt and vegfru_test.txt (or veg200_lists/veg_train.txt and so on, fru92_lists/"
    "fru_train.txt and so on), veg200_images/name/x.jpg and fru92_images/name/x.jpg",
    "VegFru from github.com/ustc-vim/vegfru",
    classes=292,
    database=29200,
    query=116931,
)
ARCHIVES = {archive.name: archive for archive in (CUB, AIRCRAFT, FOOD101, NABIRDS, VEGFRU)}

_VEGETABLES = 200


def cub(root: Root = None, size: int = 224, skip_broken: bool = False) -> RetrievalData:
    """CUB-200-2011: 200 species of birds, 5994 database images and 5794 queries."""
    return _birds(CUB, root, size, skip_broken)


def nabirds(root: Root = None, size: int = 224, skip_broken: bool = False) -> RetrievalData:
    """NABirds: 555 kinds of birds, 23929 database images and 24633 queries; class ids are taken in ascending order."""
    return _birds(NABIRDS, root, size, skip_broken)


def aircraft(root: Root = None, size: int = 224, skip_broken: bool = False) -> RetrievalData:
    """FGVC-Aircraft: 100 variants, 6667 database images (training and validation) and 3333 queries."""
    folder = AIRCRAFT.find(root)
    names = [line for line, _ in AIRCRAFT.lines(folder / "variants.txt")]
    AIRCRAFT.check_classes(len(names))
    known = {name: label for label, name in enumerate(names)}

    def split(file: str) -> ImageFiles:
        paths, labels = [], []
        # Names of variants hold spaces and slashes.
        for image, name, place in AIRCRAFT.pairs(folder / file):
            require(name in known, f"root: {place}: variants.txt has no {name!r}")
            paths.append(f"images/{image}.jpg")
            labels.append(known[name])
        return ImageFiles(folder, paths, torch.tensor(labels), size)

    database, query = split("images_variant_trainval.txt"), split("images_variant_test.txt")
    return AIRCRAFT.data(names, database, query, skip_broken)


def food101(root: Root = None, size: int = 224, skip_broken: bool = False) -> RetrievalData:
    """Food-101: 101 dishes, 75750 database images and 25250 queries."""
    folder = FOOD101.find(root)
    names = [line for line, _ in FOOD101.lines(folder / "meta" / "labels.txt")]
    FOOD101.check_classes(len(names))
    known = {name.lower().replace(" ", "_"): label for label, name in enumerate(names)}

    def split(name: str) -> ImageFiles:
        paths, labels = [], []
        for image, place in _food_images(folder / "meta" / f"{name}.txt"):
            dish = image.split("/")[0]
            require(dish in known, f"root: {place}: labels.txt has no {dish!r}")
            paths.append(f"images/{image}.jpg")
            labels.append(known[dish])
        return ImageFiles(folder, paths, torch.tensor(labels), size)

    return FOOD101.data(names, split("train"), split("test"), skip_broken)


def vegfru(root: Root = None, size: int = 224, skip_broken: bool = False) -> RetrievalData:
    """VegFru: 200 vegetables and 92 fruits, 29200 database images (training without validation) and 116931 queries."""
    folder = VEGFRU.find(root)
    names: dict[int, str] = {}

    def split(name: str) -> ImageFiles:
        paths, labels = [], []
        for image, label in _vegfru_images(folder, name):
            paths.append(image)
            labels.append(label)
            kind = PurePosixPath(image).parent.name
            same = names.setdefault(label, kind) == kind
            require(same, f"root: {str(folder)!r}: class {label} is {names[label]!r}, but of {image!r} too")
        return ImageFiles(folder, paths, torch.tensor(labels), size)

    database, query = split("train"), split("test")
    VEGFRU.check_classes(len(names))
    top = max(names)
    require(top == len(names) - 1, f"root: {str(folder)!r}: labels must be 0 to {len(names) - 1}, one is {top}")
    return VEGFRU.data([names[label] for label in sorted(names)], database, query, skip_broken)


def _birds(archive: Archive, root: Root, size: int, skip_broken: bool) -> RetrievalData:
    """Three files keyed by image; class ids may be sparse."""
    folder = archive.find(root)
    paths = {image: path for image, path, _ in archive.pairs(folder / "images.txt")}
    classes = {image: number(word, place) for image, word, place in archive.pairs(folder / "image_class_labels.txt")}
    training = {image: number(word, place) for image, word, place in archive.pairs(folder / "train_test_split.txt")}
    for file, listed in (("image_class_labels.txt", classes), ("train_test_split.txt", training)):
        odd = sorted(paths.keys() ^ listed.keys())
        if odd:
            raise InputError(f"root: {str(folder)!r}: image {odd[0]!r} is not in both images.txt and {file}")
    ids = sorted(set(classes.values()))
    archive.check_classes(len(ids))
    label = {class_id: place for place, class_id in enumerate(ids)}

    def split(wanted: int) -> ImageFiles:
        images = [image for image in paths if training[image] == wanted]
        labels = torch.tensor([label[classes[image]] for image in images], dtype=torch.int64)
        return ImageFiles(folder, [f"images/{paths[image]}" for image in images], labels, size)

    names = _bird_names(archive, folder / "classes.txt")
    first = {classes[image]: path.split("/")[0] for image, path in reversed(paths.items())}
    return archive.data([names.get(i, first[i]) for i in ids], split(1), split(0), skip_broken)


def _bird_names(archive: Archive, path: Path) -> dict[int, str]:
    """Names by class id; the folders of the images say them where there is no such file."""
    if not path.is_file():
        return {}
    return {number(word, place): name for word, name, place in archive.pairs(path)}


def _food_images(path: Path) -> list[tuple[str, str]]:
    """Images, as "apple_pie/134", of a list or, where it is not there, of the JSON file beside it; with their place."""
    other = path.with_suffix(".json")
    if path.is_file() or not other.is_file():
        return list(FOOD101.lines(path))
    try:
        listed = json.loads(read_text(other, FOOD101.missing(other)))
        return [(str(image), repr(str(other))) for images in listed.values() for image in images]
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"root: cannot read {str(other)!r}: {error}") from error


def _vegfru_images(folder: Path, split: str) -> list[tuple[str, int]]:
    """Images and labels of a split: of one list, or of one of vegetables and one of fruits."""
    whole = folder / "vegfru_list" / f"vegfru_{split}.txt"
    if whole.parent.is_dir():
        return [(image, number(word, place)) for image, word, place in VEGFRU.pairs(whole, from_end=True)]
    listed = []
    for kind, images, start in (("veg", "veg200", 0), ("fru", "fru92", _VEGETABLES)):
        prefix = f"{images}_images/"
        for image, word, place in VEGFRU.pairs(folder / f"{images}_lists" / f"{kind}_{split}.txt", from_end=True):
            listed.append((prefix + image.removeprefix(prefix), number(word, place) + start))
    return listed
