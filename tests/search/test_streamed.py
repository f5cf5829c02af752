"""Codes that stay in host memory and pass by the device in pieces: the answers of an index that lies there whole."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agmh_fast as af
from agmh_fast.search import index as index_module
from agmh_fast.search import pieces as pieces_module
from agmh_fast.search import streamed_engine
from agmh_fast.search.streamed_engine import StreamedEngine


@pytest.fixture
def on_tensors(monkeypatch):
    """The CPU as a device that is not host memory."""
    monkeypatch.setattr(index_module, "_in_host_memory", lambda device: False)


def _streamed(whole, room):
    """The same codes, passed by in pieces of room / 2 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_in_host_memory", lambda device: False)
        patch.setattr(index_module, "_fits", lambda *_: False)
        index = af.HammingIndex._of(whole._contents(), None, whole.device, room)
    assert isinstance(index._engine, StreamedEngine)
    return index


def _same(result, expected):
    for mine, theirs in zip(result, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert np.array_equal(mine, theirs)


def _codes(rng, rows, bits, distinct):
    codes = np.packbits(rng.integers(0, 2, (distinct, bits), dtype=np.uint8), axis=1)
    return codes[rng.integers(0, distinct, rows)]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_problem(data):
    """Pieces of one row and more, ties across them, masks of every kind, k beyond a piece and beyond all."""
    bits, rows = data.draw(st.sampled_from([1, 7, 12, 16, 20, 33, 64, 100, 257])), data.draw(st.integers(0, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    whole = af.HammingIndex(bits)
    gaps = data.draw(st.booleans())
    whole.add(_codes(rng, rows, bits, data.draw(st.integers(1, 8))), rng.permutation(3 * rows)[:rows] if gaps else None)
    index = _streamed(whole, data.draw(st.sampled_from([0, 16, 48, 100, 10_000])))
    queries = _codes(rng, data.draw(st.integers(0, 4)), bits, 5)
    kind = data.draw(st.sampled_from(["none", "shared", "each", "ids", "no ids"]))
    mask = {
        "none": None,
        "shared": rng.random(rows) < 0.5,
        "each": rng.random((len(queries), rows)) < 0.5,
        "ids": np.concatenate([rng.permutation(3 * rows)[:rows], [-7, 2**62]]),
        "no ids": [],
    }[kind]
    k, limit = data.draw(st.integers(1, 50)), data.draw(st.none() | st.integers(0, bits + 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed_engine, "_CANDIDATES", data.draw(st.sampled_from([1, 60, 1 << 22])))
        _same(index.search(queries, k, mask, limit), whole.search(queries, k, mask, limit))
        radius = data.draw(st.integers(0, bits + 2))
        _same(index.range_search(queries, radius, mask), whole.range_search(queries, radius, mask))
    tensors = torch.from_numpy(queries), None if mask is None else torch.as_tensor(mask)
    found = index.search(tensors[0], k, tensors[1], limit)
    assert isinstance(found.ids, torch.Tensor)
    _same([part.numpy() for part in found], whole.search(queries, k, mask, limit))


def test_a_file_is_searched_where_it_lies_until_a_change(on_tensors, tmp_path):
    rng = np.random.default_rng(0)
    codes = _codes(rng, 300, 45, 300)
    af.HammingIndex.save_codes(tmp_path / "index", codes, 45)
    resident = af.HammingIndex.load(tmp_path / "index")
    index = af.HammingIndex.load(tmp_path / "index", device_memory=100)
    assert not isinstance(resident._engine, StreamedEngine)
    assert index._engine.mapped
    assert np.shares_memory(index.codes, index._engine.snapshot()[0])
    for other in (index, pickle.loads(pickle.dumps(index))):
        assert isinstance(other._engine, StreamedEngine)
        assert other._engine.mapped
        _same(other.search(codes[:9], 40), resident.search(codes[:9], 40))
    index.remove([3, 299])
    index.add(codes[:1], [1000])
    index.add(torch.from_numpy(codes[:2]), torch.tensor([700, 800]))
    assert not index._engine.mapped
    (tmp_path / "index").write_bytes(b"")
    resident.remove([3, 299])
    resident.add(codes[[0, 1, 0]], [700, 800, 1000])
    again = pickle.loads(pickle.dumps(index))
    assert isinstance(again._engine, StreamedEngine)
    for other in (index, again):
        _same(other.search(codes[:9], 400), resident.search(codes[:9], 400))
        assert np.array_equal(other.ids, resident.ids)
    index.save(tmp_path / "again")
    _same(af.HammingIndex.load(tmp_path / "again").range_search(codes[:3], 9), resident.range_search(codes[:3], 9))


def test_a_file_written_to_is_an_error_of_the_stream_too(on_tensors, tmp_path):
    af.HammingIndex.save_codes(tmp_path / "index", np.zeros((9, 1), np.uint8), 8)
    index = af.HammingIndex.load(tmp_path / "index", device_memory=0)
    with (tmp_path / "index").open("rb+") as file:
        file.truncate(100)
    with pytest.raises(af.InputError, match="written to while it was mapped"):
        index.search(np.zeros((1, 1), np.uint8), 1)


def test_a_copy_and_the_index_it_was_made_of_change_apart():
    whole = af.HammingIndex(16)
    whole.add(np.arange(40, dtype=np.uint8).reshape(20, 2))
    index = _streamed(whole, 0)
    whole.remove([7])
    index.add(np.zeros((1, 2), np.uint8))
    assert (len(whole), len(index)) == (19, 21)
    assert index.ids.tolist() == list(range(21))


def test_what_fits_is_decided_by_the_byte(on_tensors, monkeypatch, tmp_path):
    """A code of 12 bits takes 4 bytes on a device, an id 8."""
    af.HammingIndex.save_codes(tmp_path / "index", np.zeros((10, 2), np.uint8), 12)
    for room, streams in ((119, True), (120, False)):
        index = af.HammingIndex.load(tmp_path / "index", device_memory=room)
        assert isinstance(index._engine, StreamedEngine) == streams
    for free, streams in ((239, True), (240, False)):
        monkeypatch.setattr(index_module, "free_bytes", lambda device, free=free: free)
        index = af.HammingIndex.load(tmp_path / "index")
        assert isinstance(index._engine, StreamedEngine) == streams


def test_a_mapped_index_is_opened_where_it_fits_by_now(on_tensors, monkeypatch, tmp_path):
    """What was streamed for want of memory is copied to the device by the process, or the moment, that has enough."""
    af.HammingIndex.save_codes(tmp_path / "index", np.zeros((10, 2), np.uint8), 12)
    monkeypatch.setattr(index_module, "free_bytes", lambda device: 0)
    index = af.HammingIndex.load(tmp_path / "index")
    assert isinstance(index._engine, StreamedEngine)
    pickled = pickle.dumps(index)
    monkeypatch.setattr(index_module, "free_bytes", lambda device: 10**9)
    for other in (pickle.loads(pickled), copy.deepcopy(index)):
        assert not isinstance(other._engine, StreamedEngine)
        assert other.search(np.zeros((1, 2), np.uint8), 3).ids.tolist() == [[0, 1, 2]]
    os.utime(tmp_path / "index", ns=(1, 1))
    with pytest.raises(af.InputError, match="is not the file any more"):
        pickle.loads(pickled)


def test_one_piece_of_a_mask_is_held_at_a_time(monkeypatch):
    whole = af.HammingIndex(64)
    rng = np.random.default_rng(0)
    whole.add(rng.integers(0, 256, (50, 8), dtype=np.uint8))
    index, held = _streamed(whole, 160), set()
    search = streamed_engine.topk_op

    def record(*of):
        held.add(of[-1].untyped_storage().data_ptr())
        assert of[-1].untyped_storage().nbytes() == 3 * 10
        return search(*of)

    monkeypatch.setattr(streamed_engine, "topk_op", record)
    mask = rng.random((3, 50)) < 0.5
    _same(index.search(whole.codes[:3], 20, mask), whole.search(whole.codes[:3], 20, mask))
    assert len(held) == 1


def test_room_is_a_number_of_bytes_of_a_gpu(monkeypatch):
    index = af.HammingIndex(8)
    with pytest.raises(af.InputError, match="device_memory is for an index on a GPU, not on cpu"):
        index.to("cpu", device_memory=10)
    monkeypatch.setattr(index_module, "_in_host_memory", lambda device: False)
    for wrong in (-1, 0.5, "all"):
        with pytest.raises(af.InputError, match="device_memory must be a whole number of at least 0"):
            index.to("cpu", device_memory=wrong)


def test_rows_that_no_list_names_are_not_read(monkeypatch):
    whole = af.HammingIndex(64)
    whole.add(np.random.default_rng(0).integers(0, 256, (1000, 8), dtype=np.uint8))
    index, passed = _streamed(whole, 160), []
    bring = pieces_module._Lane.send
    monkeypatch.setattr(pieces_module._Lane, "send", lambda lane, rows: (passed.append(len(rows)), bring(lane, rows)))
    _same(
        index.search(whole.codes[:2], 30, mask=np.arange(5, 900, 30)),
        whole.search(whole.codes[:2], 30, np.arange(5, 900, 30)),
    )
    assert passed == [10, 10, 10]


class Streams:
    """A stand-in for torch.cuda that knows what comes before what: a vector clock for the host and for each stream.

    copies, reads: the ticks of the streams at each copy to the device and at each search, in order.
    """

    def __init__(self):
        self.host, self.copies, self.reads = Counter(), [], []
        streams = self

        class Stream:
            def __init__(self, device=None):
                self.clock = Counter()

            def tick(self):
                self.clock[self] += 1
                return self.clock[self]

            def wait_event(self, event):
                self.clock |= event.clock

            def wait_stream(self, other):
                self.clock |= other.clock

        class Event:
            def __init__(self):
                self.clock = Counter()

            def record(self, stream):
                self.clock = Counter(stream.clock)

            def synchronize(self):
                streams.host |= self.clock

        self.Stream, self.Event, self.current, self.side = Stream, Event, Stream(), None

    def current_stream(self, device):
        return self.current

    @contextlib.contextmanager
    def stream(self, side):
        """In here a copy to the device is given to `side`: it reads the pinned buffer, just written by the host."""
        self.side, number = side, len(self.copies)
        if number >= 2:
            assert self.host[side] >= self.copies[number - 2], "the host overwrote what was being copied"
        self.copies.append(side.tick())
        yield
        if number >= 2:
            assert side.clock[self.current] >= self.reads[number - 2], "a copy overwrote what was being searched"

    def search(self, number):
        """A search of that piece is given to the current stream."""
        assert self.current.clock[self.side] >= self.copies[number], "a search began before its piece had come"
        self.reads.append(self.current.tick())


def _pass_by(streams, monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    rows = np.arange(23 * 2, dtype=np.uint8).reshape(23, 2)
    for span, piece in pieces_module.pieces(rows, 2, 5, torch.device("cpu")):
        streams.search(span.start // 5)
        assert np.array_equal(piece.numpy(), rows[span])
    assert len(streams.reads) == len(streams.copies) == 5


def test_no_buffer_is_written_while_it_is_read(monkeypatch):
    """By happens-before, as streams and events define it: what a machine without a GPU can show of three queues."""
    _pass_by(Streams(), monkeypatch)


@pytest.mark.parametrize(
    ("kind", "forgets", "what"),
    [
        ("Event", "synchronize", "the host overwrote"),
        ("Event", "record", "the host overwrote|began before"),
        ("Stream", "wait_event", "a copy overwrote|began before"),
    ],
)
def test_a_missing_wait_is_noticed(monkeypatch, kind, forgets, what):
    streams = Streams()
    monkeypatch.setattr(getattr(streams, kind), forgets, lambda *_: None)
    with pytest.raises(AssertionError, match=what):
        _pass_by(streams, monkeypatch)


def test_a_search_that_ends_early_leaves_no_copy_under_way(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cpu.Stream, "wait_stream", lambda stream, other: waited.append(other))
    coming = pieces_module.pieces(np.zeros((9, 1), np.uint8), 1, 2, torch.device("cpu"))
    next(coming)
    assert len(waited) == 1
    coming.close()
    assert len(waited) == 2


def test_nothing_passes_of_an_empty_index():
    assert list(pieces_module.pieces(np.zeros((0, 8), np.uint8), 8, 5, torch.device("cpu"))) == []
