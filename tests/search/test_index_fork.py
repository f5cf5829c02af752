"""Forks: a child searches on, whatever the parent's threads were doing, and workers share the processors.

Each script runs by itself with a time limit: what these tests are about would otherwise hang them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SETUP = """
import multiprocessing, os, sys, threading, warnings
import numpy as np
import torch
import agmh_fast as af

warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: they are what is tested
codes = np.random.default_rng(0).integers(0, 256, (30_000, 8), dtype=np.uint8)
index = af.HammingIndex(64)
index.add(codes)
af.set_num_threads(2)
queries = codes[:40].copy()
expected = index.search(queries, 5).ids
assert np.array_equal(expected[:, 0], np.arange(40))
torch.set_num_threads(2)
torch.ones(500, 500) @ torch.ones(500, 500)  # OpenMP has threads now
"""


def _run(code, timeout=60):
    run = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "done", run.stdout


def test_forked_children_search_and_change():
    _run("""
def child(number):
    found = np.array_equal(index.search(queries, 5).ids, expected)
    found &= np.array_equal(index.search(torch.from_numpy(queries), 5).ids.numpy(), expected)
    index.add(codes[:1], [100_000 + number])
    index.remove([1])
    return found and len(index) == 30_000

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert all(pool.map(child, range(2), chunksize=1))
assert len(index) == 30_000
print("done")
""")


def test_a_fork_beside_running_calls():
    """Without the wait for them, a child finds locks that nobody is left to open, or codes half added."""
    _run("""
stop = threading.Event()

def search():
    while not stop.is_set():
        index.search(queries, 5)

def change():
    while not stop.is_set():
        index.add(codes[:50], np.arange(50) + 50_000)
        index.remove(np.arange(50) + 50_000)

threads = [threading.Thread(target=target) for target in (search, search, change)]
for thread in threads:
    thread.start()
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        size = len(index)
        found = np.array_equal(index.search(queries, 5).ids[:, 0], np.arange(40))
        index.add(codes[:1], [90_000])
        index.remove([90_000])
        right = found and size in (30_000, 30_050) and len(index) == size == len(index.codes)
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
print("done")
""")


def test_workers_of_a_data_loader_search_with_one_thread_each():
    """What set_num_threads said is the parent's: four threads in each of many workers would get in each other's way."""
    _run("""
class Found(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, item):
        return index.search(torch.from_numpy(queries[item : item + 1]), 5).ids[0], af.get_num_threads()

af.set_num_threads(4)
loader = torch.utils.data.DataLoader(Found(), batch_size=8, num_workers=2, multiprocessing_context="fork")
ids, threads = (torch.cat(parts) for parts in zip(*loader))
assert np.array_equal(ids.numpy(), expected)
assert threads.tolist() == [1] * 40
assert af.get_num_threads() == 4
print("done")
""")
