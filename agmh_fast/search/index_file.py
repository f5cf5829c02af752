"""The file of an index: safetensors with `ids` (N,) int64, ascending, and `codes` (N, padded bytes) uint8.

Metadata: format, version, bits, count, next_id, checksum. The checksum is the SHA-256 of the whole file with its own 64
digits taken as zeros, so that a change of any byte shows. Rows are padded with zero bytes to 2, 4 or a multiple of 8,
as the engine reads them: a mapped file is searched in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from agmh_fast.errors import InputError, require
from agmh_fast.files import atomic_write
from agmh_fast.ops.codes import MAX_BITS

FORMAT = "agmh_fast.HammingIndex"
VERSION = 1
_NO_CHECKSUM = "0" * 64
_MAX_HEADER = 1 << 20


class Contents(NamedTuple):
    """What an index is made of: padded rows (N, bytes) uint8, ids (N,) int64, and the next id to give."""

    bits: int
    rows: np.ndarray
    ids: np.ndarray
    next_id: int


def write(path: str | os.PathLike[str], contents: Contents) -> None:
    """Write atomically: a reader, or a crash at any instant, finds the old file or the new one."""
    ids, rows = np.ascontiguousarray(contents.ids), np.ascontiguousarray(contents.rows)
    checksum = _digest(_header(contents, _NO_CHECKSUM), ids, rows)
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            for part in (_header(contents, checksum), _bytes(ids), _bytes(rows)):
                file.write(part)
    except OSError as error:
        raise InputError(f"cannot write {os.fspath(path)!r}: {error.strerror}; the file there is as it was") from error


def read(path: str | os.PathLike[str], mmap: bool) -> Contents:
    """Read and verify a file; with `mmap` the arrays are read-only views of the mapped file.

    Raises InputError for a missing, foreign, truncated or changed file.
    """
    path = Path(path)
    require(os.path.isfile(path), f"there is no index file {str(path)!r}")
    header, tensors, metadata = _open(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} is not a file of an agmh_fast.HammingIndex")
    if metadata.get("version") != str(VERSION):
        newer = f"its format version is {metadata.get('version')}, this release reads {VERSION}"
        raise InputError(f"{str(path)!r} cannot be read: {newer}")
    try:
        bits, count, next_id = (int(metadata[key]) for key in ("bits", "count", "next_id"))
        rows, ids = tensors["codes"], tensors["ids"]
        checksum = metadata["checksum"]
    except (KeyError, ValueError) as error:
        raise _corrupt(path, "its header is incomplete") from error
    fits = 1 <= bits <= MAX_BITS and rows.dtype == torch.uint8 and ids.dtype == torch.int64
    if not fits or rows.shape != (count, padded_bytes(bits)) or ids.shape != (count,):
        raise _corrupt(path, "its tensors do not fit its header")
    if not mmap:
        rows, ids = rows.clone(), ids.clone()
    blank = header.replace(checksum.encode(), _NO_CHECKSUM.encode())
    if len(checksum) != len(_NO_CHECKSUM) or _digest(blank, ids.numpy(), rows.numpy()) != checksum:
        raise _corrupt(path, "its checksum does not match")
    return Contents(bits, rows.numpy(), ids.numpy(), next_id)


def padded_bytes(bits: int) -> int:
    """Bytes of a stored row: the engine's 2, 4 or a multiple of 8."""
    width = (bits + 7) // 8
    return 2 if width <= 2 else 4 if width <= 4 else -(-width // 8) * 8


def _open(path: Path) -> tuple[bytes, dict[str, torch.Tensor], dict[str, str]]:
    """The raw header, the mapped tensors and the metadata, all of one file even while another replaces it."""
    while True:
        before = _version(path)
        try:
            header = _raw_header(path)
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except OSError as error:
            raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
        except (SafetensorError, RuntimeError, ValueError) as error:
            # It is opened more than once: what looks damaged may be parts of two files.
            if _version(path) == before:
                raise _corrupt(path, "it is not a whole safetensors file") from error
        else:
            if _version(path) == before:
                return header, tensors, metadata


def _version(path: Path) -> tuple[int, int]:
    """What tells a file from the one that replaces it."""
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns


def _raw_header(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) != 8:
            raise ValueError("no header")
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER:
            raise ValueError("header too long")
        return start + file.read(length)


def _header(contents: Contents, checksum: str) -> bytes:
    """The safetensors header, padded with spaces so that the tensors behind it are aligned to 64 bytes."""
    count, width = contents.rows.shape
    split = 8 * count
    described = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "bits": str(contents.bits),
            "count": str(count),
            "next_id": str(contents.next_id),
            "checksum": checksum,
        },
        "ids": {"dtype": "I64", "shape": [count], "data_offsets": [0, split]},
        "codes": {"dtype": "U8", "shape": [count, width], "data_offsets": [split, split + count * width]},
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text


def _digest(header: bytes, ids: np.ndarray, rows: np.ndarray) -> str:
    digest = hashlib.sha256(header)
    digest.update(_bytes(ids))
    digest.update(_bytes(rows))
    return digest.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _corrupt(path: Path, why: str) -> InputError:
    return InputError(f"{str(path)!r} is damaged: {why}; save the index again or restore a copy")
