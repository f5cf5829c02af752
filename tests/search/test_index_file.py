"""Saved indexes: exact round trips, every kind of damage found and named."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import agmh_fast as af
from agmh_fast.search import index_file

pytestmark = pytest.mark.usefixtures("engine")


def _index(bits=48, rows=100, seed=0):
    rng = np.random.default_rng(seed)
    index = af.HammingIndex(bits)
    index.add(np.packbits(rng.integers(0, 2, (rows, bits), dtype=np.uint8), axis=1), rng.permutation(10 * rows)[:rows])
    return index


def _assert_same(first, second):
    assert first.bits == second.bits
    assert np.array_equal(first.codes, second.codes)
    assert np.array_equal(first.ids, second.ids)


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, 300), rows=st.integers(0, 50), mmap=st.booleans(), seed=st.integers(0, 1000))
def test_round_trip(tmp_path_factory, bits, rows, mmap, seed):
    path = tmp_path_factory.mktemp("index") / "index"
    index = _index(bits, rows, seed)
    index.save(path)
    loaded = af.HammingIndex.load(path, mmap=mmap)
    _assert_same(loaded, index)
    queries = np.ascontiguousarray(index.codes[:3])
    for first, second in zip(index.search(queries, 7), loaded.search(queries, 7), strict=True):
        assert np.array_equal(first, second)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_loaded_index_can_change(tmp_path, mmap):
    path = tmp_path / "index"
    index = _index()
    index.save(path)
    before = path.read_bytes()
    loaded = af.HammingIndex.load(path, mmap=mmap)
    code = np.zeros((1, 6), np.uint8)
    for changed in (index, loaded):
        changed.remove(changed.ids[3:9])
        changed.add(code, [int(changed.ids[0]) + 10_000])
        changed.add(code)
    _assert_same(loaded, index)
    assert path.read_bytes() == before
    loaded.save(path)
    _assert_same(af.HammingIndex.load(path), index)


def test_ids_go_on_after_loading(tmp_path):
    index = af.HammingIndex(8)
    index.add(np.zeros((3, 1), np.uint8))
    index.remove([2])
    index.save(tmp_path / "index")
    loaded = af.HammingIndex.load(tmp_path / "index")
    loaded.add(np.zeros((1, 1), np.uint8))
    assert loaded.ids.tolist() == [0, 1, 3]


def test_the_file_is_plain_safetensors(tmp_path):
    index = _index(bits=12)
    index.save(tmp_path / "index")
    with safe_open(tmp_path / "index", framework="np") as file:
        assert set(file.keys()) == {"codes", "ids"}
        assert np.array_equal(file.get_tensor("codes")[:, :2], index.codes)
        assert np.array_equal(file.get_tensor("ids"), index.ids)
        assert file.metadata()["bits"] == "12"


@pytest.mark.parametrize("bits", [1, 12, 45, 64, 300])
@pytest.mark.parametrize("rows", [0, 1, 700])
def test_codes_are_saved_without_an_index(tmp_path, monkeypatch, bits, rows):
    """In pieces, yet byte for byte what an index of them saves."""
    monkeypatch.setattr(index_file, "_CHUNK", 1024)
    index = af.HammingIndex(bits)
    index.add(np.packbits(np.random.default_rng(0).integers(0, 2, (rows, bits), dtype=np.uint8), axis=1))
    index.save(tmp_path / "index")
    index.to_npy(tmp_path / "codes.npy")
    packed = np.asarray(index.codes).copy()
    for codes in (np.load(tmp_path / "codes.npy", mmap_mode="r"), packed, torch.from_numpy(packed)):
        af.HammingIndex.save_codes(tmp_path / "codes", codes, bits)
        assert (tmp_path / "codes").read_bytes() == (tmp_path / "index").read_bytes()


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (np.zeros((3, 2), np.uint8), 8, "codes must have 1 bytes a row"),
        (np.zeros((3, 2), np.int16), 16, "codes must be uint8"),
        (np.zeros((3, 2), np.uint8), 0, "bits must be"),
        (8 * np.eye(3, 2, -1, np.uint8), 12, "codes: row 2 has bits set beyond the 12 bits"),
    ],
)
def test_codes_to_be_saved_are_checked(tmp_path, codes, bits, message):
    with pytest.raises(af.InputError, match=message):
        af.HammingIndex.save_codes(tmp_path / "never", codes, bits)
    assert not os.listdir(tmp_path)


def _assert_damaged(path):
    with pytest.raises(af.InputError) as error:
        af.HammingIndex.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_any_changed_byte_is_found(tmp_path):
    path = tmp_path / "index"
    _index(rows=9).save(path)
    content = path.read_bytes()
    for place in range(len(content)):
        for flip in (0xFF, 1 << place % 8):
            damaged = bytearray(content)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            _assert_damaged(path)
    path.write_bytes(content)
    _assert_same(af.HammingIndex.load(path), _index(rows=9))


@pytest.mark.parametrize("mmap", [True, False])
def test_any_other_length_is_found(tmp_path, mmap):
    path = tmp_path / "index"
    _index(rows=9).save(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(af.InputError, match=r"index' is damaged"):
            af.HammingIndex.load(path, mmap=mmap)
    for more in (b"\0", b"\0" * 8, b"\0" * 16, content):
        path.write_bytes(content + more)
        _assert_damaged(path)


def test_foreign_files(tmp_path):
    path = tmp_path / "index"
    _index(rows=20).save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(af.InputError, match="format version is '9'"):
        af.HammingIndex.load(path)
    path.write_bytes(content.replace(b"agmh_fast.HammingIndex", b"agmh_fast.SomethingNew"))
    with pytest.raises(af.InputError, match="not a file of"):
        af.HammingIndex.load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(af.InputError, match="no header of an index"):
        af.HammingIndex.load(path)
    for missing in (tmp_path / "missing", tmp_path, tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(af.InputError, match="no index file"):
            af.HammingIndex.load(missing)
    for nowhere in (None, 3, ["index"]):
        with pytest.raises(af.InputError, match="path must be"):
            af.HammingIndex.load(nowhere)


def _sealed(ids, rows, bits, next_id):
    """A file with the right checksum, whatever is in it."""
    empty = index_file._header(bits, len(ids), next_id, "0" * 64)
    body = np.asarray(ids, np.int64).tobytes() + np.asarray(rows, np.uint8).tobytes()
    return index_file._header(bits, len(ids), next_id, hashlib.sha256(empty + body).hexdigest()) + body


@pytest.mark.parametrize(
    ("ids", "rows", "next_id", "message"),
    [
        ([3, 3], [[0, 0], [0, 0]], 9, "ids must be 0 or more, each above the one before; entry 1"),
        ([4, 3], [[0, 0], [0, 0]], 9, "ids must be 0 or more, each above the one before; entry 1"),
        ([-1, 3], [[0, 0], [0, 0]], 9, "entry 0 is -1"),
        ([1, 3], [[0, 0], [0, 8]], 9, "row 1 has bits set beyond the 12 bits"),
        ([1, 3], [[0, 0], [0, 16]], 3, "next_id must be above every id"),
    ],
)
def test_files_of_other_writers_are_checked(tmp_path, ids, rows, next_id, message):
    """The checksum holds, the contents do not."""
    path = tmp_path / "index"
    path.write_bytes(_sealed(ids, rows, 12, next_id))
    with pytest.raises(af.InputError, match=message) as error:
        af.HammingIndex.load(path)
    assert str(path) in str(error.value)


def test_a_file_of_another_writer_is_read(tmp_path):
    path = tmp_path / "index"
    path.write_bytes(_sealed([1, 3], [[0, 0], [1, 16]], 12, 4))
    assert af.HammingIndex.load(path).codes.tolist() == [[0, 0], [1, 16]]


def test_an_unreadable_file_is_not_called_damaged(tmp_path, monkeypatch):
    _index().save(tmp_path / "index")

    def refuse(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(index_file.OpenFile, "map", refuse)
    with pytest.raises(af.InputError, match=r"cannot read .*: Permission denied"):
        af.HammingIndex.load(tmp_path / "index")


def test_a_file_replaced_while_it_is_opened(tmp_path, monkeypatch):
    """All that is read comes from the file that was opened first."""
    path = tmp_path / "index"
    first, second = _index(rows=20), _index(rows=30)
    first.save(path)
    map_file = index_file.OpenFile.map

    def replace_between(file):
        second.save(path)
        return map_file(file)

    monkeypatch.setattr(index_file.OpenFile, "map", replace_between)
    _assert_same(af.HammingIndex.load(path), first)
    monkeypatch.undo()
    _assert_same(af.HammingIndex.load(path), second)


def test_unwritable_places(tmp_path):
    index = _index()
    with pytest.raises(af.InputError, match="folder"):
        index.save(tmp_path / "missing" / "index")
    with pytest.raises(af.InputError, match="folder"):
        index.save(tmp_path)


@pytest.mark.parametrize("save", [af.HammingIndex.save, af.HammingIndex.to_npy])
def test_a_full_disk_leaves_the_old_file(tmp_path, save):
    resource = pytest.importorskip("resource")
    path = tmp_path / "index"
    save(_index(), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(af.InputError, match="cannot write"):
            save(_index(rows=400), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["index"]
