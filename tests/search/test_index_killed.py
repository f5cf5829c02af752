"""Processes that are killed while they save: the file is whole each time, and what they leave behind is cleared up."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import agmh_fast as af

# Each saver is a fork: starting Python two hundred times would take minutes.
KILLER = """
import os, random, re, signal, sys, time
import numpy as np
import agmh_fast as af

folder, kills = sys.argv[1], int(sys.argv[2])
path = os.path.join(folder, "index")
rng, random = np.random.default_rng(0), random.Random(0)
indexes = {}
for rows in (300, 5000):
    indexes[rows] = af.HammingIndex(64)
    indexes[rows].add(rng.integers(0, 256, (rows, 8), dtype=np.uint8))
indexes[300].save(path)
found, left_over = set(), 0
for _ in range(kills):
    ready, child_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(child_ready, b".")
        while True:
            for index in indexes.values():
                index.save(path)
    os.read(ready, 1)
    time.sleep(random.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(child_ready)
    loaded = af.HammingIndex.load(path)
    assert np.array_equal(loaded.codes, indexes[len(loaded)].codes)
    assert np.array_equal(loaded.ids, indexes[len(loaded)].ids)
    found.add(len(loaded))
    others = set(os.listdir(folder)) - {"index"}
    assert all(re.fullmatch("[.]index[.][0-9a-f]{16}", name) for name in others), others
    assert len(others) <= 1, others  # the killed saver's; it had removed its predecessor's
    left_over += len(others)
assert found == {300, 5000}, found
assert left_over > kills / 10, "hardly any saver was killed while it wrote"
indexes[300].save(path)
assert os.listdir(folder) == ["index"]
print("survived")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_instant_while_saving(tmp_path):
    run = subprocess.run([sys.executable, "-c", KILLER, tmp_path, "210"], capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "survived", run.stderr


SAVERS = """
import os, sys
from agmh_fast.files import atomic_write

def save(text):
    for _ in range(200):
        with atomic_write(sys.argv[1]) as temporary:
            temporary.write_text(text)
    os._exit(0)

children = []
for text in ("one", "two", "three"):
    children.append(os.fork())
    if children[-1] == 0:
        save(text)
print([os.waitpid(child, 0)[1] for child in children])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_savers_side_by_side_leave_each_other_alone(tmp_path):
    """Each clears up what is left over before it writes, never what another is writing."""
    run = subprocess.run(
        [sys.executable, "-c", SAVERS, tmp_path / "index"], capture_output=True, text=True, timeout=300
    )
    assert run.stdout.strip() == "[0, 0, 0]", run.stderr
    assert (tmp_path / "index").read_text() in ("one", "two", "three")
    assert os.listdir(tmp_path) == ["index"]


def test_plain_arrays_are_written_the_same_way(tmp_path):
    """A left-over temporary file of a .npy goes with the next write; files with other names stay."""
    index = af.HammingIndex(8)
    index.add(np.zeros((2, 1), np.uint8))
    kept = [".codes.npy.note", ".other.0123456789abcdef", "codes.npy.0123456789abcdef", ".codes.npy.0123456789abcdeF"]
    for name in [*kept, ".codes.npy.0123456789abcdef"]:
        (tmp_path / name).write_text("")
    index.to_npy(tmp_path / "codes.npy")
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "codes.npy"])
