"""Ten thousand bad calls: each is one line that names the argument, and the index is as it was."""

from __future__ import annotations

import decimal
import fractions
import hashlib
import random

import numpy as np
import pytest
import torch

import agmh_fast as af
from agmh_fast.ops.hamming import MAX_K

pytestmark = pytest.mark.usefixtures("engine")

BITS, CODES, IDS = 45, np.zeros((2, 6), np.uint8), [0, 1, 3, 4, 9]


class Hostile:
    """Every conversion fails, each in its own way."""

    def __index__(self):
        raise RuntimeError("no index")

    def __float__(self):
        raise ZeroDivisionError

    def __array__(self, *arguments, **options):
        raise ValueError("no array")

    def __fspath__(self):
        raise TypeError("no path")

    def __repr__(self):
        raise OSError("no repr")


def _numbers(rng):
    """Whole numbers that no argument takes, and what is no whole number."""
    return rng.choice(
        [
            -rng.randint(1, 10),
            -(10 ** rng.randint(1, 6000)),
            rng.random(),
            float(rng.randint(-3, 3)),
            rng.choice([float("nan"), float("inf")]),
            rng.choice([True, False, np.True_, torch.tensor(True)]),
            str(rng.randint(0, 9)),
            bytes([rng.randint(0, 255)]),
            complex(1, 0),
            decimal.Decimal(3),
            fractions.Fraction(3),
            np.float32(2),
            np.ones(rng.randint(2, 5), np.int64),
            np.ones((3, 4)),
            torch.ones(3, 3),
            torch.empty((), dtype=torch.int64, device="meta"),
            [rng.randint(0, 9)],
            {},
            object(),
            Hostile(),
            print,
        ]
    )


def _too_large(rng, low):
    return rng.choice([low, low + rng.randint(0, 9), 10 ** rng.randint(12, 30), 10**5000])


def _things(rng):
    """What is no array of codes, ids or allowed items at all."""
    return rng.choice(
        [
            rng.random(),
            -1,
            "codes",
            b"codes",
            {},
            {1: 2},
            {1, 2},
            object(),
            Hostile(),
            print,
            iter([1]),
            [[1], [2, 3]],
            [[1, 2], None],
            ["a"],
            [None],
            np.array([None, 1]),
            np.array(["a", "b"]),
            np.array(["2020-01-01"], "datetime64[D]"),
            np.zeros(2, [("a", "u1"), ("b", "u1")]),
            np.zeros((2, 6), np.complex64),
            torch.zeros(2, 6, dtype=torch.complex64),
            torch.zeros(2, 6, dtype=torch.bfloat16),
            torch.zeros(2, 6, dtype=torch.uint8, device="meta"),
            torch.zeros(2, 6, dtype=torch.uint8).to_sparse(),
            torch.zeros(2, 6, requires_grad=True),
        ]
    )


DTYPES = ["i1", "u2", "i2", "u4", "i4", ">i4", "u8", "i8", "f2", "f4", "f8", "?"]


def _codes(rng):
    """Bytes that are no codes of BITS bits."""
    kind = rng.randrange(5)
    if kind == 0:
        return _things(rng)
    if kind == 1:  # a wrong type
        return np.zeros((2, 6), rng.choice(DTYPES))
    if kind == 2:  # a wrong shape
        shape = [rng.randint(0, 4) for _ in range(rng.randint(0, 4))]
        return np.zeros(shape if shape[1:] != [6] else [6], np.uint8)
    rows = rng.randint(1, 300)
    bad = np.zeros((rows, 6), np.uint8)
    bad[rng.randrange(rows), 5] = rng.randint(1, 7)  # padding bits
    bad = rng.choice([bad, bad[::-1], np.asfortranarray(bad)])
    return bad if kind == 3 else torch.from_numpy(bad.copy())


def _ids(rng, good, wrong):
    """Ids that cannot be: `good` are fine by themselves, `wrong` one is not."""
    kind = rng.randrange(5)
    if kind == 0:
        return _things(rng)
    if kind == 1:
        return np.array(good, rng.choice(["f4", "f8", "?", "c8"]))
    if kind == 2:
        return np.array([good], np.int64)
    if kind == 3:
        return [good[0], rng.choice([-1, 2**63 - 1, 2**63, 2**64, 10**30, good[0]])]
    bad = [*good[:-1], wrong]
    rng.shuffle(bad)
    return rng.choice([bad, np.array(bad, np.int32), torch.tensor(bad)])


