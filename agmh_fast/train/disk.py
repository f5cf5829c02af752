"""Running out of disk: found before a run begins where it can be, else one clear line, after which the run resumes."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from agmh_fast.errors import InputError, require
from agmh_fast.files import atomic_write, size_text


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Context in which a write that fails, as on a full disk, is an InputError."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}; make room and go on from there"
        raise InputError(f"output: cannot write in {str(folder)!r}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_room(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raise InputError unless `folder` has room for files of these names and sizes in bytes.

    A file that is there is replaced by one written beside it: room for the largest is needed once more.
    """
    needed = max(sizes.values()) + sum(size for name, size in sizes.items() if not (folder / name).exists())
    free = shutil.disk_usage(folder).free
    require(
        free >= needed,
        f"output: {str(folder)!r} has {size_text(free)} free, a run of this size needs {size_text(needed)}",
    )
