"""Writing files so that a reader sees the old one or the new one, never a half."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from agmh_fast.errors import InputError, require

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

# Bytes of a target's name that its temporary files carry: a name has 255 at most.
_STEM = 200


def as_path(path: str | bytes | os.PathLike[str]) -> Path:
    """`path` as a Path; raises InputError for what names no file."""
    try:
        return Path(os.fsdecode(path))
    except TypeError:
        raise InputError(f"path must be a str or an os.PathLike, got {type(path).__name__}") from None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed to `path`, else removed.

    The caller writes to that file and puts no other in its place: it is locked, which tells it from one left over. A
    process that is killed leaves its temporary file, `.name.` and 16 hexadecimal digits; the next write to the same
    path removes it. Raises InputError if the folder is missing or not writable.
    """
    target = as_path(path)
    require("\0" not in str(target), f"a path cannot hold a NUL character: {str(target)!r}")
    require(target.parent.is_dir(), f"there is no folder {str(target.parent)!r} to write {target.name!r} in")
    require(not target.is_dir(), f"cannot write {str(target)!r}: it is a folder")
    _remove_left_over(target)
    try:
        temporary, held = _create_locked(target)
    except OSError as error:
        raise InputError(f"cannot write in {str(target.parent)!r}: {error.strerror}") from error
    with held:
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
            _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _create_locked(target: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `target`, locked for as long as this process lives or holds it open."""
    while True:
        temporary = target.with_name(f"{_start_of(target)}{secrets.token_hex(8)}")
        file = temporary.open("xb")
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for left over either
                fcntl.flock(file, fcntl.LOCK_EX)
        # Before it was locked, another process may have taken it for left over.
        if os.fstat(file.fileno()).st_nlink > 0:
            return temporary, file
        file.close()


def _remove_left_over(target: Path) -> None:
    """Remove temporary files of `target` whose process is gone: they are locked no more."""
    if fcntl is None:
        return
    ours = re.compile(re.escape(_start_of(target)) + "[0-9a-f]{16}")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        found = [entry.path for entry in entries if ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)]
        for path in found:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)


def _start_of(target: Path) -> str:
    """What the names of a target's temporary files begin with; a character that is cut in two is kept by its bytes."""
    return f".{os.fsdecode(os.fsencode(target.name)[:_STEM])}."


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` (parents too) and prove that it can be written; raises InputError otherwise."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write in the output folder {str(folder)!r}: {error.strerror}") from error
    return folder


def size_text(count: float) -> str:
    """A number of bytes for a message: 512 bytes, 5.1 MB, 2.95 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # What would be rounded to 1000 of a unit is 1 of the next.
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
