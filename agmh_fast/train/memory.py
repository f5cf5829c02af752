"""What the C library does with the memory of freed tensors: for as long as a run lasts, keep it.

glibc gives every freed block of 32 MB and more back to the system, which hands out zeroed pages for the next one: a
step of ResNet-50 on 32 images takes a million pages anew.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# mallopt(3). Memory above the limits is what glibc would itself have come to after freeing one block of 32 MB.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _MMAP_MAX: 65536}
_KEPT = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}

_lock = threading.Lock()
_users = 0


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """While it lasts, freed memory of this process stays with it, for the next tensor to take; at the end what is free
    goes back to the system.

    It may be entered again within itself and by several threads. Nothing is done for a `device` that is no CPU, where
    the C library is not glibc, and where the environment says how its memory is managed (MALLOC_…, GLIBC_TUNABLES).
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    _count(libc, 1)
    try:
        yield
    finally:
        _count(libc, -1)


def _count(libc: ctypes.CDLL, change: int) -> None:
    global _users
    with _lock:
        before, _users = _users, _users + change
        if not before or not _users:
            for parameter, value in (_KEPT if _users else _USUAL).items():
                libc.mallopt(parameter, value)
        if not _users:
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """glibc, if it is what this process allocates from in the way that is usual."""
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return None
    if os.name != "posix":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
