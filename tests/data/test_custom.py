"""Folders named after classes, and list files with one label or several."""

from __future__ import annotations

from pathlib import Path

import miniatures
import pytest

from agmh_fast.data import load
from agmh_fast.errors import InputError


@pytest.mark.parametrize(("database", "query"), [("train", "test"), ("train", "val"), ("database", "query")])
def test_folder(tmp_path: Path, database: str, query: str) -> None:
    own = ["b/2.jpg", "b/1.JPEG", "a class/deep er/x.png", "empty/notes.txt"]
    miniatures.put(tmp_path / database, own)
    miniatures.put(tmp_path / query, ["c/1.jpg", "b/1.jpg"])
    data = load("folder", tmp_path, size=16)
    assert data.class_names == ("a class", "b", "c")
    assert data.database.paths == tuple(
        f"{database}/{path}" for path in ("a class/deep er/x.png", "b/1.JPEG", "b/2.jpg")
    )
    assert data.database.labels.tolist() == [0, 1, 1]
    assert data.query.labels.tolist() == [1, 2]
    assert data.query.load(data.query.labels[:1] * 0, None).shape == (1, 3, 16, 16)


def test_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="root: dataset 'folder' needs its folder"):
        load("folder")
    with pytest.raises(InputError, match=r"must hold database and query images in train/class/x.jpg"):
        load("folder", tmp_path)
    miniatures.put(tmp_path / "train", ["a/1.jpg"])
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match=r"there is no image in '.*test'"):
        load("folder", tmp_path)


def test_listing_of_one_label_each(tmp_path: Path) -> None:
    miniatures.write(tmp_path / "train.txt", ["a dir/1.jpg 10", "", "2.jpg\t9"])
    miniatures.write(tmp_path / "test.txt", ["3.jpg 9"])
    data = load("listing", tmp_path)
    assert data.class_names == ("9", "10")
    assert data.database.paths == ("a dir/1.jpg", "2.jpg")
    assert data.database.labels.tolist() == [1, 0]
    assert data.query.labels.tolist() == [0]


def test_listing_of_several_labels(tmp_path: Path) -> None:
    miniatures.write(tmp_path / "db.txt", ["1.jpg sky,bird", "2.jpg sea"])
    miniatures.write(tmp_path / "q.txt", ["3.jpg sea,sky"])
    data = load("listing", tmp_path, database="db.txt", query="q.txt")
    assert data.class_names == ("bird", "sea", "sky")
    assert data.database.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert data.query.labels.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1.jpg", "line 1: expected 'path label'"),
        ("1.jpg a,,b", "line 1: a label is empty in 'a,,b'"),
        ("1.jpg a,b,a", "line 1: a label is given twice"),
        ("", "its database split is empty"),
        ("3.jpg a", "'3.jpg' is in both splits"),
    ],
)
def test_listing_mistakes(tmp_path: Path, line: str, said: str) -> None:
    miniatures.write(tmp_path / "test.txt", ["3.jpg a"])
    with pytest.raises(InputError, match=r"train.txt' is missing: the folder has train.txt and test.txt"):
        load("listing", tmp_path)
    miniatures.write(tmp_path / "train.txt", [line])
    with pytest.raises(InputError) as caught:
        load("listing", tmp_path)
    assert said in str(caught.value)
    with pytest.raises(InputError, match="root: dataset 'listing' needs its folder"):
        load("listing")
