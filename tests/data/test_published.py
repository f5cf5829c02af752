"""The five published datasets, from small copies of their layouts."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import miniatures
import pytest
import torch

from agmh_fast.data import RetrievalData, batches, load
from agmh_fast.data.published import ARCHIVES
from agmh_fast.errors import InputError

MAKE = {
    "cub": ("CUB_200_2011", miniatures.cub),
    "aircraft": ("fgvc-aircraft-2013b", miniatures.aircraft),
    "food101": ("food-101", miniatures.food101),
    "nabirds": ("nabirds", miniatures.nabirds),
    "vegfru": ("VegFru", miniatures.vegfru),
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all five in it, as they are unpacked."""
    folder = tmp_path_factory.mktemp("archives")
    for name, make in MAKE.values():
        make(folder / name)
    return folder


@pytest.fixture
def own(request: pytest.FixtureRequest, archives: Path, tmp_path: Path) -> Path:
    """A copy of one that a test may spoil."""
    name = MAKE[request.param][0]
    return Path(shutil.copytree(archives / name, tmp_path / name))


def listed(data: RetrievalData) -> list[list[tuple[str, str]]]:
    """(path, class name) of both splits."""
    return [
        [(path, data.class_names[label]) for path, label in zip(images.paths, images.labels.tolist(), strict=True)]
        for images in (data.database, data.query)
    ]


@pytest.mark.parametrize("name", MAKE)
def test_root_or_its_parent(archives: Path, name: str) -> None:
    places = [archives, archives / MAKE[name][0]]
    if name == "aircraft":
        places.append(places[1] / "data")
    whole = [listed(load(name, place)) for place in places]
    assert all(data == whole[0] for data in whole)
    data = load(name, archives)
    assert data.name == name
    assert data.num_classes == ARCHIVES[name].classes
    for images in (data.database, data.query):
        assert images.labels.dtype == torch.int64
        assert all((images.folder / path).is_file() for path in images.paths)


def test_cub(archives: Path) -> None:
    data = load("cub", archives)
    assert (len(data.database), len(data.query)) == (199 * 2 + 1, 199)
    assert data.class_names[4] == "005.Some_Bird"
    database, query = listed(data)
    assert database[:2] == [
        ("images/001.Some_Bird/Some Bird 0.jpg", "001.Some_Bird"),
        ("images/001.Some_Bird/Some Bird 2.jpg", "001.Some_Bird"),
    ]
    assert query[0] == ("images/001.Some_Bird/Some Bird 1.jpg", "001.Some_Bird")
    assert all(path.split("/")[1] == kind for path, kind in database + query)


@pytest.mark.parametrize("own", ["cub"], indirect=True)
def test_cub_without_names_takes_those_of_folders(own: Path) -> None:
    (own / "classes.txt").unlink()
    assert load("cub", own).class_names[199] == "200.Some_Bird"


def test_aircraft(archives: Path) -> None:
    data = load("aircraft", archives)
    database, query = listed(data)
    assert data.class_names[:3] == ("707-320", "F/A-18", "Cessna Citation 525")
    assert database[:3] == [
        ("images/0000010.jpg", "707-320"),
        ("images/0000011.jpg", "F/A-18"),
        ("images/0000012.jpg", "Cessna Citation 525"),
    ]
    assert query[-1] == ("images/0000609.jpg", "707-320")


@pytest.mark.parametrize("as_json", [False, True])
def test_food101(tmp_path: Path, as_json: bool) -> None:
    data = load("food101", miniatures.food101(tmp_path / "food-101", as_json))
    database, query = listed(data)
    assert database[:2] == [("images/apple_pie/101.jpg", "Apple pie"), ("images/apple_pie/7.jpg", "Apple pie")]
    assert query[1] == ("images/baby_back_ribs/55.jpg", "Baby back ribs")
    assert (len(database), len(query)) == (202, 101)


def test_nabirds_takes_sparse_ids_in_ascending_order(archives: Path) -> None:
    data = load("nabirds", archives)
    assert data.class_names[:2] == ("Bird 100 (Adult, male)", "Bird 102 (Adult, male)")
    assert data.database.labels.unique().tolist() == list(range(555))
    assert all(f"Bird {int(path.split('/')[1])} " in kind for images in listed(data) for path, kind in images)


@pytest.mark.parametrize("apart", [False, True])
def test_vegfru(tmp_path: Path, apart: bool) -> None:
    data = load("vegfru", miniatures.vegfru(tmp_path / "VegFru", apart))
    database, query = listed(data)
    assert (len(database), len(query)) == (292, 292)
    assert database[0] == ("veg200_images/veg kind 0/v_train_0.jpg", "veg kind 0")
    assert query[291] == ("fru92_images/fruit91/v_test_291.jpg", "fruit91")
    assert data.class_names[200] == "fruit0"


