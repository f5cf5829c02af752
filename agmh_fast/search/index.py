"""An index of binary codes: exact neighbours by Hamming distance, in one defined order.

Results are the smallest by (distance, id), ascending: the same for any number of threads, any order of adding, any k
(the 10 nearest are the first of the 1000 nearest).
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agmh_fast._version import __version__
from agmh_fast.errors import InputError, require, require_int
from agmh_fast.files import atomic_write
from agmh_fast.ops.arrays import array_to_tensor
from agmh_fast.ops.codes import check_bits, check_layout
from agmh_fast.ops.threads import get_num_threads
from agmh_fast.search import index_file

Array = Any
"""A NumPy array or a torch tensor."""

_MAX_K = 2**31 - 1


class SearchResult(NamedTuple):
    """distances (Q, k) int32 and ids (Q, k) int64, ascending; where fewer than k items exist, 2³¹ − 1 and −1."""

    distances: Array
    ids: Array


class RangeResult(NamedTuple):
    """Query i has entries lims[i] to lims[i + 1] of distances (T,) int32 and ids (T,) int64; lims (Q + 1,) int64."""

    lims: Array
    distances: Array
    ids: Array


class HammingIndex:
    """Codes of `bits` bits (1 to 4096) with int64 ids, searched exactly.

    Codes are packed uint8 rows (N, ceil(bits / 8)) as `agmh_fast.pack_codes` and `numpy.packbits` give them: NumPy
    arrays or torch tensors, contiguous or not, read-only or mapped. Results are of the queries' kind, NumPy or torch.
    Several threads may search at once; add and remove wait for running searches. Raises InputError for bad arguments;
    the index is then as it was.
    """

    def __init__(self, bits: int, device: str | torch.device = "cpu") -> None:
        self._bits = check_bits(bits)
        self._device = _check_device(device)
        self._engine = _load_engine().Index(self._bits)

    def __len__(self) -> int:
        return len(self._engine)

    def __repr__(self) -> str:
        return f"HammingIndex(bits={self.bits}, device={str(self.device)!r}, items={len(self)})"

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self._bits

    @property
    def device(self) -> torch.device:
        """Where the codes lie and searches run."""
        return self._device

    @property
    def ids(self) -> np.ndarray:
        """(N,) int64, ascending: a read-only view of this moment; later changes of the index do not reach it."""
        return self._contents().ids

    @property
    def codes(self) -> np.ndarray:
        """(N, ceil(bits / 8)) uint8 in the order of `ids`: a read-only view of this moment."""
        return self._contents().rows[:, : (self.bits + 7) // 8]

    def add(self, codes: Array, ids: Array | None = None) -> None:
        """Add codes (n, ceil(bits / 8)) with `ids`: n whole numbers >= 0, unique, none of them in the index.

        Without ids they count on from the largest ever used, from 0 in a new index.
        """
        rows = self._rows("codes", codes)
        numbers = None if ids is None else _ids("ids", ids)
        if numbers is not None:
            fit = len(numbers) == len(rows)
            require(fit, f"ids must have one entry for each of {len(rows)} codes, got {len(numbers)}")
        self._engine.add(rows, numbers)

    def remove(self, ids: Array) -> None:
        """Remove the items with these ids, each in the index and given once; the others keep theirs."""
        self._engine.remove(_ids("ids", ids))

    def search(
        self, queries: Array, k: int, mask: Array | None = None, max_distance: int | None = None
    ) -> SearchResult:
        """The k nearest items of each query by (distance, id).

        queries: (Q, ceil(bits / 8)) packed uint8. k >= 1, may exceed the number of items. mask: what may be found,
        either bool, (N,) for all queries or (Q, N) one row a query, entries in the order of `ids`; or a 1-D integer
        array of allowed ids, where ids that the index does not hold are ignored. max_distance: items farther away are
        left out.
        """
        rows = self._rows("queries", queries)
        k = require_int("k", k, 1, max(_MAX_K, len(self)))
        limit = self.bits if max_distance is None else min(require_int("max_distance", max_distance, 0), self.bits)
        allowed, allowed_ids = _mask(mask, len(rows))
        found = self._engine.search(rows, k, limit, allowed, allowed_ids, get_num_threads())
        return SearchResult(*_like(queries, found))

    def range_search(self, queries: Array, radius: int, mask: Array | None = None) -> RangeResult:
        """All items within `radius` (inclusive) of each query, by (distance, id); other arguments as `search`."""
        rows = self._rows("queries", queries)
        radius = min(require_int("radius", radius, 0), self.bits)
        allowed, allowed_ids = _mask(mask, len(rows))
        found = self._engine.range_search(rows, radius, allowed, allowed_ids, get_num_threads())
        return RangeResult(*_like(queries, found))

    def to(self, device: str | torch.device) -> HammingIndex:
        """The index on `device`: itself if it is there already."""
        _check_device(device)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one safetensors file; a reader, or a crash, finds the old file or the new one, whole."""
        index_file.write(path, self._contents())

    @classmethod
    def load(cls, path: str | os.PathLike[str], mmap: bool = True, device: str | torch.device = "cpu") -> HammingIndex:
        """Open a saved index, after a check of its checksum.

        mmap: search the file where it lies, sharing memory with other processes; the first add or remove copies it into
        memory. The file must not be written to in place meanwhile; saving over it is safe. Raises InputError for a
        damaged or foreign file.
        """
        device = _check_device(device)
        engine = _load_engine()
        contents = index_file.read(path, mmap)
        index = cls.__new__(cls)
        index._bits, index._device = contents.bits, device
        index._engine = engine.Index.map(*contents)
        return index

    @classmethod
    def from_faiss(cls, index: Any, device: str | torch.device = "cpu") -> HammingIndex:
        """The codes of a `faiss.IndexBinaryFlat`, with the positions there as ids."""
        faiss = _load_faiss()
        flat = isinstance(index, faiss.IndexBinaryFlat)
        require(flat, f"index must be a faiss.IndexBinaryFlat, got {type(index).__name__}")
        result = cls(index.d, device)
        result.add(faiss.vector_to_array(index.xb).reshape(index.ntotal, index.code_size))
        return result

    def to_faiss(self) -> Any:
        """A `faiss.IndexBinaryFlat` of the codes in the order of `ids`: its results are positions in `ids`.

        faiss knows only whole bytes: other widths get its next one, whose extra bits are 0 and change no distance.
        """
        faiss = _load_faiss()
        codes = np.ascontiguousarray(self.codes)
        index = faiss.IndexBinaryFlat(8 * codes.shape[1])
        index.add(codes)
        return index

    @classmethod
    def from_npy(cls, path: str | os.PathLike[str], bits: int, device: str | torch.device = "cpu") -> HammingIndex:
        """The codes of a plain `.npy` file, (N, ceil(bits / 8)) uint8, with row numbers as ids."""
        try:
            codes = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"cannot read {os.fspath(path)!r} as a .npy file: {error}") from error
        index = cls(bits, device)
        index.add(codes)
        return index

    def to_npy(self, path: str | os.PathLike[str]) -> None:
        """Write the codes, in the order of `ids`, to a plain `.npy` file."""
        codes = np.ascontiguousarray(self.codes)
        try:
            # Not numpy.save: it leaves its last write unchecked, and a full disk took the end of the codes in silence.
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(codes))
                file.write(codes.data)
        except OSError as error:
            raise InputError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error

    def _contents(self) -> index_file.Contents:
        rows, ids, next_id = self._engine.snapshot()
        return index_file.Contents(self.bits, rows, ids, next_id)

    def _rows(self, name: str, codes: Array) -> np.ndarray:
        """Codes as a NumPy array with adjoining bytes; set padding bits are the engine's to find."""
        rows = check_layout(name, array_to_tensor(name, codes) if isinstance(codes, np.ndarray) else codes, self.bits)
        here = rows.device == self.device
        require(here, f"{name} are on {rows.device}, the index on {self.device}: move one of them")
        return (rows if rows.stride(1) == 1 else rows.contiguous()).numpy()


