"""What callers hand to an index, as the NumPy arrays that the engine reads: checked, and read in place where it can."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agmh_fast.errors import InputError, first_line, require
from agmh_fast.ops.codes import check_layout, check_rows, padding_error

Array = Any
"""A NumPy array, a torch tensor, or anything with `__dlpack__` or the buffer protocol."""

_BYTE = np.dtype(np.uint8)


class HostArguments:
    """For an index in host memory: NumPy arrays, over the memory of whatever was given."""

    @staticmethod
    def codes(codes: Array, bits: int) -> np.ndarray:
        return packed_rows("codes", codes, bits)

    @staticmethod
    def queries(queries: Array, bits: int) -> np.ndarray:
        return packed_rows("queries", queries, bits)

    @staticmethod
    def ids(ids: Array) -> np.ndarray:
        return id_list("ids", ids)

    @staticmethod
    def allowed(mask: Array | None, queries: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        return allowed_items(mask, queries)

    @staticmethod
    def answer(queries: Array, parts: Iterable[np.ndarray]) -> Iterable[Array]:
        """Tensors for tensors, else the arrays."""
        return map(torch.from_numpy, parts) if isinstance(queries, Tensor) else parts


def packed_rows(name: str, codes: Array, bits: int) -> np.ndarray:
    """Codes (n, ceil(bits / 8)) uint8 whose rows have adjoining bytes; set padding bits are the engine's to find.

    Only rows whose bytes do not adjoin are copied.
    """
    width = (bits + 7) // 8
    # What nearly every call gives: a search of one query takes microseconds, so it waits for no other check.
    if type(codes) is np.ndarray and codes.dtype is _BYTE and codes.flags.c_contiguous:
        shape = codes.shape
        if len(shape) == 2 and shape[1] == width:
            return codes
    if isinstance(codes, Tensor):
        rows = tensor_array(name, check_layout(name, codes, bits))
    else:
        rows = _plain_array(name, codes)
        check_rows(name, str(rows.dtype), rows.shape, bits)
    return rows if rows.strides[1] == 1 or width == 1 else np.ascontiguousarray(rows)


def check_padding(name: str, rows: np.ndarray, bits: int) -> None:
    """Raise InputError for a row with bits set beyond `bits`; mapped rows are looked at some at a time."""
    padding, step = (1 << (-bits % 8)) - 1, 1 << 20
    for start in range(0, len(rows) if padding else 0, step):
        bad = np.flatnonzero(rows[start : start + step, -1] & padding)
        if bad.size:
            raise padding_error(name, start + int(bad[0]), bits)


def id_list(name: str, ids: Array) -> np.ndarray:
    """1-D contiguous int64."""
    array = any_array(name, ids)
    if array.size == 0 and not isinstance(ids, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no type of its own
    require(array.ndim == 1, f"{name} must be one-dimensional, got shape {array.shape}")
    require(array.dtype.kind in "iu", f"{name} must be whole numbers, got {array.dtype}")
    if array.dtype == np.uint64 and array.size:
        require(int(array.max()) < 2**63, f"{name} must be below 2**63, got {int(array.max())}")
    return np.ascontiguousarray(array, dtype=np.int64)


def allowed_items(mask: Array | None, queries: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(bool mask, None), (None, allowed ids) or (None, None)."""
    if mask is None:
        return None, None
    array = any_array("mask", mask)
    if array.dtype != np.bool_:
        # Bytes of 0 and 1 are nearly always a mask that lost its type; taken as ids they would allow items 0 and 1.
        require(array.dtype not in (np.uint8, np.int8), f"mask must be bool, or int64 ids; got {array.dtype}")
        return None, id_list("mask", array if array.size else mask)
    require(array.ndim in (1, 2), f"mask must be (N,) or (Q, N), got shape {array.shape}")
    if array.ndim == 2:
        fit = array.shape[0] == queries
        require(fit, f"mask must have one row for each of {queries} queries, got {array.shape[0]}")
    return np.ascontiguousarray(array), None


def check_mask_length(entries: int, count: int) -> None:
    """Raise InputError unless a boolean mask of so many entries is one for each of `count` items."""
    if entries != count:
        items = f"{count} item{'' if count == 1 else 's'}"
        raise InputError(f"mask must have one entry for each of the {items} of the index, got {entries}")


def any_array(name: str, values: Array) -> np.ndarray:
    """NumPy's view of an array, a tensor or a list."""
    if isinstance(values, Tensor):
        return tensor_array(name, values)
    if hasattr(type(values), "__dlpack__") and not isinstance(values, np.ndarray):
        return _plain_array(name, values)
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _unreadable(name, error) from error


def tensor_array(name: str, tensor: Tensor) -> np.ndarray:
    """The memory of a tensor."""
    if tensor.device.type != "cpu":
        raise InputError(f"{name} must be on the CPU, got a tensor on {tensor.device}; move it")
    try:
        return tensor.numpy() if not tensor.requires_grad else tensor.detach().numpy()
    except (TypeError, RuntimeError) as error:
        raise _unreadable(name, error) from error


def _plain_array(name: str, values: Array) -> np.ndarray:
    """The memory of an array, by DLPack or the buffer protocol; never a conversion of other objects."""
    if isinstance(values, np.ndarray):
        return values
    foreign = hasattr(type(values), "__dlpack__")
    try:
        return np.from_dlpack(values) if foreign else np.asarray(memoryview(values))
    except Exception as error:  # whatever the other library raises
        if foreign:
            raise _unreadable(name, error) from error
        kinds = "a NumPy array, a torch tensor, or an object with __dlpack__ or the buffer protocol"
        raise InputError(f"{name} must be {kinds}, got {type(values).__name__}") from error


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name} cannot be read as an array: {first_line(error)}")