def test_fingerprint_is_that_of_the_sorted_lines(archives: Path) -> None:
    split = load("aircraft", archives).query
    lines = sorted(f"{path}\t{label}\n" for path, label in zip(split.paths, split.labels.tolist(), strict=True))
    assert split.fingerprint == hashlib.sha256("".join(lines).encode()).hexdigest()
    backwards = split.keep(range(len(split) - 1, -1, -1))
    assert backwards.fingerprint == split.fingerprint
    assert split.keep(range(len(split) - 1)).fingerprint != split.fingerprint


# What each dataset cannot do without, one line that is not understood, and what is said of it.
SPOILT = [
    ("cub", "images.txt", "1\n", "line 1: expected two words, got '1'"),
    ("cub", "image_class_labels.txt", "1 one\n", "line 1: expected a whole number, got 'one'"),
    ("cub", "train_test_split.txt", "1 1\n", "is not in both images.txt and train_test_split.txt"),
    ("aircraft", "data/variants.txt", "A320\n", "aircraft has 100 classes, 1 were found"),
    ("aircraft", "data/images_variant_test.txt", "0000010 B52\n", "line 1: variants.txt has no 'B52'"),
    ("food101", "meta/labels.txt", "Apple pie\n", "food101 has 101 classes, 1 were found"),
    ("food101", "meta/train.txt", "pear_pie/3\n", "line 1: labels.txt has no 'pear_pie'"),
    ("nabirds", "images.txt", "x y.jpg\n", "is not in both images.txt and image_class_labels.txt"),
    ("nabirds", "train_test_split.txt", "x -1\n", "line 1: expected a whole number, got '-1'"),
    ("vegfru", "vegfru_list/vegfru_train.txt", "a/b.jpg x\n", "line 1: expected a whole number, got 'x'"),
    ("vegfru", "vegfru_list/vegfru_test.txt", "veg200_images/veg kind 1/a.jpg 0\n", "class 0 is 'veg kind 0'"),
]


@pytest.mark.parametrize(("own", "file", "text", "said"), SPOILT, indirect=["own"])
def test_what_cannot_be_understood_is_one_line_that_names_it(own: Path, file: str, text: str, said: str) -> None:
    name = next(name for name, (folder, _) in MAKE.items() if folder == own.name)
    (own / file).write_text(text)
    with pytest.raises(InputError) as caught:
        load(name, own)
    assert said in str(caught.value)
    assert str(caught.value).startswith("root: ")
    assert "\n" not in str(caught.value)
    (own / file).write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read"):
        load(name, own)
    (own / file).unlink()
    with pytest.raises(InputError, match=f"is missing: {name} has ") as caught:
        load(name, own)
    message = str(caught.value)
    assert repr(str(own / file)) in message
    assert ARCHIVES[name].layout in message
    assert ARCHIVES[name].source in message
    assert "\n" not in message


@pytest.mark.parametrize(("own", "file"), [("cub", "image_class_labels.txt")], indirect=["own"])
def test_a_class_too_few_is_refused(own: Path, file: str) -> None:
    (own / file).write_text((own / file).read_text().replace(" 200\n", " 199\n"))
    with pytest.raises(InputError, match="cub has 200 classes, 199 were found"):
        load("cub", own)


@pytest.mark.parametrize("own", ["aircraft"], indirect=True)
def test_an_image_in_both_splits_or_twice_in_one_is_refused(own: Path) -> None:
    test = own / "data" / "images_variant_test.txt"
    text = test.read_text()
    test.write_text(text + "0000010 707-320\n")
    with pytest.raises(InputError, match=r"'images/0000010.jpg' is in both splits"):
        load("aircraft", own)
    test.write_text(text + text.splitlines()[0])
    with pytest.raises(InputError, match="query split lists a file twice"):
        load("aircraft", own)


def test_no_root_and_a_wrong_root(tmp_path: Path) -> None:
    for name in MAKE:
        with pytest.raises(InputError, match=f"root: dataset '{name}' needs its folder; it has "):
            load(name)
        with pytest.raises(InputError, match=f"is missing: {name} has "):
            load(name, tmp_path / "nowhere")


@pytest.mark.parametrize("own", ["cub"], indirect=True)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_and_skipped_only_on_request(own: Path, workers: int) -> None:
    data = load("cub", own, size=16)
    cut, gone = data.database.paths[1], data.query.paths[3]
    (own / cut).write_bytes((own / cut).read_bytes()[:-200])
    (own / gone).unlink()
    with pytest.raises(InputError) as caught:
        list(batches(data.database, range(4), 2, workers=workers))
    assert f"cannot read the image {str(own / cut)!r}: image file is truncated" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="No such file or directory"):
        data.query.load(torch.tensor([3]), None)
    whole = load("cub", own, size=16, skip_broken=True)
    assert whole.database.paths == tuple(path for path in data.database.paths if path != cut)
    assert whole.query.paths == tuple(path for path in data.query.paths if path != gone)
    assert whole.database.labels[1:].tolist() == data.database.labels[2:].tolist()
    assert whole.database.fingerprint != data.database.fingerprint
    with pytest.raises(InputError, match="skip_broken must be True or False"):
        load("cub", own, skip_broken="yes")
