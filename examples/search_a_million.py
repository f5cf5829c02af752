"""Search a million 64-bit codes exactly: nearest, within a radius, among some of them, from a file.

The codes are random, and some have neighbours planted near them, so that the answers are known. Every answer is held
against a count of differing bits by NumPy.

    python examples/search_a_million.py --items 1000000
"""

import argparse
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import agmh_fast as af

BITS = 64
PLANTED = 20
QUERIES = 100


@contextmanager
def told(what):
    """Print how long the block took."""
    start = time.perf_counter()
    yield
    print(f"{what}: {1e3 * (time.perf_counter() - start):.1f} ms")


def made_up_codes(items, rng):
    """(codes, queries): near query i lie PLANTED codes, in rows i, i + QUERIES, …, the j-th at distance j."""
    codes = rng.integers(0, 256, (items, BITS // 8), dtype=np.uint8)
    queries = codes[:QUERIES].copy()
    for distance in range(PLANTED):
        flips = np.zeros((QUERIES, BITS), np.uint8)
        flips[:, rng.permutation(BITS)[:distance]] = 1
        codes[distance * QUERIES : (distance + 1) * QUERIES] = queries ^ np.packbits(flips, axis=1)
    return codes, queries


def by_numpy(codes, query):
    """Distances of one query to all codes."""
    return np.unpackbits(codes ^ query, axis=1).sum(axis=1, dtype=np.int64)


def main(items):
    rng = np.random.default_rng(0)
    codes, queries = made_up_codes(items, rng)
    index = af.HammingIndex(bits=BITS)
    with told(f"add {items:,} codes"):
        index.add(codes)
    index.search(queries, k=10)  # the first search of a process starts threads and takes memory

    with told(f"10 nearest of {QUERIES} queries"):
        nearest = index.search(queries, k=10)
    assert (nearest.ids[:, :6] == np.arange(QUERIES)[:, None] + QUERIES * np.arange(6)).all()
    assert (nearest.distances[:, :6] == np.arange(6)).all()

    with told(f"all within 12 bits of {QUERIES} queries"):
        near = index.range_search(queries, radius=12)
    print(f"  {np.diff(near.lims).mean():.1f} items a query")

    allowed = np.arange(0, items, 2)  # ids, or a boolean for each item
    with told(f"10 nearest of {QUERIES} queries among half of the items"):
        even = index.search(queries, k=10, mask=allowed)
    assert (even.ids % 2 == 0).all()

    for query in (0, QUERIES - 1):
        distances = by_numpy(codes, queries[query])
        order = np.argsort(distances, kind="stable")  # by (distance, id)
        assert (nearest.ids[query] == order[:10]).all()
        assert (even.ids[query] == order[order % 2 == 0][:10]).all()
        within = near.ids[near.lims[query] : near.lims[query + 1]]
        assert (within == order[distances[order] <= 12]).all()
    print("NumPy agrees")

    index.remove(np.arange(QUERIES))
    assert (index.search(queries, k=1).distances == 1).all()  # the next that was planted

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "codes.safetensors")
        with told("save"):
            index.save(path)
        with told("load, mapped and checked"):
            mapped = af.HammingIndex.load(path)
        assert (mapped.search(queries, k=5).ids == index.search(queries, k=5).ids).all()
        del mapped


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000, help=f"at least {PLANTED * QUERIES}")
    main(parser.parse_args().items)
