"""An index on a GPU beside one on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
