"""Random lives of an index, searched by threads while it changes, beside one in host memory: as long as is asked for.

AGMH_FAST_SOAK_SECONDS=600 python -m pytest -m gpu tests/search/test_soak.py
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import threading
import time

import numpy as np
import pytest
import torch
from engines import served_by

import agmh_fast as af

BITS = [1, 12, 16, 32, 48, 64, 100, 256, 1024]


def _codes(rng, rows, bits, distinct):
    codes = np.packbits(rng.integers(0, 2, (distinct, bits), dtype=np.uint8), axis=1)
    return codes[rng.integers(0, distinct, rows)]


class Searchers:
    """Threads that search, each on a stream of its own; what they find need only be true of some moment."""

    def __init__(self, index, codes_of, queries, count):
        self.index, self.codes_of, self.queries, self.failures = index, codes_of, queries, []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._search) for _ in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.failures

    def _search(self):
        own = torch.cuda.stream(torch.cuda.Stream()) if self.index.device.type == "cuda" else contextlib.nullcontext()
        try:
            with own:
                while not self.stop.is_set():
                    for found in (self.index.search(self.queries, 7), self._within()):
                        self._check(*found)
        except BaseException as error:
            self.failures.append(error)

    def _within(self):
        lims, distances, ids = self.index.range_search(self.queries, self.index.bits // 4)
        parts = [slice(*ends) for ends in itertools.pairwise(lims)]
        return [distances[part] for part in parts], [ids[part] for part in parts]

    def _check(self, distances, ids):
        for query, row, named in zip(self.queries, distances, ids, strict=True):
            named = named[named >= 0]
            away = np.unpackbits(self.codes_of[named] ^ query, axis=1).sum(1)
            pairs = list(zip(away.tolist(), named.tolist(), strict=True))
            assert pairs == sorted(set(pairs))
            assert away.tolist() == row[: len(named)].tolist()


def _same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert np.array_equal(mine, theirs)


def live(seed, engine, folder):
    """One life: adding, removing, searching by threads; then every kind of search, a file, a stream of it."""
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    bits, most = draw.choice(BITS), draw.choice([300, 3000, 30_000])
    codes_of = _codes(rng, most, bits, draw.choice([3, 60, most]))  # by id
    queries, here = _codes(rng, draw.choice([1, 9, 70]), bits, 40), af.HammingIndex(bits)
    with served_by(engine) as device:
        there = af.HammingIndex(bits, device)
        with Searchers(there, codes_of, queries[:9], 2):
            for _ in range(draw.randint(2, 8)):
                held = np.isin(np.arange(most), here.ids)
                new = rng.permutation(np.flatnonzero(~held))[: draw.randint(1, most)]
                gone = rng.permutation(here.ids.copy())[: draw.randint(0, len(here) // 2)]
                for index in (here, there):
                    index.add(codes_of[new], new)
                    index.remove(gone)
        assert np.array_equal(there.to("cpu").ids if device != "cpu" else there.ids, here.ids)
        masks = [None, rng.random(len(here)) < 0.3, rng.random((len(queries), len(here))) < 0.3, here.ids[::3].copy()]
        radius, limit = draw.randint(0, bits // 3), draw.choice([None, bits // 3])
        here.save(folder / "index")
        again = af.HammingIndex.load(
            folder / "index", device=device, **({} if device == "cpu" else {"device_memory": 999})
        )
        for index in (there, again):
            for mask in masks:
                for k in (1, draw.randint(2, 200), len(here) + 1 if most == 300 else 2000):
                    _same(index.search(queries, k, mask, limit), here.search(queries, k, mask, limit))
                _same(index.range_search(queries, radius, mask), here.range_search(queries, radius, mask))


@pytest.mark.parametrize("engine", ["tensors", "streamed"])
def test_some_lives(engine, tmp_path):
    for seed in range(3):
        live(seed, engine, tmp_path)


@pytest.mark.gpu
def test_many_lives(tmp_path):
    """As long as AGMH_FAST_SOAK_SECONDS says; no life leaves memory behind."""
    end, seed, held = time.monotonic() + float(os.environ.get("AGMH_FAST_SOAK_SECONDS", "5")), 0, []
    while time.monotonic() < end:
        live(seed, "cuda", tmp_path)
        with pytest.raises((MemoryError, RuntimeError), match="out of memory"):
            af.functional.hamming_topk(torch.zeros(50, 8).byte().cuda(), torch.zeros(9, 8).byte().cuda(), 2**31 - 1)
        gc.collect()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
        seed += 1
    assert max(held) <= held[0] + (1 << 20), f"life {held.index(max(held))} left memory behind"