def _mask(rng):
    kind = rng.randrange(4)
    if kind == 0:
        return _things(rng)
    if kind == 1:
        return np.ones(5, rng.choice(["u1", "i1", "f4", "f8", "c8"]))
    if kind == 2:
        return np.zeros((2, 5), rng.choice(["i8", "i4"]))
    shape = rng.choice([(4,), (6,), (0,), (), (1, 5), (3, 5), (2, 4), (2, 6), (5, 2), (2, 5, 1), (1, 2, 5)])
    return rng.choice([np.ones(shape, bool), torch.ones(shape, dtype=torch.bool)])


def _path(rng, folder):
    return rng.choice(
        [
            *(None, 3, 1.5, [], {}, object(), Hostile(), print, b"\xff\xfe", "a\0b", "", "x" * 5000, np.zeros(2)),
            folder,
            folder / "missing",
            folder / "damaged",
            folder / "text",
            str(folder / "damaged"),
        ]
    )


def _device(rng):
    return rng.choice(["nowhere", "", "meta", "cpu:x", "cuda:99", 1.5, [], object(), Hostile(), torch.device("meta")])


def _digest(index):
    contents = index._contents()
    text = repr((len(index), contents.bits, contents.next_id)).encode()
    return hashlib.sha256(text + contents.ids.tobytes() + contents.rows.tobytes()).hexdigest()


@pytest.mark.parametrize("mapped", [False, True])
def test_bad_calls_name_the_argument_and_change_nothing(tmp_path, mapped):
    rng = random.Random(0)
    index = af.HammingIndex(BITS)
    index.add(np.zeros((5, 6), np.uint8), IDS)
    index.save(tmp_path / "whole")
    (tmp_path / "damaged").write_bytes((tmp_path / "whole").read_bytes()[:-1])
    (tmp_path / "text").write_text("{}" * 100)
    if mapped:
        index = af.HammingIndex.load(tmp_path / "whole")
    before = _digest(index)
    calls = {
        "codes": lambda bad: index.add(bad),
        "codes to save": lambda bad: af.HammingIndex.save_codes(tmp_path / "never", bad, BITS),
        "ids": lambda bad: index.add(CODES, bad),
        "ids to remove": lambda bad: index.remove(bad),
        "queries": lambda bad: index.search(bad, 2),
        "queries in range": lambda bad: index.range_search(bad, 2),
        "k": lambda bad: index.search(CODES, bad),
        "max_distance": lambda bad: index.search(CODES, 2, max_distance=bad),
        "radius": lambda bad: index.range_search(CODES, bad),
        "mask": lambda bad: index.search(CODES, 2, mask=bad),
        "mask in range": lambda bad: index.range_search(CODES, 2, mask=bad),
        "bits": lambda bad: af.HammingIndex(bad),
        "device": lambda bad: af.HammingIndex(BITS, bad),
        "device to go to": lambda bad: index.to(bad),
        "path to load": lambda bad: af.HammingIndex.load(bad),
        "path to map not": lambda bad: af.HammingIndex.load(bad, mmap=False),
        "path of .npy": lambda bad: af.HammingIndex.from_npy(bad, BITS),
    }
    bad_values = {
        "codes": lambda: _codes(rng),
        "ids": lambda: _ids(rng, [20, 21], rng.choice(IDS)),
        "ids to remove": lambda: _ids(rng, [3, 4, 9], 77),
        "queries": lambda: _codes(rng),
        "k": lambda: rng.choice([_numbers(rng), 0, None, _too_large(rng, MAX_K + 1)]),
        "max_distance": lambda: _numbers(rng),
        "radius": lambda: rng.choice([_numbers(rng), None]),
        "mask": lambda: _mask(rng),
        "bits": lambda: rng.choice([_numbers(rng), 0, None, _too_large(rng, 4097)]),
        "device": lambda: _device(rng),
        "path": lambda: _path(rng, tmp_path),
    }
    for number in range(10_000):
        what = rng.choice(list(calls))
        argument = what.split()[0]
        bad = bad_values.get(what, bad_values[argument])()
        try:
            result = calls[what](bad)
        except af.InputError as error:
            said = str(error)
        else:
            pytest.fail(f"call {number}: {what} took {af.errors.shown(bad)} and gave {af.errors.shown(result)}")
        assert "\n" not in said
        assert len(said) < 400 or argument == "path", said
        where = (argument, str(tmp_path), "index file", ".npy") if argument == "path" else (argument,)
        assert any(name in said for name in where), said
        assert _digest(index) == before
    assert not (tmp_path / "never").exists()
