"""Saved indexes: exact round trips, mapping, every kind of damage found, and a kill at any instant survived."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

import agmh_fast as af
from agmh_fast.search import index_file


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


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="reads Linux's list of mappings")
def test_mapping_shares_the_file(tmp_path):
    index = _index()
    index.save(tmp_path / "index")
    loaded = af.HammingIndex.load(tmp_path / "index")

    def mapped():
        with open("/proc/self/maps") as maps:
            return str(tmp_path / "index") in maps.read()

    assert mapped()
    index.save(tmp_path / "index")
    _assert_same(loaded, index)
    loaded.remove(loaded.ids[:1])
    assert not mapped()


def test_any_changed_byte_is_found(tmp_path):
    path = tmp_path / "index"
    _index(rows=20).save(path)
    content = path.read_bytes()
    places = {*range(0, len(content), max(1, len(content) // 60)), *range(12), len(content) - 1}
    for place in sorted(places):
        for flip in (0xFF, 0x01, 0x20):
            damaged = bytearray(content)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(af.InputError):
                af.HammingIndex.load(path)


def test_truncated_and_foreign_files(tmp_path):
    path = tmp_path / "index"
    _index(rows=20).save(path)
    content = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(af.InputError, match="damaged"):
            af.HammingIndex.load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(af.InputError, match="damaged"):
        af.HammingIndex.load(path)
    path.write_bytes(content.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(af.InputError, match="format version is 9"):
        af.HammingIndex.load(path)
    path.write_bytes(content.replace(b"agmh_fast.HammingIndex", b"agmh_fast.SomethingNew"))
    with pytest.raises(af.InputError, match="not a file of"):
        af.HammingIndex.load(path)
    with pytest.raises(af.InputError, match="no index file"):
        af.HammingIndex.load(tmp_path / "missing")
    with pytest.raises(af.InputError, match="no index file"):
        af.HammingIndex.load(tmp_path)
    with pytest.raises(af.InputError, match="no index file"):
        af.HammingIndex.load(tmp_path / ("x" * 300))


def test_an_unreadable_file_is_not_called_damaged(tmp_path, monkeypatch):
    _index().save(tmp_path / "index")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(index_file, "_raw_header", refuse)
    with pytest.raises(af.InputError, match=r"cannot read .*: Permission denied"):
        af.HammingIndex.load(tmp_path / "index")


def test_a_file_replaced_while_it_is_opened(tmp_path, monkeypatch):
    """The header may then be of one file and the tensors of another, which looks like damage."""
    path = tmp_path / "index"
    first, second = _index(rows=20), _index(rows=30)
    first.save(path)

    def replace_between(*args, **kwargs):
        monkeypatch.undo()
        second.save(path)
        raise SafetensorError("InvalidHeader")

    monkeypatch.setattr(index_file, "safe_open", replace_between)
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


KILLER = """
import os, random, signal, sys, time
import numpy as np
import agmh_fast as af

path = sys.argv[1]
rng = np.random.default_rng(0)
indexes = {}
for rows in (3000, 5000):
    indexes[rows] = af.HammingIndex(64)
    indexes[rows].add(rng.integers(0, 256, (rows, 8), dtype=np.uint8))
indexes[3000].save(path)
for _ in range(15):
    ready, child_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(child_ready, b".")
        while True:
            for index in indexes.values():
                index.save(path)
    os.read(ready, 1)
    time.sleep(random.Random(child).uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = af.HammingIndex.load(path)
    assert np.array_equal(loaded.codes, indexes[len(loaded)].codes)
    os.close(ready), os.close(child_ready)
print("survived")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_instant_while_saving(tmp_path):
    """Fifteen processes that save without pause are killed; each time the file is whole, the old one or the new one."""
    run = subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path / "index"], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.strip() == "survived", run.stderr
