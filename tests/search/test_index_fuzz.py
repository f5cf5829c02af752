"""Random index files: each is refused in one line that names it, or is byte for byte what saving it gives.

Whole files are cut, spliced and edited, numbers in their headers above all; half of them get the right checksum again,
so that what lies behind it is reached. `make fuzz` gives more time and another start.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import struct
import time

import numpy as np

import agmh_fast as af

SECONDS = float(os.environ.get("AGMH_FAST_FUZZ_SECONDS", 3))
SEED = int(os.environ.get("AGMH_FAST_FUZZ_SEED", 0))
LEAST = 300
NUMBERS = [b"0", b"1", b"-1", b"00", b"1.0", b"1e3", b"9" * 5000, b"64", b"4096", b"4097", b"9223372036854775807"]
WORDS = [*NUMBERS, b"9223372036854775808", b"null", b"true", b"{}", b"[]", b'""', b"[" * 100_000, b"\xff", b'"\\ud800"']


def _whole_files(folder):
    files = []
    for bits, rows in ((1, 0), (12, 3), (48, 20), (64, 7), (100, 1), (4096, 2)):
        index = af.HammingIndex(bits)
        codes = np.random.default_rng(bits).integers(0, 2, (rows, bits), dtype=np.uint8)
        index.add(np.packbits(codes, axis=1), np.arange(rows) * 3)
        index.save(folder / "whole")
        files.append((folder / "whole").read_bytes())
    return files


def _edit(rng, data, other):
    """One small change."""
    data = bytearray(data)
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(8)
    if kind == 0 and data:
        data[at - 1] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        del data[at : at + rng.choice([1, 2, 8, 64])]
    elif kind == 3:
        data[at:at] = rng.choice([b"\0", b" ", b"\0" * 8, b" " * 64, rng.randbytes(rng.randrange(20))])
    elif kind == 4:
        data[at:] = other[rng.randrange(len(other) + 1) :]
    elif kind == 5:
        data[:8] = struct.pack("<Q", rng.choice([0, 1, len(data), len(data) - 8, len(data) - 7, 2**40, 2**64 - 1]))
    else:
        places = list(re.finditer(rb'\d+|"[a-z_]*"|"[A-Z]\d+"|\[[^\[\]]*\]', data[8:1000]))
        if places:
            place = rng.choice(places)
            number = str(int(place[0]) + rng.choice([-8, -1, 1, 2**32])).encode() if place[0].isdigit() else b"7"
            data[8 + place.start() : 8 + place.end()] = rng.choice([number, number, rng.choice(WORDS)])
            if rng.random() < 0.8:  # so that it is a header again
                length = struct.unpack("<Q", data[:8])[0] + len(data) - len(other)
                data[:8] = struct.pack("<Q", max(0, length) % 2**64)
    return bytes(data)


def _seal(data):
    """With the checksum that the contents have."""
    found = re.search(rb'"checksum":"([0-9a-f]{64})"', data[:2000])
    if not found:
        return data
    blank = data[: found.start(1)] + b"0" * 64 + data[found.end(1) :]
    return data[: found.start(1)] + hashlib.sha256(blank).hexdigest().encode() + data[found.end(1) :]


def test_random_files_are_refused_or_exactly_right(tmp_path):
    files = _whole_files(tmp_path)
    path, again = tmp_path / "random", tmp_path / "again"
    loaded = refused = 0
    reasons = set()
    end, seed = time.monotonic() + SECONDS, SEED
    while time.monotonic() < end or seed < SEED + LEAST:
        rng = random.Random(seed)
        data = rng.choice(files)
        for _ in range(rng.randrange(4)):
            data = _edit(rng, data, rng.choice([data, rng.choice(files)]))
        data = _seal(data) if rng.random() < 0.5 else data
        path.write_bytes(data)
        said = None
        try:
            index = af.HammingIndex.load(path, mmap=rng.random() < 0.5)
        except af.InputError as error:
            said = str(error)
        if said is None:
            index.save(again)
            assert again.read_bytes() == data, f"seed {seed}"
            loaded += 1
        else:
            assert str(path) in said, f"seed {seed}"
            assert "\n" not in said, f"seed {seed}"
            assert len(said) < 500, f"seed {seed}"
            reasons.add(re.sub(r"[0-9]+|'.*?'", "", said))
            refused += 1
        seed += 1
    assert refused > 50
    assert loaded > 5
    assert len(reasons) >= 6, reasons  # every check is reached
