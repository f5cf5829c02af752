"""The file of an index: safetensors with `ids` (N,) int64, ascending, and `codes` (N, padded bytes) uint8.

Metadata: format, version, bits, count, next_id, checksum. The checksum is the SHA-256 of the whole file with its own 64
digits taken as zeros, so that a change of any byte shows. Rows are padded with zero bytes to 2, 4 or a multiple of 8,
as the engine reads them: a mapped file is searched in place. The header has one form only, the one written here.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from agmh_fast.errors import InputError, require
from agmh_fast.files import as_path, atomic_write
from agmh_fast.ops.codes import MAX_BITS

FORMAT = "agmh_fast.HammingIndex"
VERSION = 1
_NO_CHECKSUM = "0" * 64
_MAX_HEADER = 1 << 20
# Bytes that are read and written at a time: between two of them an interrupt is heard.
_CHUNK = 1 << 22


class Contents(NamedTuple):
    """What an index is made of: padded rows (N, bytes) uint8, ids (N,) int64, and the next id to give."""

    bits: int
    rows: np.ndarray
    ids: np.ndarray
    next_id: int


class Rows(Protocol):
    """What can be read a slice at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class OpenFile:
    """An index file held open while it is mapped: a file that is renamed over its path takes nothing from it."""

    def __init__(self, path: Path) -> None:
        self.path = os.path.abspath(path)
        self._file = path.open("rb", buffering=0)
        self.version = self._present_version()

    def map(self) -> mmap.mmap | bytes:
        """The whole file, read where it lies."""
        size = self.version[0]
        if size == 0:
            return b""  # which cannot be mapped
        data = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        _advise(data, "MADV_SEQUENTIAL")
        return data

    def read(self) -> bytes:
        """The whole file, in memory."""
        with self._file:
            return self._file.read()

    def check(self) -> None:
        """Raise InputError where the file was cut or written to in place since it was opened."""
        try:
            same = self._present_version() == self.version
        except OSError as error:
            raise InputError(f"cannot read {self.path!r} any more: {error.strerror}") from error
        if not same:
            raise InputError(f"{self.path!r} was written to while it was mapped: load it again")

    def _present_version(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


def write(path: str | os.PathLike[str], bits: int, rows: Rows, ids: Rows | range, next_id: int) -> None:
    """Write atomically: a reader, or a crash at any instant, finds the old file or the new one.

    rows (N, bytes) uint8, packed or padded, and ids (N,) pass by in pieces: they may be mapped, and larger than memory.
    """

    def parts(checksum: str) -> Iterator[bytes | memoryview]:
        yield _header(bits, len(rows), next_id, checksum)
        yield from _id_pieces(ids)
        yield from _row_pieces(rows, padded_bytes(bits))

    checksum = _digest(parts(_NO_CHECKSUM))
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            for part in parts(checksum):
                file.write(part)
    except OSError as error:
        name = os.fspath(path)
        raise InputError(f"cannot write {name!r}: {error.strerror or error}; the file there is as it was") from error


def read(path: str | os.PathLike[str], mmap: bool) -> tuple[Contents, OpenFile | None]:
    """Read and verify a file; with `mmap` the arrays are views of the mapped file, which is returned beside them.

    Raises InputError for a missing, foreign, truncated or changed file.
    """
    path = as_path(path)
    require(os.path.isfile(path), f"there is no index file {str(path)!r}")
    try:
        file = OpenFile(path)
        data = file.map() if mmap else file.read()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    contents = _parse(path, data)
    if not mmap:
        return contents, None
    file.check()
    if _fits_in_memory(len(data)):
        _advise(data, "MADV_NORMAL")
    return contents, file


def padded_bytes(bits: int) -> int:
    """Bytes of a stored row: the engine's 2, 4 or a multiple of 8."""
    width = (bits + 7) // 8
    return 2 if width <= 2 else 4 if width <= 4 else -(-width // 8) * 8


def _advise(data: mmap.mmap | bytes, advice: str) -> None:
    """Tell the system how a mapped file is read, where it can be told.

    Sequentially: it reads far ahead and lets go early of what was read. Every pass reads the whole file in order, so
    for one that memory cannot hold that is right; one that fits should rather stay.
    """
    if isinstance(data, mmap.mmap) and hasattr(mmap, advice):
        data.madvise(getattr(mmap, advice))


def _fits_in_memory(size: int) -> bool:
    """Whether a file of this size leaves half of the memory to others."""
    return 2 * size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else True


def _parse(path: Path, data: mmap.mmap | bytes) -> Contents:
    """Contents over `data`, a whole file, once everything in it is found right."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= min(_MAX_HEADER, len(data) - 8):
        raise _damaged(path, "it is not a whole safetensors file")
    head = 8 + length
    try:
        metadata = json.loads(data[8:head])["__metadata__"]
        form, version = metadata.get("format"), metadata.get("version")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "it has no header of an index") from error
    require(form == FORMAT, f"{str(path)!r} is not a file of an agmh_fast.HammingIndex")
    if version != str(VERSION):
        newer = f"its format version is {version!r:.20}, this release reads {VERSION}"
        raise InputError(f"{str(path)!r} cannot be read: {newer}")
    try:
        bits, count, next_id = (int(metadata[key]) for key in ("bits", "count", "next_id"))
        checksum = metadata["checksum"]
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(path, "its header is incomplete") from error
    known = 1 <= bits <= MAX_BITS and count >= 0 and 0 <= next_id < 2**63
    if not known or data[:head] != _header(bits, count, next_id, checksum):
        raise _damaged(path, "its header contradicts itself")
    split, width = head + 8 * count, padded_bytes(bits)
    if len(data) != split + count * width:
        raise _damaged(path, f"it has {len(data)} bytes, its header describes {split + count * width}")
    blank = _header(bits, count, next_id, _NO_CHECKSUM)
    if _digest([blank, *_pieces(memoryview(data)[head:])]) != checksum:
        raise _damaged(path, "its checksum does not match")
    ids = np.frombuffer(data, np.int64, count, head)
    return Contents(bits, np.frombuffer(data, np.uint8, count * width, split).reshape(count, width), ids, next_id)


def _header(bits: int, count: int, next_id: int, checksum: str) -> bytes:
    """The safetensors header, padded with spaces so that the tensors behind it are aligned to 64 bytes."""
    split, width = 8 * count, padded_bytes(bits)
    described = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "bits": str(bits),
            "count": str(count),
            "next_id": str(next_id),
            "checksum": checksum,
        },
        "ids": {"dtype": "I64", "shape": [count], "data_offsets": [0, split]},
        "codes": {"dtype": "U8", "shape": [count, width], "data_offsets": [split, split + count * width]},
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _pieces(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), _CHUNK):
        yield data[start : start + _CHUNK]


def _id_pieces(ids: Rows | range) -> Iterator[memoryview]:
    for start in range(0, len(ids), _CHUNK // 8):
        piece = ids[start : start + _CHUNK // 8]
        piece = np.arange(piece.start, piece.stop, dtype=np.int64) if isinstance(piece, range) else piece
        yield _bytes(np.ascontiguousarray(piece, np.int64))


def _row_pieces(rows: Rows, width: int) -> Iterator[memoryview]:
    """Rows as they lie in the file; those that lie so already are not copied."""
    for start in range(0, len(rows), _CHUNK // width):
        piece = rows[start : start + _CHUNK // width]
        if piece.shape[1] < width:
            piece = np.pad(piece, ((0, 0), (0, width - piece.shape[1])))
        yield _bytes(np.ascontiguousarray(piece))


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{str(path)!r} is damaged: {why}; save the index again or restore a copy")
