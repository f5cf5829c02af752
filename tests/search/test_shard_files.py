"""The folder of a sharded index: read by any number of ranks, whole or an error that names the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import agmh_fast as af
from agmh_fast.search.shard_files import (
    MANIFEST,
    Manifest,
    Shard,
    read_manifest,
    read_share,
    shard_name,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards of 3, 0 and 4 items, ids out of order, and what earlier and killed saves left."""
    rng, free = np.random.default_rng(0), iter(np.random.default_rng(1).permutation(20))
    shards = []
    for rank, items in enumerate((3, 0, 4)):
        index = af.HammingIndex(20)
        codes = np.packbits(rng.integers(0, 2, (items, 20), dtype=np.uint8), axis=1)
        index.add(codes, [int(next(free)) for _ in range(items)])
        shards.append(Shard(shard_name(rank, 3, 5), items))
        index.save(tmp_path / shards[-1].file)
    for left in (shard_name(0, 2, 4), shard_name(7, 9, 2**62)):
        (tmp_path / left).write_bytes(b"old")
    (tmp_path / "notes.txt").touch()
    write_manifest(tmp_path, Manifest(20, 99, tuple(shards)))
    return tmp_path


def test_a_save_removes_what_earlier_ones_left_and_nothing_else(folder):
    names = {shard_name(rank, 3, 5) for rank in range(3)}
    assert {path.name for path in folder.iterdir()} == {*names, MANIFEST, "notes.txt"}


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 9])
def test_shares_are_all_items_once(folder, ranks):
    manifest = read_manifest(folder)
    assert (manifest.bits, manifest.next_id) == (20, 99)
    shares = [read_share(folder, manifest, rank, ranks, True, "cpu") for rank in range(ranks)]
    saved = [af.HammingIndex.load(folder / shard.file) for shard in manifest.shards]
    found, expected = (
        {int(key): code.tobytes() for index in indexes for key, code in zip(index.ids, index.codes, strict=True)}
        for indexes in (shares, saved)
    )
    assert found == expected
    assert sum(map(len, shares)) == 7
    if ranks != 3:
        assert {len(share) for share in shares} <= {7 // ranks, 7 // ranks + 1}


DAMAGE = {
    "not JSON": lambda values: None,
    "no format": lambda values: values.pop("format"),
    "no shards": lambda values: values.update(shards=[]),
    "a path out of the folder": lambda values: values["shards"][0].update(file="../" + values["shards"][0]["file"]),
    "items of the wrong kind": lambda values: values["shards"][0].update(items="3"),
    "too few items": lambda values: values["shards"][0].update(items=-1),
    "more bits than there are": lambda values: values.update(bits=4097),
    "next_id below 0": lambda values: values.update(next_id=-1),
    "shards no list": lambda values: values.update(shards=3),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest_is_named(folder, damage):
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    DAMAGE[damage](values)
    path.write_text("{" if damage == "not JSON" else json.dumps(values))
    with pytest.raises(af.InputError, match=r"manifest.json' is damaged") as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


def test_foreign_and_newer_manifests_and_none_at_all(folder):
    path = folder / MANIFEST
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "format": "something"}))
    with pytest.raises(af.InputError, match="is not the manifest of a sharded index"):
        read_manifest(folder)
    path.write_text(json.dumps({**values, "version": 2}))
    with pytest.raises(af.InputError, match="has format version 2, this release reads 1"):
        read_manifest(folder)
    path.unlink()
    with pytest.raises(af.InputError, match=r"there is no sharded index in .*: it has no manifest.json"):
        read_manifest(folder)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_missing_damaged_or_swapped_shard_is_named(folder, ranks):
    manifest = read_manifest(folder)
    file = folder / manifest.shards[0].file
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(af.InputError, match=rf"{file.name}' is damaged"):
        read_share(folder, manifest, 0, ranks, True, "cpu")
    shutil.copy(folder / manifest.shards[2].file, file)
    with pytest.raises(
        af.InputError, match=rf"{file.name}' is not the shard that the manifest.json beside it describes"
    ):
        read_share(folder, manifest, 0, ranks, True, "cpu")
    file.unlink()
    with pytest.raises(af.InputError, match=rf"there is no index file '.*{file.name}'"):
        read_share(folder, manifest, 0, ranks, True, "cpu")


def test_no_process_group_is_a_line_that_says_so():
    for make in (lambda: af.ShardedHammingIndex(8), lambda: af.ShardedHammingIndex.load("nowhere")):
        with pytest.raises(af.InputError, match=r"torch.distributed is not initialised: call init_process_group first"):
            make()
