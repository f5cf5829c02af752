"""`agmh_fast.metrics.retrieval` against the brute force, the published loop, and itself under permutation."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agmh_fast.errors import InputError
from agmh_fast.metrics import RetrievalMetrics, retrieval
from agmh_fast.reference import metrics as reference

# Means over at most a few hundred float64 values, each good to 1e-12 (see test_average_precision.py).
CLOSE = 1e-12
RULES = ("stable", "expected", "optimistic", "pessimistic")
NORMALISATIONS = ("retrieved", "attainable")


def random_case(seed, queries, items, bits, classes, multi_label=False):
    """Packed codes with many ties and labels of which some queries have none in the database."""
    generator = np.random.default_rng(seed)
    codes = [np.packbits(generator.random((n, bits)) < 0.5, axis=1) for n in (queries, items)]
    if multi_label:
        labels = [(generator.random((n, classes)) < 1.5 / classes).astype(np.int64) for n in (queries, items)]
    else:
        labels = [generator.integers(0, classes + extra, n) for n, extra in ((queries, 1), (items, 0))]
    return (*codes, *labels)


def distances_and_relevance(query_codes, database_codes, query_labels, database_labels):
    """(Q, N) distances and relevance, from the definitions."""
    q, x = np.unpackbits(query_codes, axis=1), np.unpackbits(database_codes, axis=1)
    distances = (q[:, None] != x[None]).sum(2)
    relevant = reference.relevance(torch.from_numpy(query_labels), torch.from_numpy(database_labels))
    return torch.from_numpy(distances), relevant


def assert_matches_reference(result: RetrievalMetrics, distances, relevant, bits):
    """Every number of the result."""
    rows = list(zip(distances.tolist(), relevant.tolist(), strict=True))
    rule = (result.ties, result.k, result.normalise)
    per_query = [reference.average_precision_of_query(d, r, *rule) for d, r in rows]
    assert np.asarray(result.per_query_ap).tolist() == pytest.approx(per_query, abs=CLOSE)
    assert result.map == pytest.approx(np.mean(per_query), abs=CLOSE)
    for cutoff in result.precision_at:
        hits = [reference.hits_at(d, r, cutoff, result.ties) for d, r in rows]
        recalls = [h / max(1, sum(r)) for h, (_, r) in zip(hits, rows, strict=True)]
        assert result.precision_at[cutoff] == pytest.approx(np.mean(hits) / cutoff, abs=CLOSE)
        assert result.recall_at[cutoff] == pytest.approx(np.mean(recalls), abs=CLOSE)
    precision, recall = reference.precision_recall_by_radius(distances, relevant, bits)
    assert np.asarray(result.pr_curve.precision).tolist() == pytest.approx(precision.tolist(), abs=CLOSE)
    assert np.asarray(result.pr_curve.recall).tolist() == pytest.approx(recall.tolist(), abs=CLOSE)
    assert result.precision_radius2 == pytest.approx(precision[min(2, bits)].item(), abs=CLOSE)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("ties", RULES)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 4),
    items=st.integers(1, 30),
    bits=st.integers(1, 9),
    classes=st.integers(1, 5),
    k=st.one_of(st.none(), st.integers(1, 35)),
)
def test_matches_reference(ties, normalise, multi_label, seed, queries, items, bits, classes, k):
    case = random_case(seed, queries, items, bits, classes, multi_label)
    result = retrieval(*case, bits=bits, ties=ties, k=k, cutoffs=(1, 3, 10, 50), normalise=normalise)
    assert_matches_reference(result, *distances_and_relevance(*case), bits)


@pytest.mark.parametrize("k", [None, 1, 40, 1000])
def test_stable_is_the_published_loop(k):
    case = random_case(3, queries=50, items=300, bits=12, classes=20)
    distances, relevant = (matrix.numpy() for matrix in distances_and_relevance(*case))
    scores = []
    for row in range(50):
        found = relevant[row][np.argsort(distances[row], kind="stable")][:k]
        ranks = np.flatnonzero(found) + 1
        scores.append(np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else 0.0)
    result = retrieval(*case, bits=12, k=k)
    assert result.per_query_ap.tolist() == pytest.approx(scores, abs=CLOSE)
    assert result.map == pytest.approx(np.mean(scores), abs=CLOSE)


def test_by_hand():
    # Distances 0, 1, 1, 3 from the query; the items at 1 are irrelevant and relevant, in this order.
    database = np.packbits([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 1]], axis=1)
    query, labels = np.packbits([[0, 0, 0]], axis=1), np.array([5, 9, 5, 5])
    scores = {ties: retrieval(query, database, np.array([5]), labels, bits=3, ties=ties).map for ties in RULES}
    worst, best = (1 + 2 / 3 + 3 / 4) / 3, (1 + 1 + 3 / 4) / 3
    assert scores == pytest.approx(
        {"stable": worst, "expected": (worst + best) / 2, "optimistic": best, "pessimistic": worst}, abs=CLOSE
    )
    result = retrieval(query, database, np.array([5]), labels, bits=3, cutoffs=(2, 4, 10))
    assert result.precision_at == pytest.approx({2: 1 / 2, 4: 3 / 4, 10: 3 / 10}, abs=CLOSE)
    assert result.recall_at == pytest.approx({2: 1 / 3, 4: 1, 10: 1}, abs=CLOSE)
    assert result.pr_curve.precision.tolist() == pytest.approx([1, 2 / 3, 2 / 3, 3 / 4], abs=CLOSE)
    assert result.pr_curve.recall.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1], abs=CLOSE)
    assert result.precision_radius2 == pytest.approx(2 / 3, abs=CLOSE)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(1, 60),
    bits=st.integers(1, 6),
    k=st.one_of(st.none(), st.integers(1, 60)),
)
def test_bounds_hold_and_only_stable_knows_the_order(normalise, seed, items, bits, k):
    query_codes, database_codes, query_labels, database_labels = random_case(seed, 5, items, bits, classes=3)
    shuffle = np.random.default_rng(seed).permutation(items)
    first = None
    for order in (np.arange(items), shuffle):
        database = database_codes[order], query_labels, database_labels[order]
        score = {
            ties: retrieval(query_codes, *database, bits=bits, ties=ties, k=k, cutoffs=(1, 7), normalise=normalise)
            for ties in RULES
        }
        for between in ("stable", "expected"):
            assert (score["pessimistic"].per_query_ap <= score[between].per_query_ap + CLOSE).all()
            assert (score[between].per_query_ap <= score["optimistic"].per_query_ap + CLOSE).all()
            for cutoff in (1, 7):
                low, middle, high = (score[t].precision_at[cutoff] for t in ("pessimistic", between, "optimistic"))
                assert low - CLOSE <= middle <= high + CLOSE
        first = first or score
        for ties in RULES[1:]:
            assert score[ties].as_dict() == first[ties].as_dict()


@pytest.mark.parametrize("k", [None, 11])
def test_expected_is_the_mean_over_shuffled_databases(k):
    query_codes, database_codes, query_labels, database_labels = random_case(5, 30, 60, bits=3, classes=4)
    expected = retrieval(query_codes, database_codes, query_labels, database_labels, bits=3, ties="expected", k=k)
    generator, scores = np.random.default_rng(0), []
    for _ in range(400):
        order = generator.permutation(60)
        scores.append(
            retrieval(query_codes, database_codes[order], query_labels, database_labels[order], bits=3, k=k).map
        )
    # Five standard errors of the mean of 400 draws.
    assert abs(expected.map - np.mean(scores)) < 5 * np.std(scores) / 20


@pytest.mark.parametrize("ties", RULES)
@pytest.mark.parametrize("k", [None, 20])
def test_query_chunks_change_nothing(monkeypatch, ties, k):
    case = random_case(6, queries=23, items=80, bits=8, classes=5)
    whole = retrieval(*case, ties=ties, k=k)
    monkeypatch.setattr("agmh_fast.metrics.evaluation._HISTOGRAM_ELEMENTS", 9 * 8)
    monkeypatch.setattr("agmh_fast.metrics.evaluation._CLOSED_FORM_ELEMENTS", 9 * 3)
    parts = retrieval(*case, ties=ties, k=k)
    assert parts.per_query_ap.tolist() == whole.per_query_ap.tolist()
    assert parts.precision_at == whole.precision_at
    assert parts.recall_at == whole.recall_at
    assert parts.pr_curve.precision.tolist() == pytest.approx(whole.pr_curve.precision.tolist(), abs=CLOSE)
    assert parts.pr_curve.recall.tolist() == pytest.approx(whole.pr_curve.recall.tolist(), abs=CLOSE)


@pytest.mark.parametrize("ties", RULES)
def test_torch_gives_torch_and_the_same_numbers(ties):
    case = random_case(7, queries=9, items=40, bits=10, classes=4)
    from_numpy = retrieval(*case, bits=10, ties=ties)
    from_torch = retrieval(*(torch.from_numpy(array) for array in case), bits=10, ties=ties)
    assert isinstance(from_numpy.per_query_ap, np.ndarray)
    assert isinstance(from_numpy.pr_curve.precision, np.ndarray)
    assert isinstance(from_torch.per_query_ap, torch.Tensor)
    assert isinstance(from_torch.pr_curve.recall, torch.Tensor)
    assert from_torch.per_query_ap.tolist() == from_numpy.per_query_ap.tolist()
    assert from_torch.as_dict() == from_numpy.as_dict()


def test_inputs_in_odd_layouts():
    case = random_case(8, queries=6, items=33, bits=16, classes=3)
    plain = retrieval(*case).as_dict()
    read_only = [array.copy() for array in case]
    for array in read_only:
        array.flags.writeable = False
    assert retrieval(*read_only).as_dict() == plain
    assert retrieval(*(np.repeat(array, 2, axis=0)[::2] for array in case)).as_dict() == plain
    narrow = [*case[:2], *(labels.astype(np.uint8) for labels in case[2:])]
    assert retrieval(*narrow).as_dict() == plain
    negative = [*case[:2], *(labels - 2**40 for labels in case[2:])]
    assert retrieval(*negative).as_dict() == plain


def test_multi_hot_of_one_class_is_the_single_label():
    query_codes, database_codes, query_labels, database_labels = random_case(9, 8, 50, bits=8, classes=4)
    multi_hot = [np.eye(5, dtype=bool)[labels] for labels in (query_labels, database_labels)]
    for ties in RULES:
        single = retrieval(query_codes, database_codes, query_labels, database_labels, ties=ties)
        assert retrieval(query_codes, database_codes, *multi_hot, ties=ties).as_dict() == single.as_dict()


def test_nothing_relevant_scores_zero():
    codes, labels = np.zeros((3, 1), np.uint8), np.arange(3)
    for ties in RULES:
        for normalise in NORMALISATIONS:
            result = retrieval(codes, codes, labels, labels + 10, ties=ties, k=2, normalise=normalise)
            assert result.map == 0
            assert not any(result.recall_at.values())
            assert not any(result.precision_at.values())
            assert not result.pr_curve.precision.any()


def test_the_result_states_its_definition():
    codes, labels = np.zeros((3, 2), np.uint8), np.arange(3)
    whole = retrieval(codes, codes, labels, labels, bits=12)
    assert whole.definition == (
        "mAP of 3 queries over 3 database items at 12 bits; ties: stable (ranked by (distance, database position)); "
        "AP divides by the query's relevant items; a query without a relevant item counts 0"
    )
    top = retrieval(codes, codes, labels, labels, bits=12, ties="expected", k=2)
    assert "mAP@2 " in top.definition
    assert "expected" in top.definition
    assert "divides by the relevant items within k" in top.definition
    other = retrieval(codes, codes, labels, labels, bits=12, k=2, normalise="attainable")
    assert "divides by min(k, the query's relevant items)" in other.definition
    assert (top.ties, top.k, top.normalise, top.bits) == ("expected", 2, "retrieved", 12)
    assert json.loads(json.dumps(top.as_dict()))["map"] == top.map
    with pytest.raises(dataclasses.FrozenInstanceError):
        top.map = 1.0


CODES, LABELS = np.zeros((4, 2), np.uint8), np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"query_labels": LABELS[:3]}, "query_labels"),
        ({"database_labels": LABELS[:3]}, "database_labels"),
        ({"query_codes": CODES[:0], "query_labels": LABELS[:0]}, "query_codes"),
        ({"database_codes": CODES[:0], "database_labels": LABELS[:0]}, "database_codes"),
        ({"database_codes": CODES[:, :1]}, "database_codes"),
        ({"query_codes": CODES[:, :0]}, "query_codes"),
        ({"query_codes": CODES[0]}, "query_codes"),
        ({"query_codes": CODES.astype(np.int64)}, "query_codes"),
        ({"query_codes": CODES.tolist()}, "query_codes"),
        ({"query_labels": LABELS.tolist()}, "query_labels"),
        ({"query_labels": LABELS.astype(np.float32)}, "query_labels"),
        ({"query_labels": LABELS.astype(str)}, "query_labels"),
        ({"query_labels": np.zeros((4, 3), bool)}, "database_labels"),
        ({"query_labels": np.zeros((4, 3), bool), "database_labels": np.zeros((4, 2), bool)}, "database_labels"),
        ({"query_labels": np.zeros((4, 3, 1), bool)}, "query_labels"),
        ({"query_labels": np.zeros((4, 0), bool)}, "query_labels"),
        ({"bits": 17}, "query_codes"),
        ({"bits": 0}, "bits"),
        ({"bits": 8}, "query_codes"),
        ({"query_codes": CODES + 1, "bits": 12}, "query_codes"),
        ({"ties": "random"}, "ties"),
        ({"normalise": "R"}, "normalise"),
        ({"k": 0}, "k"),
        ({"k": 1.5}, "k"),
        ({"cutoffs": (10, 0)}, "cutoffs"),
    ],
)
def test_bad_input_is_named(changes, names):
    given = {"query_codes": CODES, "database_codes": CODES, "query_labels": LABELS, "database_labels": LABELS}
    with pytest.raises(InputError, match=rf"^{names}\b") as error:
        retrieval(**{**given, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.parametrize("ties", RULES)
@pytest.mark.parametrize("k", [None, 30])
def test_cuda_agrees_with_cpu(ties, k):
    case = [torch.from_numpy(array) for array in random_case(10, queries=40, items=500, bits=24, classes=6)]
    on_cpu, on_gpu = retrieval(*case, ties=ties, k=k), retrieval(*(t.cuda() for t in case), ties=ties, k=k)
    assert on_gpu.per_query_ap.is_cuda
    torch.testing.assert_close(on_gpu.per_query_ap.cpu(), on_cpu.per_query_ap, rtol=0, atol=CLOSE)
    assert on_gpu.precision_at == pytest.approx(on_cpu.precision_at, abs=CLOSE)
