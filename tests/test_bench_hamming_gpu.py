"""The bench of Hamming search on GPUs, without one: its rows, their bounds, who can answer, and what is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import served_by

import agmh_fast as af
from agmh_fast.ops import hamming

BENCH = Path(__file__).resolve().parents[1] / "bench"
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch):
    pytest.importorskip("agmh_fast._engine", reason="needs the compiled engine")
    if not hasattr(np, "bitwise_count"):
        pytest.skip("needs NumPy 2")
    monkeypatch.syspath_prepend(str(BENCH))
    import hamming_gpu

    return hamming_gpu


def test_bounds_are_memory_for_one_query_and_population_counts_for_many(bench):
    bandwidth, popcounts = 3e12, 16 * 132 * 1.755e9
    # csrc/hamming/cuda/README.md: 100 million codes of 64 bits are 0.8 GB; a pair takes two population counts.
    assert bench.Row(64, 10**8, 1, 100).bound(bandwidth, popcounts) == pytest.approx(0.8e9 / bandwidth, rel=1e-4)
    assert bench.Row(64, 10**7, 1000, 100).bound(bandwidth, popcounts) == pytest.approx(2e10 / popcounts)
    # A whole ranking is bound by its results.
    assert bench.Row(64, 10**6, 1, 10**6).bound(bandwidth, 1e30) == pytest.approx((8e6 + 12e6) / bandwidth)
    counts = {bits: bench.Row(bits, 1, 1, 1).popcounts for bits in (16, 32, 48, 64, 128, 192, 256, 512, 1024)}
    assert counts == {16: 1, 32: 1, 48: 2, 64: 2, 128: 3, 192: 4, 256: 4, 512: 8, 1024: 16}


def test_a_row_that_does_not_fit_says_how_much_it_needs(bench):
    row = bench.Row(64, 10**9, 1, 100)
    assert row.obstacle(80 * 10**9) is None
    assert row.obstacle(8 * 10**9) == "needs 10.1 GB of device memory, 8.0 GB are free"
    # Codes of 48 bits are padded beside the given ones.
    assert bench.Row(48, 10**9, 1, 1).bytes - bench.Row(64, 10**9, 1, 1).bytes == 6 * 10**9


def test_the_rows_span_what_is_asked_for(bench):
    rows = bench.ROWS
    assert len(set(rows)) == len(rows)
    assert {row.queries for row in rows} >= {1, 16, 256, 1000, 10_000}
    assert {row.bits for row in rows} == {16, 32, 48, 64, 128, 256, 512, 1024}
    assert {row.items for row in rows} == {10**6, 10**7, 10**8, 10**9}
    assert {10, 2048, 65_536} <= {row.k for row in rows}
    assert any(row.k == row.items for row in rows)
    assert sorted(row.queries for row in rows if row.targets()) == [1, 1, 1000]


@pytest.mark.parametrize("bits", [16, 48, 64, 128])
def test_everyone_finds_the_nearest(bench, bits):
    x, q = bench.random_rows(600, bits, 0, CPU), bench.random_rows(9, bits, 1, CPU)
    right = hamming.hamming_topk(q, x, 20, bits, impl="reference")
    for make in (bench.ours, bench.torch_operators, bench.sign_product):
        bench.assert_nearest(make(x, bits, 20).search(q[:5]), right, q, x, bits)
    bench.assert_exact(bench.ours(x, bits, 20).search(q), q, x, bits, 20)


def test_random_rows_fill_their_bits_and_no_others(bench):
    codes = bench.random_rows(2000, 12, 0, CPU)
    assert np.bitwise_or.reduce(codes.numpy()).tolist() == [0xFF, 0xF0]
    assert not torch.equal(codes, bench.random_rows(2000, 12, 1, CPU))


@pytest.mark.parametrize("wrong", ["distance", "id", "twice"])
def test_a_wrong_answer_is_noticed(bench, wrong):
    x, q = bench.random_rows(500, 16, 0, CPU), bench.random_rows(3, 16, 1, CPU)
    right = hamming.hamming_topk(q, x, 30, 16, impl="reference")
    distances, ids = (part.clone() for part in right)
    if wrong == "distance":
        distances[0, 7] += 1
    elif wrong == "id":
        ids[0] = ids[0].flip(0)
    else:
        ids[0, 1] = ids[0, 0]
    with pytest.raises(AssertionError):
        bench.assert_exact((distances, ids), q, x, 16, 30)
    with pytest.raises(AssertionError):
        bench.assert_nearest((distances, ids), right, q, x, 16)


def test_overlap_is_the_share_that_was_hidden(bench):
    assert bench.overlap(10, 10, 4) == 1
    assert bench.overlap(14, 10, 4) == 0
    assert bench.overlap(12, 4, 10) == 0.5


@pytest.mark.parametrize(("row", "arguments"), [("test_streamed", ()), ("test_short_codes", (12, 100, 10))])
def test_rows_of_an_index_run_on_tensors(bench, monkeypatch, row, arguments):
    """All of a row but its times, on the CPU served as a GPU is."""
    import test_hamming_gpu as rows

    monkeypatch.setattr(rows, "DEVICE", CPU)
    monkeypatch.setattr(rows, "_free_memory", lambda: None)
    monkeypatch.setattr(rows, "scaled", lambda count: 20_000)
    monkeypatch.setattr(rows, "ours", lambda x, bits, k, impl: bench.ours(x, bits, k))
    ran = []

    def contest(sides, work, against=None, limit=None, targets=(), figures=lambda medians: {}, **facts):
        for side in sides.values():
            side.run()
        ran.extend(sides)
        assert set(figures(dict.fromkeys(sides, 1.0))) == {target.figure for target in targets}

    with served_by("tensors"):
        if row == "test_streamed":
            # On one device the index would be where it is to go.
            monkeypatch.setattr(rows.af.HammingIndex, "to", moved_to_pieces)
        getattr(rows, row)(contest, *arguments)
    assert ran[0] == "agmh_fast"


def moved_to_pieces(index, device, device_memory):
    return af.HammingIndex._of(index._contents(), None, device, 40_000)


def test_peers_that_cannot_search_say_why(bench):
    row = bench.Row(48, 500, 4, 3000)
    present, absent = bench.rivals(row, bench.random_rows(500, 48, 0, CPU), 10**12)
    assert list(present) == ["torch operators", "±1 half product, topk"]
    assert absent["cupy"] == "takes whole 64-bit words"
    assert absent["faiss"].startswith("takes k up to 2048")
    assert "cuvs" in absent
    _, absent = bench.rivals(row, bench.random_rows(500, 48, 0, CPU), row.bytes)
    assert absent["product"].startswith("needs 0 GB")
    # Without the packages of a GPU.
    _, absent = bench.rivals(bench.Row(64, 500, 4, 9), bench.random_rows(500, 64, 0, CPU), 10**12)
    assert set(absent) == {"cupy", "faiss", "cuvs"}


def test_a_back_end_is_asked_for_while_a_search_runs(bench, monkeypatch):
    import back_ends

    monkeypatch.setenv("AGMH_FAST_CUDA_ISA", "popc")
    asked = []
    monkeypatch.setattr(hamming, "hamming_topk", lambda *_, **__: asked.append(os.environ["AGMH_FAST_CUDA_ISA"]))
    x = bench.random_rows(50, 64, 0, CPU)
    bench.by_back_end(x, 64, 5, "bmma").search(x)
    assert asked == ["bmma"]
    assert os.environ["AGMH_FAST_CUDA_ISA"] == "popc"
    with pytest.raises(ZeroDivisionError), back_ends.back_end("bmma"):
        raise ZeroDivisionError
    assert os.environ["AGMH_FAST_CUDA_ISA"] == "popc"
    assert back_ends.sieves(CPU) == []


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_probe_counts_as_many_bits_as_it_says(bench, monkeypatch, capability):
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "kernels"))
    import popcount_probe
    from triton_compile import compile_launch, recording

    with recording() as launches:
        popcount_probe.count(torch.empty(1024, dtype=torch.int32, device="meta"))
    code = compile_launch(launches[0], capability)
    # 1024 numbers of a block of 128 threads; the loop of rounds may be unrolled.
    a_round = 1024 // 128 * popcount_probe.COUNTS_OF_A_THREAD // 256
    assert code.count("POPC") % a_round == 0
    assert code.count("POPC") > 0
    assert code.spills == 0


def test_without_a_gpu_or_time_rows_are_skipped_and_say_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    command += ["bench/test_hamming_gpu.py", "bench/test_hamming_cases.py::test_latency"]
    environment = {**os.environ, "AGMH_BENCH_SECONDS": "0"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=BENCH.parent, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "needs a CUDA device: make gpu" in run.stdout
    assert "the 0 s of AGMH_BENCH_SECONDS are over" in run.stdout
    assert "passed" not in run.stdout
