"""Distance matrices, histograms and mean average precision on a CPU against faiss, NumPy and a loop of argsorts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contest import Side, cases
from hamming_contest import LOOP, argsort_precision, database, limit_of
from hamming_peers import affordable, distances, random_codes, required, words
from limits import Limit, Work, copy_rate
from targets import Target, scaled

import agmh_fast as af
from agmh_fast.reference import metrics as reference

CPU = torch.device("cpu")


@pytest.mark.benchmark(group="distance matrix, 1000 x 100k, 64 bits, against faiss.hammings (int32)")
@cases("dtype, least", [(torch.uint8, 2.5), (torch.int32, 1.0)], ids=str)
def test_distance_matrix(contest, dtype, least):
    faiss = required("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    queries, items = (random_codes(count, 64, seed) for seed, count in enumerate((1000, scaled(100_000))))
    q, x = torch.from_numpy(queries), torch.from_numpy(items)

    def matrix() -> torch.Tensor:
        return af.functional.hamming_distance(q, x, dtype=dtype)

    out = np.empty((len(queries), len(items)), np.int32)  # the caller's, so that faiss has no fresh memory to fetch

    def hammings() -> np.ndarray:
        faiss.hammings(
            *(faiss.swig_ptr(codes) for codes in (queries, items)), len(q), len(x), q.shape[1], faiss.swig_ptr(out)
        )
        return out

    assert matrix().dtype == dtype
    assert torch.equal(matrix().int(), torch.from_numpy(hammings()))
    pairs = len(queries) * len(items)
    size = queries.nbytes + items.nbytes + pairs * dtype.itemsize
    contest(
        {"agmh_fast": Side(matrix), "faiss.hammings": Side(hammings)},
        Work(size, pairs, "pair", 64), "faiss.hammings", Limit("copy bandwidth", seconds=size / copy_rate(CPU)),
        [Target("speedup", least=least)],
        bits=64, queries=len(queries), items=len(items), unit="a matrix",
    )  # fmt: skip


@pytest.mark.benchmark(group="histogram of distances, 1M items, 64 bits, Q=256, against NumPy")
@cases("labels", [False], [True])
def test_histogram(contest, labels):
    codes, index = database(64, scaled(1_000_000))
    block, rng = random_codes(256, 64, seed=1), np.random.default_rng(4)
    labels_q, labels_x = (torch.from_numpy(rng.integers(0, 200, count)) for count in (len(block), len(codes)))
    given = (labels_q, labels_x) if labels else (None, None)
    q, x, items = torch.from_numpy(block), torch.from_numpy(codes), words(codes)

    def ours() -> torch.Tensor:
        return af.functional.hamming_histogram(q, x, *given)

    def by_numpy(rows: np.ndarray) -> np.ndarray:
        """A bincount of every query's distances, once more of the items that share its label."""
        found = []
        for row in rows:
            away = distances(items, words(block)[row])
            parts = [away] + ([away[labels_x.numpy() == int(labels_q[row])]] if labels else [])
            found.append(np.stack([np.bincount(part, minlength=65) for part in parts], axis=-1))
        return np.stack(found) if labels else np.stack(found)[..., 0]

    few = affordable(by_numpy, np.arange(len(block)))
    assert np.array_equal(ours()[: len(few)].numpy(), by_numpy(few))
    contest(
        {
            "agmh_fast": Side(ours, len(block)),
            "NumPy": Side(lambda: by_numpy(few), len(few)),
            "limit": limit_of(index, block),
        },
        Work.search(len(block), len(codes), 64, 0), "NumPy", LOOP,
        bits=64, queries=len(block), items=len(codes), labels=labels,
    )  # fmt: skip


# 5794 x 5994 are CUB-200-2011's images; 116 931 x 29 200 are VegFru's.
METRICS = {"cub": (5_794, 5_994, 200), "vegfru": (116_931, 29_200, 292)}


@pytest.mark.benchmark(group="mAP, 48 bits, against a loop of argsorts")
@cases("sizes, ties", [(sizes, "stable") for sizes in METRICS], [(sizes, "expected") for sizes in METRICS])
def test_mean_average_precision(contest, sizes, ties):
    queries, items, classes = METRICS[sizes]
    queries, items = scaled(queries), scaled(items)
    rng = np.random.default_rng(4)
    codes_q, codes_x = (random_codes(count, 48, seed) for seed, count in enumerate((queries, items)))
    labels_q, labels_x = (torch.from_numpy(rng.integers(0, classes, count)) for count in (queries, items))
    signs_q, signs_x = (torch.from_numpy(af.unpack_codes(codes, 48)).float() for codes in (codes_q, codes_x))
    q, x = torch.from_numpy(codes_q), torch.from_numpy(codes_x)

    def ours(rows: np.ndarray) -> Any:
        return af.metrics.retrieval(q[: len(rows)], x, labels_q[: len(rows)], labels_x, bits=48, ties=ties)

    def loop(rows: np.ndarray) -> torch.Tensor:
        return argsort_precision(signs_q[rows], signs_x, labels_q[rows], labels_x)

    # All of them, unless that is far from the target: then as many as leave time for the other rows.
    block = affordable(ours, np.arange(queries), least=1000, budget=2.0)
    found = ours(block).per_query_ap
    for row in (0, len(block) // 2, len(block) - 1):
        of_query = distances(words(codes_x), words(codes_q)[row]).tolist()
        relevant = (labels_x == labels_q[row]).tolist()
        exact = reference.average_precision_of_query(of_query, relevant, ties)
        assert float(found[row]) == pytest.approx(exact, rel=1e-12)
        # The loop's ranks and counts are whole numbers; only the mean over them is rounded, in float32.
        stable = reference.average_precision_of_query(of_query, relevant, "stable")
        assert float(loop(np.array([row]))[0]) == pytest.approx(stable, rel=1e-5)
    few = affordable(loop, np.arange(queries))
    index = af.HammingIndex(48)
    index.add(codes_x)
    contest(
        {
            "agmh_fast": Side(lambda: ours(block), len(block)),
            "argsort loop": Side(lambda: loop(few), len(few)),
            "limit": limit_of(index, codes_q[: len(block)]),
        },
        Work.search(len(block), items, 48, 0), "argsort loop", LOOP,
        [Target("speedup", least=200.0)] if sizes == "cub" else [Target("seconds", most=0.5)],
        lambda medians: {"seconds": medians["agmh_fast"] * queries},
        bits=48, queries=queries, items=items, classes=classes, ties=ties,
    )  # fmt: skip
