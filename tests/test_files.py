"""Atomic writing and output folders."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from agmh_fast.errors import InputError, require_int, shown
from agmh_fast.files import atomic_write, output_folder, size_text


def test_a_write_is_whole_or_not_at_all(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def interrupted():
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    with atomic_write(target) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_temporary_file_taken_for_left_over_is_made_anew(tmp_path, monkeypatch):
    """Another process may come between making it and locking it."""
    fcntl = pytest.importorskip("fcntl")
    lock, taken = fcntl.flock, []

    def late(file, how):
        if not taken:
            taken.extend(os.listdir(tmp_path))
            os.unlink(tmp_path / taken[0])
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with atomic_write(tmp_path / "file") as temporary:
        assert temporary.name != taken[0]
        temporary.write_text("new")
    assert os.listdir(tmp_path) == ["file"]


def test_a_long_name_is_counted_in_bytes(tmp_path):
    """A file system takes 255 of them, of which one character may be four."""
    target = tmp_path / ("図" * 84)
    left = tmp_path / f".{os.fsdecode(os.fsencode(target.name)[:200])}.{'0' * 16}"
    left.write_text("of a process that is gone")
    with atomic_write(target) as temporary:
        assert len(os.fsencode(temporary.name)) <= 255
        temporary.write_text("new")
    assert os.listdir(tmp_path) == [target.name]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="no folder"), atomic_write(tmp_path / "missing" / "file"):
        pass
    with pytest.raises(InputError, match="it is a folder"), atomic_write(tmp_path):
        pass
    with pytest.raises(InputError, match="NUL"), atomic_write(tmp_path / "a\0b"):
        pass
    with pytest.raises(InputError, match="cannot write in the output folder"):
        output_folder(tmp_path / "file" / "below")
    assert output_folder(tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(
    "value",
    [True, 1.0, "3", None, -1, 11, np.array([1, 2]), torch.ones(3), np.float32(2), torch.tensor(True)],
)
def test_whole_numbers(value):
    with pytest.raises(InputError, match=r"k must be a whole number from 0 to 10, got"):
        require_int("k", value, 0, 10)


@pytest.mark.parametrize("value", [7, np.int8(7), torch.tensor(7), torch.tensor(7, dtype=torch.uint8)])
def test_stand_ins_for_whole_numbers(value):
    assert require_int("k", value, 0, 10) == 7
    assert type(require_int("k", value, 0, 10)) is int


def test_values_are_shown_on_one_short_line():
    assert shown(torch.ones(2, 2)) == "tensor([[1., 1.], [1., 1.]])"
    assert shown("x" * 1000) == "'" + "x" * 56 + "..."
    assert shown(10**5000) == "a value of type int"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_501, "1 MB"),
        (5_099_872, "5.1 MB"),
        (7e9, "7 GB"),
        (2e12, "2 TB"),
    ],
)
def test_sizes_are_told_in_a_unit_that_suits(count, text):
    assert size_text(count) == text