def _check_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device must be 'cpu', got {device!r}") from error
    if checked.type == "cuda":
        require(torch.cuda.is_available(), f"device={str(device)!r}: there is no CUDA device; use device='cpu'")
        raise InputError(f"device={str(device)!r}: agmh_fast {__version__} has no search on GPUs yet; use device='cpu'")
    require(checked.type == "cpu", f"device must be 'cpu', got {str(device)!r}")
    return torch.device("cpu")  # 'cpu:0' is the same place, but compares unequal


def _ids(name: str, ids: Array) -> np.ndarray:
    """1-D contiguous int64."""
    array = _as_array(name, ids)
    if array.size == 0 and not isinstance(ids, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no type of its own
    require(array.ndim == 1, f"{name} must be one-dimensional, got shape {array.shape}")
    require(array.dtype.kind in "iu", f"{name} must be whole numbers, got {array.dtype}")
    if array.dtype == np.uint64 and array.size:
        require(int(array.max()) < 2**63, f"{name} must be below 2**63, got {int(array.max())}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _as_array(name: str, values: Array) -> np.ndarray:
    """NumPy's view of an array, a tensor or a list."""
    if isinstance(values, Tensor):
        require(values.device.type == "cpu", f"{name} must be on the CPU, got a tensor on {values.device}; move it")
        values = values.detach()
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} cannot be read as an array: {str(error).splitlines()[0]}") from error


def _mask(mask: Array | None, queries: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(bool mask, None), (None, allowed ids) or (None, None)."""
    if mask is None:
        return None, None
    array = _as_array("mask", mask)
    if array.dtype != np.bool_:
        # Bytes of 0 and 1 are nearly always a mask that lost its type; taken as ids they would allow items 0 and 1.
        require(array.dtype not in (np.uint8, np.int8), f"mask must be bool, or int64 ids; got {array.dtype}")
        return None, _ids("mask", mask)
    require(array.ndim in (1, 2), f"mask must be (N,) or (Q, N), got shape {array.shape}")
    if array.ndim == 2:
        fit = array.shape[0] == queries
        require(fit, f"mask must have one row for each of {queries} queries, got {array.shape[0]}")
    return np.ascontiguousarray(array), None


def _like(queries: Array, results: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
    """The results as tensors where the queries are one."""
    return tuple(torch.from_numpy(result) for result in results) if isinstance(queries, Tensor) else results


def _load_engine() -> ModuleType:
    try:
        return importlib.import_module("agmh_fast._engine")
    except ImportError as error:
        how = "build it with: pip install --no-build-isolation -e . (needs a C++20 compiler)"
        raise InputError(f"HammingIndex needs the compiled module agmh_fast._engine ({error}); {how}") from error


def _load_faiss() -> ModuleType:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise InputError("faiss is not installed: pip install faiss-cpu") from error
