"""The folder of a sharded index: one file a shard, and a manifest that names them.

Shard files have new names at every save, and the manifest is written last: whoever reads it, or a crash at any instant,
finds the files of one save together. `manifest.json` holds format, version, bits, next_id and shards, each with file
and items, in the order of ranks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from agmh_fast.errors import InputError, require
from agmh_fast.files import as_path, atomic_write
from agmh_fast.ops.codes import MAX_BITS
from agmh_fast.search.index import HammingIndex
from agmh_fast.shares import share

FORMAT = "agmh_fast.ShardedHammingIndex"
VERSION = 1
MANIFEST = "manifest.json"
_SHARD = re.compile(r"shard-\d+-of-\d+-[0-9a-f]{16}\.safetensors")


class Shard(NamedTuple):
    """A shard's file name in the folder, and how many items it has."""

    file: str
    items: int


class Manifest(NamedTuple):
    """What a saved index is made of; next_id: the next id to give."""

    bits: int
    next_id: int
    shards: tuple[Shard, ...]


def shard_name(rank: int, ranks: int, save: int) -> str:
    """The file of a rank in the save of this number, 0..2⁶⁴ − 1."""
    return f"shard-{rank}-of-{ranks}-{save:016x}.safetensors"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the files of `manifest` the index in `folder`, and remove those of earlier saves."""
    shards = [shard._asdict() for shard in manifest.shards]
    values = {"format": FORMAT, "version": VERSION, **manifest._asdict(), "shards": shards}
    try:
        with atomic_write(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {str(folder / MANIFEST)!r}: {error.strerror or error}") from error
    named = {shard.file for shard in manifest.shards}
    for name in os.listdir(folder):
        if _SHARD.fullmatch(name) and name not in named:
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest in `folder`; raises InputError for a missing, foreign or damaged one."""
    path = as_path(folder) / MANIFEST
    require(path.is_file(), f"there is no sharded index in {os.fspath(folder)!r}: it has no {MANIFEST}")
    try:
        values = json.loads(path.read_text())
        form, version = values["format"], values["version"]
        bits, next_id = values["bits"], values["next_id"]
        shards = tuple(Shard(str(shard["file"]), shard["items"]) for shard in values["shards"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{str(path)!r} is damaged: it is not the manifest of a sharded index") from error
    require(form == FORMAT, f"{str(path)!r} is not the manifest of a sharded index")
    require(version == VERSION, f"{str(path)!r} has format version {version!r:.20}, this release reads {VERSION}")
    numbers = all(type(value) is int and value >= 0 for value in (bits, next_id, *(items for _, items in shards)))
    named = all(_SHARD.fullmatch(shard.file) for shard in shards)
    sound = numbers and named and 1 <= bits <= MAX_BITS and len(shards) > 0
    require(sound, f"{str(path)!r} is damaged: its values contradict each other")
    return Manifest(bits, next_id, shards)


def read_share(
    folder: str | os.PathLike[str],
    manifest: Manifest,
    rank: int,
    ranks: int,
    mmap: bool,
    device: str | torch.device,
    device_memory: int | None = None,
) -> HammingIndex:
    """A rank's shard: its own file where there are as many as ranks, else an even share of all items, in memory."""
    if len(manifest.shards) == ranks:
        return _open(folder, manifest, manifest.shards[rank], mmap, device, device_memory)
    whole = share(sum(shard.items for shard in manifest.shards), rank, ranks)
    codes, ids, offset = [], [], 0
    for shard in manifest.shards:
        own = slice(max(whole.start - offset, 0), max(min(whole.stop - offset, shard.items), 0))
        if own.start < own.stop:
            part = _open(folder, manifest, shard)
            codes.append(part.codes[own])
            ids.append(part.ids[own])
        offset += shard.items
    index = HammingIndex(manifest.bits)
    if codes:
        index.add(np.concatenate(codes), np.concatenate(ids))
    return index.to(device, device_memory)


def _open(
    folder: str | os.PathLike[str],
    manifest: Manifest,
    shard: Shard,
    mmap: bool = True,
    device: str | torch.device = "cpu",
    device_memory: int | None = None,
) -> HammingIndex:
    path = as_path(folder) / shard.file
    index = HammingIndex.load(path, mmap, device, device_memory)
    fits = (index.bits, len(index)) == (manifest.bits, shard.items)
    require(fits, f"{str(path)!r} is not the shard that the {MANIFEST} beside it describes")
    return index
