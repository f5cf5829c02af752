"""An index on a GPU beside one on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cuda_graphs import capture

import agmh_fast as af

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def _same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.device.type == "cuda"
        assert np.array_equal(mine.cpu().numpy(), theirs)


@pytest.mark.parametrize("bits", [12, 32, 48, 64, 100, 256, 1000])
def test_a_life_on_a_gpu(bits, tmp_path):
    rng = np.random.default_rng(bits)
    codes = np.packbits(rng.integers(0, 2, (5000, bits), dtype=np.uint8), axis=1)
    queries = codes[:20]
    ids = rng.permutation(20_000)[:5000]
    here, there = af.HammingIndex(bits), af.HammingIndex(bits, device="cuda")
    for index in (here, there):
        index.add(codes[:3000], ids[:3000])
        index.remove(ids[100:200])
        index.add(codes[3000:], ids[3000:])
    on_gpu = torch.from_numpy(queries).cuda()
    mask = rng.random((20, len(here))) < 0.3
    for options in ({}, {"mask": mask[0]}, {"mask": mask}, {"mask": ids[:90]}, {"max_distance": bits // 3}):
        for k in (1, 10, 1500, len(here) + 3):
            _same(there.search(on_gpu, k, **options), here.search(queries, k, **options))
    _same(there.range_search(on_gpu, bits // 2), here.range_search(queries, bits // 2))
    there.save(tmp_path / "index")
    _same(af.HammingIndex.load(tmp_path / "index", device="cuda").search(on_gpu, 9), here.search(queries, 9))
    back = there.to("cpu").search(queries, 9)
    assert all(np.array_equal(*each) for each in zip(back, here.search(queries, 9), strict=True))
    _same(here.to("cuda").search(on_gpu, 9), here.search(queries, 9))


@pytest.mark.parametrize("bits", [12, 48])
def test_a_search_in_a_graph(bits):
    """Repeated codes are looked for before the capture, and never in it."""
    codes = np.packbits(np.random.default_rng(0).integers(0, 2, (50, bits), dtype=np.uint8), axis=1)
    codes = codes[np.random.default_rng(1).integers(0, 50, 20_000)]
    here, there = af.HammingIndex(bits), af.HammingIndex(bits, device="cuda")
    for index in (here, there):
        index.add(codes, np.arange(20_000) * 2)
    queries = torch.from_numpy(codes[:20]).cuda()
    graph, captured = capture(lambda: there.search(queries, 10))
    there.search(queries.repeat(4, 1), 10)
    of_few, few = capture(lambda: there.search(queries, 10))
    queries.copy_(torch.from_numpy(codes[20:40]))
    for each in (graph, of_few):
        each.replay()
    for found in (captured, few):
        _same(found, here.search(codes[20:40], 10))


def _saved(tmp_path, bits, rows):
    """A file of random codes with gaps between their ids, and the index of it on the CPU."""
    rng = np.random.default_rng(bits)
    index = af.HammingIndex(bits)
    index.add(np.packbits(rng.integers(0, 2, (rows, bits), dtype=np.uint8), axis=1), np.arange(rows) * 3 + 1)
    index.save(tmp_path / "index")
    return af.HammingIndex.load(tmp_path / "index")


@pytest.mark.parametrize(("bits", "k"), [(16, 10), (48, 100), (64, 5000), (300, 20)])
def test_codes_streamed_from_a_file(tmp_path, bits, k):
    """Some forty pieces, by the caller's stream, from the file, from memory, and after a change."""
    here = _saved(tmp_path, bits, 100_000)
    room = here._contents().rows.nbytes // 20
    rng = np.random.default_rng(0)
    queries = here.codes[rng.integers(0, len(here), 50)].copy()
    on_gpu = torch.from_numpy(queries).cuda()
    masks = [None, rng.random(len(here)) < 0.3, rng.random((50, len(here))) < 0.3, here.ids[::7].copy()]
    for index in (
        af.HammingIndex.load(tmp_path / "index", device="cuda", device_memory=room),
        af.HammingIndex.load(tmp_path / "index", mmap=False).to("cuda", device_memory=room),
    ):
        assert index._engine._room == room
        side = torch.cuda.Stream()
        for mask in masks:
            with torch.cuda.stream(side):
                moved = torch.zeros_like(on_gpu)
                torch.cuda._sleep(20_000_000)
                moved.copy_(on_gpu)  # a search that did not wait for its stream would look for zeros
                found = index.search(moved, k, mask=mask)
            side.synchronize()
            _same(found, here.search(queries, k, mask=mask))
            _same(index.range_search(on_gpu, bits // 3, mask=mask), here.range_search(queries, bits // 3, mask=mask))
        _same(index.search(on_gpu, k, mask=torch.from_numpy(masks[1]).cuda()), here.search(queries, k, mask=masks[1]))
    for changed in (index, here):
        changed.remove([1, 4])
    index.add(on_gpu[:3])
    here.add(queries[:3])
    _same(index.search(on_gpu, k), here.search(queries, k))


def test_a_stream_takes_the_memory_that_it_says(tmp_path):
    """agmh_fast/search/streamed_engine.py, with rows that need no padding and no masks."""
    here = _saved(tmp_path, 64, 4_000_000)
    room, k = 1 << 22, 100
    index = af.HammingIndex.load(tmp_path / "index", device="cuda", device_memory=room)
    queries = torch.from_numpy(here.codes[:200].copy()).cuda()
    index.search(queries, k)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    index.search(queries, k)
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    # The scratch of a search is 256 MiB at most; the allocator rounds blocks up.
    assert taken <= room + (12 + 80 * 2) * 200 * k + (256 << 20) + (1 << 20)
    assert torch.cuda.memory_allocated() - before <= 1 << 20


def test_threads_search_a_stream_at_once(tmp_path):
    here = _saved(tmp_path, 64, 200_000)
    index = af.HammingIndex.load(tmp_path / "index", device="cuda", device_memory=1 << 17)
    queries = here.codes[:40].copy()
    expected = here.search(queries, 30)

    def search(_):
        with torch.cuda.stream(torch.cuda.Stream()):
            return index.search(queries, 30)

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(search, range(16)):
            assert all(np.array_equal(*each) for each in zip(found, expected, strict=True))
