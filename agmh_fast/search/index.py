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

from agmh_fast.errors import InputError, require, require_int
from agmh_fast.files import as_path, atomic_write
from agmh_fast.ops.codes import check_bits
from agmh_fast.ops.hamming import MAX_K
from agmh_fast.ops.threads import get_num_threads
from agmh_fast.search import index_file
from agmh_fast.search.arguments import Array, HostArguments, check_padding, packed_rows
from agmh_fast.search.devices import check_device, free_bytes
from agmh_fast.search.id_lists import find_ids
from agmh_fast.search.streamed_engine import StreamedEngine
from agmh_fast.search.tensor_engine import HostPieces, Moment, TensorEngine, row_bytes

# Rows that are copied at a time on their way to a .npy file.
_ROWS = 1 << 16


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

    Codes are packed uint8 rows (N, ceil(bits / 8)) as `agmh_fast.pack_codes`, `numpy.packbits` and faiss have them, and
    sentence-transformers under the name "ubinary": NumPy arrays, torch tensors, or anything with `__dlpack__` or the
    buffer protocol. They are read in place, read-only, mapped and backwards ones too; only rows whose bytes do not
    adjoin are copied first. Results are tensors for tensors, else NumPy arrays.

    Several threads may search at once, without Python's lock; add and remove wait for running searches, and a fork
    waits for all calls, so that a forked child finds the index whole and searches on. Each call uses as many threads as
    `agmh_fast.set_num_threads` said or torch has: one in a worker of a DataLoader. An index can be pickled, a mapped
    one as the path of its file.

    On `device` "cuda" or "cuda:N" codes and ids are tensors there, and so are results for queries there.
    Calls work on the current stream. A search that a CUDA graph captured reads codes where they lay then: capture it
    anew after a change, never replay it. `load` and `to` leave codes where they are, in host memory or a mapped file,
    if they do not fit: every search then streams them to the GPU, and `codes` and `ids` are NumPy arrays.

    Raises InputError for bad arguments, MemoryError where a result or a copy does not fit; either way the index is then
    as it was.
    """

    def __init__(self, bits: int, device: str | torch.device = "cpu") -> None:
        bits, device = check_bits(bits), check_device(device)
        self._start(bits, device, _new_engine(bits, device))

    def _start(
        self,
        bits: int,
        device: torch.device,
        engine: Any,
        file: index_file.OpenFile | None = None,
        device_memory: int | None = None,
    ) -> None:
        self._bits, self._device, self._engine, self._file = bits, device, engine, file
        self._device_memory = device_memory
        self._arguments: Any = HostArguments() if _in_host_memory(device) else engine.arguments

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
    def ids(self) -> Array:
        """(N,) int64, ascending: a read-only view of this moment; later changes of the index do not reach it.

        On a GPU a tensor there, not to be written to.
        """
        return self._live().snapshot()[1]

    @property
    def codes(self) -> Array:
        """(N, ceil(bits / 8)) uint8 in the order of `ids`: a read-only view of this moment, on a GPU as for `ids`."""
        return self._live().snapshot()[0][:, : (self.bits + 7) // 8]

    def add(self, codes: Array, ids: Array | None = None) -> None:
        """Add codes (n, ceil(bits / 8)) with `ids`: n whole numbers >= 0, unique, none of them in the index.

        Without ids they count on from the largest ever used, from 0 in a new index.
        """
        rows = self._arguments.codes(codes, self._bits)
        numbers = None if ids is None else self._arguments.ids(ids)
        if numbers is not None:
            fit = len(numbers) == len(rows)
            require(fit, f"ids must have one entry for each of {len(rows)} codes, got {len(numbers)}")
        self._live().add(rows, numbers)
        self._changed()

    def remove(self, ids: Array) -> None:
        """Remove the items with these ids, each in the index and given once; the others keep theirs."""
        self._live().remove(self._arguments.ids(ids))
        self._changed()

    def search(
        self, queries: Array, k: int, mask: Array | None = None, max_distance: int | None = None
    ) -> SearchResult:
        """The k nearest items of each query by (distance, id).

        queries: (Q, ceil(bits / 8)) packed uint8. k >= 1, may exceed the number of items. mask: what may be found,
        either bool, (N,) for all queries or (Q, N) one row a query, entries in the order of `ids`; or a 1-D integer
        array of allowed ids, where ids that the index does not hold are ignored. max_distance: items farther away are
        left out.
        """
        bits = self._bits
        rows = self._arguments.queries(queries, bits)
        if type(k) is not int or not 0 < k <= MAX_K:
            k = require_int("k", k, 1, max(MAX_K, len(self)))
        limit = bits if max_distance is None else min(require_int("max_distance", max_distance, 0), bits)
        allowed, allowed_ids = self._arguments.allowed(mask, len(rows))
        found = self._live().search(rows, k, limit, allowed, allowed_ids, get_num_threads())
        return SearchResult(*self._arguments.answer(queries, found))

    def range_search(self, queries: Array, radius: int, mask: Array | None = None) -> RangeResult:
        """All items within `radius` (inclusive) of each query, by (distance, id); other arguments as `search`."""
        rows = self._arguments.queries(queries, self._bits)
        radius = min(require_int("radius", radius, 0), self._bits)
        allowed, allowed_ids = self._arguments.allowed(mask, len(rows))
        found = self._live().range_search(rows, radius, allowed, allowed_ids, get_num_threads())
        return RangeResult(*self._arguments.answer(queries, found))

    def to(self, device: str | torch.device, device_memory: int | None = None) -> HammingIndex:
        """The index on `device`: itself if it is there already, else a copy.

        device_memory: bytes of a GPU that codes and ids may take, None for half of what is free. Where they need more
        (8 bytes an id; a code is padded to 4 or a multiple of 8) they stay in host memory, and searches stream them
        through buffers of at most so many bytes; agmh_fast/search/streamed_engine.py has the whole formula. Results are
        the same; such searches wait for the GPU, and a CUDA graph cannot hold them.
        """
        device = check_device(device)
        room = _check_room(device, device_memory)
        if device == self._device:
            return self
        if _in_host_memory(device) or not _fits(device, self._bits, len(self), room):
            return self._of(self._contents(), self._file, device, room)
        moved = type(self).__new__(type(self))
        moved._start(self._bits, device, TensorEngine.of(self._bits, device, *self._live().snapshot()))
        return moved

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one safetensors file; a reader, or a crash, finds the old file or the new one, whole.

        A process that is killed meanwhile leaves a temporary file beside it, `.name.` and 16 hexadecimal digits, which
        the next save to the same path removes.
        """
        rows, ids, next_id = self._live().snapshot()
        width = index_file.padded_bytes(self._bits)
        index_file.write(path, self._bits, _in_pieces(rows[:, :width]), _in_pieces(ids), next_id)

    @staticmethod
    def save_codes(path: str | os.PathLike[str], codes: Array, bits: int) -> None:
        """Write the file of an index of `codes`, with row numbers as ids, without an index in memory.

        codes: (N, ceil(bits / 8)) packed uint8, mapped if need be: they pass by in pieces. The way to a database larger
        than memory: `save_codes(path, numpy.load(npy, mmap_mode="r"), bits)`, then `load(path)`. Errors as `add` and
        `save`.
        """
        bits = check_bits(bits)
        rows = packed_rows("codes", codes, bits)
        check_padding("codes", rows, bits)
        index_file.write(path, bits, rows, range(len(rows)), len(rows))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        mmap: bool = True,
        device: str | torch.device = "cpu",
        device_memory: int | None = None,
    ) -> HammingIndex:
        """Open a saved index, after a check of its checksum.

        mmap: search the file where it lies, sharing memory with other processes; it may be larger than memory, and is
        then streamed at every search. The first add or remove copies codes and ids into memory, or raises MemoryError
        and changes nothing. The file is held open: saving over it, renaming and deleting it are safe. One that was cut
        or written to in place is an InputError at the next use, `load` it again; but cut during a search, or behind
        views of `codes` and `ids` held by the caller, it ends the process (SIGBUS), as any mapped file does.

        device_memory: as in `to`; what does not fit on a GPU is streamed to it, with `mmap` from the file itself.

        Raises InputError for a damaged or foreign file.
        """
        device = check_device(device)
        room = _check_room(device, device_memory)
        contents, file = index_file.read(path, mmap)
        try:
            return cls._of(contents, file, device, room)
        except InputError as error:
            raise InputError(f"{os.fspath(path)!r} is damaged: {error}") from error

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
        codes = np.ascontiguousarray(_in_pieces(self.codes)[:])
        index = faiss.IndexBinaryFlat(8 * codes.shape[1])
        index.add(codes)
        return index

    @classmethod
    def from_npy(cls, path: str | os.PathLike[str], bits: int, device: str | torch.device = "cpu") -> HammingIndex:
        """The codes of a plain `.npy` file, (N, ceil(bits / 8)) uint8, with row numbers as ids."""
        path = as_path(path)
        try:
            codes = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"cannot read {str(path)!r} as a .npy file: {error}") from error
        index = cls(bits, device)
        index.add(codes)
        return index

    def to_npy(self, path: str | os.PathLike[str]) -> None:
        """Write the codes, in the order of `ids`, to a plain `.npy` file, as `save` does."""
        codes = self.codes
        pieces = _in_pieces(codes)
        header = {"descr": "|u1", "fortran_order": False, "shape": tuple(codes.shape)}
        try:
            # Not numpy.save: it leaves its last write unchecked, and a full disk took the end of the codes in silence.
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(codes), _ROWS):
                    file.write(np.ascontiguousarray(pieces[start : start + _ROWS]).data)
        except OSError as error:
            raise InputError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes, and copies: a mapped index is its file, which they map too; any other its contents."""
        if self._file is not None:
            self._file.check()
            return type(self)._of_file, (self._file.path, self._file.version, str(self.device), self._device_memory)
        return type(self)._of, (self._contents(), None, self.device, self._device_memory)

    @classmethod
    def _of_file(cls, path: str, version: tuple[int, int], device: str, device_memory: int | None) -> HammingIndex:
        place = check_device(device)
        contents, file = index_file.read(path, mmap=True)
        # Asked of the file, not of the index: one that fits on the device by now needs no file.
        same = file is not None and file.version == version
        require(same, f"{path!r} is not the file any more that the index was mapped from")
        return cls._of(contents, file, place, device_memory)

    @classmethod
    def _of(
        cls,
        contents: index_file.Contents,
        file: index_file.OpenFile | None,
        device: torch.device,
        device_memory: int | None = None,
    ) -> HammingIndex:
        """The index over arrays that stay where they are until its first change, or over a copy of them on a GPU."""
        index = cls.__new__(cls)
        bits = contents.bits
        engine = _load_engine().Index.map(*contents)  # which checks the contents
        if _in_host_memory(device):
            index._start(bits, device, engine, file)
        elif _fits(device, bits, len(engine), device_memory):
            index._start(bits, device, TensorEngine.of(bits, device, *engine.snapshot()))
        else:
            room = int(free_bytes(device) / 2) if device_memory is None else device_memory
            index._start(bits, device, StreamedEngine(bits, device, engine, room), file, device_memory)
        return index

    def _contents(self) -> index_file.Contents:
        """In host memory."""
        rows, ids, next_id = self._live().snapshot()
        rows = rows[:, : index_file.padded_bytes(self._bits)]
        return index_file.Contents(self.bits, _in_pieces(rows)[:], _in_pieces(ids)[:], next_id)

    def _places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each of these ids stands in `ids`, and whether it is there (where not, the place means nothing)."""
        engine = self._live()
        return engine.find(ids) if isinstance(engine, TensorEngine) else find_ids(engine.snapshot()[1], ids)

    def _codes_at(self, places: np.ndarray) -> Array:
        """Codes in the order of `places` in `ids`, a copy."""
        codes = self.codes
        return codes[torch.from_numpy(places).to(codes.device) if isinstance(codes, Tensor) else places]

    def _moment(self) -> Moment | None:
        """What `_restore` goes back to, without a copy; None where the engine changes rows in place."""
        return self._engine.moment() if isinstance(self._engine, TensorEngine) else None

    def _restore(self, moment: Moment) -> None:
        """Undo what was changed since that moment, before any search has seen it; this cannot fail."""
        self._engine.restore(moment)

    def _live(self) -> Any:
        """The engine, once the file that it reads, if any, is known to be what it was."""
        if self._file is not None:
            self._file.check()
        return self._engine

    def _changed(self) -> None:
        """After a change: one of a mapped index went to a copy in memory, which needs the file no more."""
        if self._file is not None and not self._engine.mapped:
            self._file = None


def _in_host_memory(device: torch.device) -> bool:
    """Whether the C++ engine serves the device, over NumPy arrays; torch's ops and tensors do otherwise."""
    return device.type == "cpu"


def _new_engine(bits: int, device: torch.device) -> Any:
    return _load_engine().Index(bits) if _in_host_memory(device) else TensorEngine(bits, device)


def _check_room(device: torch.device, device_memory: int | None) -> int | None:
    if device_memory is None:
        return None
    require(not _in_host_memory(device), f"device_memory is for an index on a GPU, not on {device}")
    return require_int("device_memory", device_memory, 0)


def _fits(device: torch.device, bits: int, count: int, room: int | None) -> bool:
    """Whether so many codes and their ids take no more than `room` bytes of the device, or half of what is free."""
    return count * (row_bytes(bits) + 8) <= (free_bytes(device) / 2 if room is None else room)


def _in_pieces(array: Array) -> Any:
    """What gives NumPy arrays where it is sliced."""
    return HostPieces(array) if isinstance(array, Tensor) else array


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
