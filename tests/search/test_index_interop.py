"""Codes from elsewhere: which memory is read in place, which bytes mean what, faiss, plain arrays."""

from __future__ import annotations

import array
import os
import warnings

import numpy as np
import pytest
import torch

import agmh_fast as af
from agmh_fast.search.arguments import packed_rows

BITS = 48


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(0, 256, (60, 6), dtype=np.uint8)


@pytest.fixture
def index(codes):
    index = af.HammingIndex(BITS)
    index.add(codes)
    return index


def _assert_finds(index, queries, expected):
    """`queries`, however they lie, are the rows `expected`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = index.search(queries, 5)
    for given, wanted in zip(result, index.search(np.ascontiguousarray(expected), 5), strict=True):
        assert isinstance(given, torch.Tensor) == isinstance(queries, torch.Tensor)
        assert np.array_equal(np.asarray(given), wanted)


class Exporter:
    """An array of another library: memory, and nothing of NumPy's or torch's."""

    def __init__(self, memory):
        self.memory = memory

    def __dlpack__(self, **options):
        return self.memory.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.memory.__dlpack_device__()


def _read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


IN_PLACE = {
    "contiguous": lambda wide: wide[:, :6].copy(),
    "a part of wider rows": lambda wide: wide[:, 2:8],
    "every third row": lambda wide: wide[::3, :6],
    "backwards": lambda wide: wide[::-1, :6],
    "one row many times": lambda wide: np.broadcast_to(wide[0, :6], (9, 6)),
    "read-only": lambda wide: _read_only(wide[:, :6]),
    "a subclass": lambda wide: wide[:, :6].copy().view(np.recarray),
}


@pytest.mark.parametrize("lay", IN_PLACE.values(), ids=IN_PLACE)
def test_arrays_are_read_in_place(index, lay):
    wide = np.random.default_rng(1).integers(0, 256, (60, 9), dtype=np.uint8)
    queries = lay(wide)
    rows = packed_rows("queries", queries, BITS)
    assert rows.ctypes.data == queries.ctypes.data
    assert rows.strides == queries.strides
    _assert_finds(index, queries, np.asarray(queries))
    if queries.strides[0] >= 0:  # torch has no others
        tensor = torch.from_dlpack(queries) if queries.flags.writeable else torch.from_numpy(queries.copy())
        assert packed_rows("queries", tensor, BITS).ctypes.data == tensor.data_ptr()
        _assert_finds(index, tensor, np.asarray(queries))


@pytest.mark.parametrize("queries", [np.asfortranarray, lambda x: x[:, ::-1], lambda x: x.repeat(2, 1)[:, ::2]])
def test_bytes_that_do_not_adjoin_are_copied(index, codes, queries):
    queries = queries(codes[:7])
    _assert_finds(index, queries, queries)
    fortran = torch.from_numpy(np.ascontiguousarray(queries).T.copy()).T
    _assert_finds(index, fortran, queries)


def test_dlpack_and_buffers_are_read_in_place(index, codes):
    queries = codes[:7].copy()
    frozen = _read_only(queries)
    tensor = torch.from_numpy(queries)
    for exporter, address in (
        (Exporter(queries), queries.ctypes.data),
        (Exporter(tensor), queries.ctypes.data),
        (Exporter(tensor[::2]), queries.ctypes.data),
        (memoryview(queries), queries.ctypes.data),
        (memoryview(frozen), frozen.ctypes.data),
        (memoryview(frozen)[::-1], frozen[::-1].ctypes.data),
    ):
        assert packed_rows("queries", exporter, BITS).ctypes.data == address
        _assert_finds(index, exporter, packed_rows("queries", exporter, BITS))
    for flat in (array.array("B", queries.tobytes()), bytearray(queries), queries.tobytes()):
        with pytest.raises(af.InputError, match=r"queries must be \(rows, bytes\)"):
            index.search(flat, 3)
        _assert_finds(index, memoryview(flat).cast("B", (7, 6)), queries)


def test_ids_and_masks_come_from_anywhere_too(codes):
    index = af.HammingIndex(BITS)
    index.add(Exporter(codes), Exporter(np.arange(100, 160)))
    index.remove(array.array("q", [100, 159]))
    assert index.ids.tolist() == list(range(101, 159))
    for mask in (Exporter(np.array([110, 120])), array.array("q", [120, 110]), torch.tensor([110, 120]), [110, 120]):
        assert sorted(index.search(codes[:1], 2, mask=mask).ids[0].tolist()) == [110, 120]
    everything = np.zeros(58, bool)
    everything[9] = True
    for mask in (Exporter(torch.from_numpy(everything)), memoryview(everything), everything.tolist()):
        assert index.search(codes[:1], 2, mask=mask).ids.tolist() == [[110, -1]]


class Elsewhere:
    """An array on a GPU, as another library would hand it over."""

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **options):
        raise BufferError("this array is on a GPU")


def test_foreign_arrays_that_cannot_be_read_are_named(index):
    with pytest.raises(af.InputError, match="queries cannot be read as an array"):
        index.search(Elsewhere(), 3)
    with pytest.raises(af.InputError, match="mask cannot be read as an array"):
        index.search(np.zeros((1, 6), np.uint8), 3, mask=Elsewhere())
    with pytest.raises(af.InputError, match=r"queries must be uint8 rows of packed codes, got float32"):
        index.search(Exporter(torch.zeros(2, 6)), 3)
    with pytest.raises(af.InputError, match="queries must be a NumPy array, a torch tensor"):
        index.search([[0] * 6], 3)


def test_sentence_transformers_precisions(index, codes):
    """Their "ubinary" is numpy.packbits; their "binary" the same with 128 taken off each byte, as int8."""
    embeddings = np.random.default_rng(2).standard_normal((7, BITS)).astype(np.float32)
    ubinary = np.packbits(embeddings > 0).reshape(7, -1)
    binary = (ubinary - 128).astype(np.int8)
    assert np.array_equal(ubinary, af.pack_codes(embeddings))
    _assert_finds(index, ubinary, np.packbits(embeddings > 0, axis=1))
    for wrong in (binary, torch.from_numpy(binary)):
        with pytest.raises(af.InputError, match=r"128 taken off.*give codes.view\(uint8\) \^ 128"):
            index.search(wrong, 3)
    assert np.array_equal(binary.view(np.uint8) ^ 128, ubinary)
    _assert_finds(index, torch.from_numpy(binary).view(torch.uint8) ^ 128, ubinary)
    with pytest.raises(af.InputError, match=r"pack it with agmh_fast\.pack_codes"):
        index.search(np.sign(embeddings).astype(np.int8), 3)


def test_faiss_both_ways(tmp_path, codes):
    faiss = pytest.importorskip("faiss")
    flat = faiss.IndexBinaryFlat(BITS)
    flat.add(codes)
    faiss.write_index_binary(flat, os.fspath(tmp_path / "flat"))
    index = af.HammingIndex.from_faiss(faiss.read_index_binary(os.fspath(tmp_path / "flat")))
    assert np.array_equal(index.codes, codes)
    assert np.array_equal(index.search(codes[:5], 20).distances, flat.search(codes[:5], 20)[0])
    assert len(af.HammingIndex.from_faiss(faiss.IndexBinaryFlat(8))) == 0
    narrow = af.HammingIndex(12)
    narrow.add(codes[:, :2] & np.array([255, 240], np.uint8), np.arange(60) * 3)
    back = narrow.to_faiss()
    distances, positions = back.search(narrow.codes[:3], 9)
    assert np.array_equal(distances, narrow.search(narrow.codes[:3], 9).distances)
    assert np.array_equal(np.unpackbits(narrow.codes[positions[0]] ^ narrow.codes[0], axis=1).sum(1), distances[0])
    with pytest.raises(af.InputError, match=r"index must be a faiss\.IndexBinaryFlat, got IndexFlatL2"):
        af.HammingIndex.from_faiss(faiss.IndexFlatL2(8))


def test_plain_arrays(tmp_path, codes, index):
    index.to_npy(tmp_path / "codes.npy")
    assert np.array_equal(np.load(tmp_path / "codes.npy"), codes)
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    assert packed_rows("codes", mapped, BITS).ctypes.data == mapped.ctypes.data
    assert np.array_equal(af.HammingIndex.from_npy(tmp_path / "codes.npy", bits=BITS).codes, codes)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(codes))
    assert np.array_equal(af.HammingIndex.from_npy(tmp_path / "fortran.npy", bits=BITS).codes, codes)
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    for name in ("objects", "bad", "missing", "a\0b"):
        with pytest.raises(af.InputError, match="npy"):
            af.HammingIndex.from_npy(tmp_path / f"{name}.npy", bits=BITS)
    with pytest.raises(af.InputError, match="path must be"):
        af.HammingIndex.from_npy(None, bits=BITS)
    np.save(tmp_path / "floats.npy", np.zeros((3, 6)))
    with pytest.raises(af.InputError, match="codes must be uint8"):
        af.HammingIndex.from_npy(tmp_path / "floats.npy", bits=BITS)
