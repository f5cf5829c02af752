"""Mapped indexes: less memory than the file has bytes, copies on the first change, files that change underneath."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import agmh_fast as af
from agmh_fast.search import index_file

linux = pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="reads Linux's list of mappings")


def _index(rows=200):
    index = af.HammingIndex(48)
    index.add(np.random.default_rng(0).integers(0, 256, (rows, 6), dtype=np.uint8))
    return index


def _assert_same(first, second):
    assert np.array_equal(first.codes, second.codes)
    assert np.array_equal(first.ids, second.ids)


LIMITED = """
import resource, sys
import numpy as np
import agmh_fast as af

path = sys.argv[1]
queries = np.load(path + ".queries.npy")
warm = af.HammingIndex(64)
warm.add(queries)
af.set_num_threads(2)
warm.search(queries, 3)

def limit(data, addresses):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    for kind, field, room in ((resource.RLIMIT_DATA, "VmData", data), (resource.RLIMIT_AS, "VmSize", addresses)):
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (int(status[field].split()[0]) * 1024 + (room << 20), most))

# A mapping takes 64 MB of addresses, but no data.
limit(48, 64 + 48)

def searched(index):
    for found in (index.search(queries, 3), index.range_search(queries, 0)):
        assert np.isin(np.arange(8) * 500_000, found.ids).all()
    assert index.search(queries[:1], 1, mask=np.array([3_999_999])).ids.item() == 3_999_999

index = af.HammingIndex.load(path)
searched(index)
for change in (lambda: index.add(queries), lambda: index.remove([5]), lambda: af.HammingIndex.load(path, mmap=False)):
    try:
        change()
    except MemoryError:
        pass
    else:
        raise AssertionError("there was room for a copy: the limit limits nothing")
assert len(index) == 4_000_000
limit(48, 64 + 48)  # and another
index.save(path + ".again")
index.to_npy(path + ".npy")
searched(af.HammingIndex.load(path + ".again"))
af.HammingIndex.save_codes(path + ".again", np.load(path + ".npy", mmap_mode="r"), 64)
searched(af.HammingIndex.load(path + ".again"))
print("searched")
"""


@linux
def test_a_database_larger_than_memory_is_searched(tmp_path):
    """Memory for 48 MB, a file of 64: search works, whatever needs a copy fails and leaves the index as it was."""
    codes = np.random.default_rng(0).integers(0, 256, (4_000_000, 8), dtype=np.uint8)
    af.HammingIndex.save_codes(tmp_path / "index", codes, 64)
    np.save(tmp_path / "index.queries.npy", codes[::500_000])
    command = [sys.executable, "-c", LIMITED, tmp_path / "index"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "searched", run.stderr


def _mapping(path):
    """Linux's lines on the mapping of `path`, the addresses first, its flags last; none where it is not mapped."""
    with open("/proc/self/smaps") as maps:
        lines = maps.read().splitlines()
    start = next((number for number, line in enumerate(lines) if line.endswith(str(path))), len(lines))
    end = next((number for number, line in enumerate(lines) if number > start and line.startswith("VmFlags")), start)
    return lines[start : end + 1]


@linux
def test_codes_lie_in_the_file(tmp_path):
    path = tmp_path / "index"
    _index().save(path)
    loaded = af.HammingIndex.load(path)
    addresses, access, *_ = _mapping(path)[0].split()
    assert access == "r--s"
    start, end = (int(address, 16) for address in addresses.split("-"))
    for view in (loaded.codes, loaded.ids):
        assert start <= view.ctypes.data < end
        assert not view.flags.writeable


@linux
def test_a_change_goes_to_memory_and_lets_the_file_go(tmp_path):
    path = tmp_path / "index"
    index = _index()
    index.save(path)
    before = path.read_bytes()
    for change in (
        lambda index: index.add(np.zeros((1, 6), np.uint8)),
        lambda index: index.add(np.zeros((1, 6), np.uint8), [1000]),
        lambda index: index.remove([3]),
    ):
        loaded = af.HammingIndex.load(path)
        loaded.add(np.zeros((0, 6), np.uint8))
        loaded.remove([])
        assert _mapping(path)
        change(loaded)
        assert not _mapping(path)
        assert len(loaded) in (199, 201)
        assert path.read_bytes() == before


@linux
def test_a_file_saved_over_stays_readable(tmp_path):
    path = tmp_path / "index"
    index = _index()
    index.save(path)
    loaded = af.HammingIndex.load(path)
    _index(rows=7).save(path)
    _assert_same(loaded, index)
    loaded.save(path)
    _assert_same(af.HammingIndex.load(path), index)
    path.unlink()
    _assert_same(loaded, index)


USES = {
    "search": lambda index: index.search(np.zeros((1, 6), np.uint8), 1),
    "range_search": lambda index: index.range_search(np.zeros((1, 6), np.uint8), 1),
    "add": lambda index: index.add(np.zeros((1, 6), np.uint8)),
    "remove": lambda index: index.remove([3]),
    "codes": lambda index: index.codes,
    "ids": lambda index: index.ids,
    "save": lambda index: index.save("never written"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("how", ["truncated", "emptied", "written to"])
def test_a_file_changed_in_place_is_an_error(tmp_path, use, how):
    """Reading on would end the process with a bus error, or find what was never saved."""
    path = tmp_path / "index"
    _index().save(path)
    os.utime(path, ns=(0, 0))  # clocks of file systems may stand still for milliseconds
    loaded, changed = af.HammingIndex.load(path), af.HammingIndex.load(path)
    changed.add(np.zeros((1, 6), np.uint8))
    with path.open("rb+") as file:
        if how == "written to":
            file.write(b"x")
        else:
            file.truncate(0 if how == "emptied" else 100)
    with pytest.raises(af.InputError, match=r"index' was written to while it was mapped: load it again"):
        use(loaded)
    assert len(changed.search(np.zeros((1, 6), np.uint8), 3).ids) == 1  # which is in memory since its first change


@linux
def test_a_mapped_index_is_pickled_as_its_file(tmp_path, monkeypatch):
    """A DataLoader's workers that are started anew get the index this way, and share its memory."""
    path = tmp_path / "index"
    _index().save(path)
    monkeypatch.chdir(tmp_path)
    loaded = af.HammingIndex.load("index")
    pickled = pickle.dumps(loaded)
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    _assert_same(again, loaded)
    loaded.add(np.ones((1, 6), np.uint8))  # into memory: now it is pickled whole
    for other in (pickle.loads(pickle.dumps(loaded)), copy.deepcopy(loaded)):
        _assert_same(other, loaded)
        other.add(np.ones((1, 6), np.uint8))
        assert other.ids.tolist() == list(range(202))
        assert len(loaded) == 201
    _index(rows=3).save(path)
    with pytest.raises(af.InputError, match="not the file any more"):
        pickle.loads(pickled)


@linux
@pytest.mark.parametrize("fits", [True, False])
def test_read_ahead(tmp_path, monkeypatch, fits):
    """A file that memory cannot hold is read as a stream: pages behind the scan are let go first."""
    monkeypatch.setattr(index_file, "_fits_in_memory", lambda size: fits)
    path = tmp_path / "index"
    _index().save(path)
    loaded = af.HammingIndex.load(path)
    assert ("sr" in _mapping(path)[-1].split()) == (not fits)
    assert len(loaded) == 200


@linux
def test_memory_is_measured():
    with open("/proc/meminfo") as info:
        total = int(info.readline().split()[1]) * 1024
    assert index_file._fits_in_memory(total // 2)
    assert not index_file._fits_in_memory(total // 2 + 2**20)
