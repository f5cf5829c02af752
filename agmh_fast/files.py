"""Writing files so that a reader sees the old one or the new one, never a half."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agmh_fast.errors import InputError, require


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed to `path`, else removed.

    Raises InputError if the folder is missing or not writable.
    """
    target = Path(path)
    require("\0" not in str(target), f"a path cannot hold a NUL character: {str(target)!r}")
    require(target.parent.is_dir(), f"there is no folder {str(target.parent)!r} to write {target.name!r} in")
    require(not target.is_dir(), f"cannot write {str(target)!r}: it is a folder")
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise InputError(f"cannot write in {str(target.parent)!r}: {error.strerror}") from error
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
