"""What the bench of Hamming search is made of: peers that answer right, checks that notice wrong answers, verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agmh_fast import HammingIndex, functional

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


@pytest.fixture
def peers():
    pytest.importorskip("agmh_fast._engine", reason="needs the compiled engine")
    if not hasattr(np, "bitwise_count"):
        pytest.skip("needs NumPy 2")
    import hamming_peers

    return hamming_peers


@pytest.fixture
def targets():
    import targets

    return targets


@pytest.mark.parametrize("bits", [5, 12, 16, 24, 32, 48, 64, 128, 200])
def test_the_exact_answer_is_the_reference_implementations(peers, bits):
    codes, queries = peers.random_codes(300, bits, seed=0), peers.random_codes(5, bits, seed=1)
    expected = functional.hamming_topk(queries, codes, 40, bits, impl="reference")
    for part, reference in zip(peers.exact(codes, queries, 40), expected, strict=True):
        assert part.dtype == np.int32 or part.dtype == np.int64
        assert np.array_equal(part, reference)


def test_random_codes_fill_their_bits_and_no_others(peers):
    codes = peers.random_codes(2000, 12, seed=0)
    assert codes.shape == (2000, 2)
    assert np.bitwise_or.reduce(codes).tolist() == [0xFF, 0xF0]
    assert np.array_equal(codes, peers.random_codes(2000, 12, seed=0))
    assert not np.array_equal(codes, peers.random_codes(2000, 12, seed=1))


def make_peer(peers, name, codes, bits, k):
    if name == "agmh_fast":
        index = HammingIndex(bits)
        index.add(codes)
        return peers.ours(index, k)
    if name.startswith("faiss"):
        return peers.faiss_flat(codes, k, 100)[int(name[-1])]
    return peers.PEERS[name](codes, bits, k)


@pytest.mark.parametrize("bits", [64, 256])
@pytest.mark.parametrize("name", ["agmh_fast", "faiss 0", "faiss 1", "faiss 2", "faiss 3", "numpy", "torch", "usearch"])
def test_every_peer_finds_the_nearest(peers, name, bits):
    codes, queries = peers.random_codes(700, bits, seed=0), peers.random_codes(100, bits, seed=1)
    found = make_peer(peers, name, codes, bits, 20).search(queries)
    peers.assert_nearest(found, peers.exact(codes, queries, 20), codes, queries)


def test_faiss_is_asked_in_every_way_that_makes_a_difference(peers):
    names = [peer.name for peer in peers.faiss_flat(peers.random_codes(50, 64, seed=0), 5, 1000)]
    assert len(set(names)) == 4
    assert sum("heap" in name for name in names) == 2
    assert len(peers.faiss_flat(peers.random_codes(50, 64, seed=0), 5, 16)) == 2


@pytest.mark.parametrize("wrong", ["distance", "id", "order of ties"])
def test_a_wrong_answer_of_ours_is_noticed(peers, wrong):
    codes, queries = peers.random_codes(500, 8, seed=0), peers.random_codes(9, 8, seed=1)
    found = distances, ids = peers.exact(codes, queries, 30)
    peers.assert_exact(found, codes, queries, 30)
    if wrong == "distance":
        distances[4, 7] += 1
    elif wrong == "id":
        ids[8, 0] = ids[8, -1]
    else:
        tie = int(np.flatnonzero(distances[0, 1:] == distances[0, :-1])[0])
        ids[0, [tie, tie + 1]] = ids[0, [tie + 1, tie]]
    with pytest.raises(AssertionError):
        peers.assert_exact(found, codes, queries, 30)


def test_a_peer_may_order_ties_its_own_way_but_not_err(peers):
    codes, queries = peers.random_codes(500, 8, seed=0), peers.random_codes(9, 8, seed=1)
    ours = peers.exact(codes, queries, 30)
    tie = int(np.flatnonzero(ours[0][0, 1:] == ours[0][0, :-1])[0])

    def theirs():
        return tuple(part.copy() for part in ours)

    distances, ids = theirs()
    ids[0, [tie, tie + 1]] = ids[0, [tie + 1, tie]]
    peers.assert_nearest((distances[:4], ids[:4]), ours, codes, queries)
    ids[0, tie + 1] = ids[0, tie]
    with pytest.raises(AssertionError):
        peers.assert_nearest((distances, ids), ours, codes, queries)
    distances, ids = theirs()
    ids[1] = np.roll(ids[1], 11)
    with pytest.raises(AssertionError):
        peers.assert_nearest((distances, ids), ours, codes, queries)
    distances, ids = theirs()
    distances[8, -1] += 1
    with pytest.raises(AssertionError):
        peers.assert_nearest((distances, ids), ours, codes, queries)


def test_a_slow_peer_gets_fewer_queries_and_the_fastest_is_chosen(peers, monkeypatch):
    """With a clock that each query moves: 10 ms slow, 1 ms fast, and a call costs 20 ms beside them."""
    now, queries = [0.0], np.zeros((500, 8), np.uint8)

    def taking(each):
        def search(block):
            now[0] += 0.02 + each * len(block)

        return search

    monkeypatch.setattr(peers.time, "perf_counter", lambda: now[0])
    slow, fast = peers.Peer("slow", taking(0.01)), peers.Peer("fast", taking(0.001))
    # 8 queries take 0.1 s, so 0.25 s allow for 20.
    assert len(peers.affordable(slow.search, queries)) == 20
    assert len(peers.affordable(slow.search, queries, least=32)) == 32
    assert len(peers.affordable(fast.search, queries[:10])) == 10
    chosen, block = peers.fastest([slow, fast, slow], queries)
    assert chosen is fast
    assert len(block) == int(0.25 / 0.028 * 8)
    near = peers.Peer("near", taking(0.0012))
    assert peers.fastest([near, fast], queries)[0] is peers.fastest([fast, near], queries)[0] is fast


def test_the_distance_loop_takes_what_an_index_holds(peers):
    """Rows of 48 bits lie padded in an index, queries come packed."""
    codes = peers.random_codes(100, 48, seed=0)
    index = HammingIndex(48)
    index.add(codes)
    assert peers.distance_loop(index).search(codes[:3]) is None
    with pytest.raises(TypeError, match="adjoining"):
        peers._engine.distance_loop(64, codes[:3], index.codes, 1)


def test_targets_are_those_of_the_table(targets):
    def of(*case):
        return {t.figure: t.least for t in targets.topk_targets(*case)}

    assert of(64, 16, 100) == {"speedup": 12}
    assert of(64, 256, 10) == of(64, 1000, 100) == {"speedup": 16, "of_limit": 1}
    assert of(64, 256, 1000) == {}
    assert of(64, 1000, 1000) == {"speedup": 15, "of_limit": 0.8}
    assert of(64, 1000, 10_000) == {"of_limit": 0.35}
    assert [of(bits, 256, 1000) for bits in (128, 256, 512, 1024)] == [{"speedup": s} for s in (10, 10, 6.5, 5)]
    assert of(32, 1000, 100) == {"speedup": 20}
    assert of(16, 1000, 100) == of(24, 1000, 100) == of(48, 1000, 100) == {"speedup": 60}
    assert of(12, 1000, 100) == of(96, 256, 100) == of(128, 16, 100) == {}


def test_verdicts_say_what_was_missed(targets):
    measured = {"speedup": 11.5, "us": 8.0, "other": 1.0}
    both = [targets.Target("speedup", least=12.0), targets.Target("us", most=8.0)]
    recorded = targets.judged(both, measured)
    assert recorded == {
        "targets": [
            {"figure": "speedup", "least": 12.0, "measured": 11.5, "met": False},
            {"figure": "us", "most": 8.0, "measured": 8.0, "met": True},
        ],
        "targets_met": False,
    }
    assert targets.described(recorded["targets"]) == "speedup 11.5 MISSES >= 12, us 8 meets <= 8"
    assert targets.judged(both[1:], measured)["targets_met"]
    assert targets.judged([], measured) == {}


def test_a_trial_shrinks_databases_but_not_to_nothing(targets, monkeypatch):
    assert targets.scaled(1000) == 1000
    monkeypatch.setattr(targets, "SCALE", 0.01)
    assert [targets.scaled(count) for count in (1_000_000, 10_000, 100)] == [10_000, 512, 100]


def _searched(name, bits, queries, **other):
    row = {"bits": bits, "queries": queries, "k": 100, "items": 10**6, "scale": 1, "limit": "distance loop"}
    return {"name": f"test_{name}[{bits}-{queries}]", **row, **other}


ROWS = [
    _searched("topk", 64, 256, of_limit=1.5),
    _searched("share_of_the_limit", 64, 16, of_limit=0.5),
    _searched("topk", 32, 16, of_limit=0.7),
    _searched("topk", 64, 1, of_limit=9.0, k=10),
    _searched("topk", 64, 1, of_limit=9.0, scale=0.01),
    # Masked, and on a GPU.
    _searched("masked", 64, 1, of_limit=9.0),
    _searched("topk", 64, 1, of_limit=9.0, limit="memory or population counts"),
]


def _in_a_run(row, recorded):
    return row if recorded else {"name": row["name"], "extra_info": row}


@pytest.mark.parametrize("recorded", [False, True])
def test_the_picture_has_a_line_for_each_width(recorded, tmp_path):
    pytest.importorskip("matplotlib")
    import plot_hamming

    run = {"benchmarks": [_in_a_run(row, recorded) for row in ROWS]}
    assert plot_hamming.shares(run) == {32: [(16, 0.7)], 64: [(16, 0.5), (256, 1.5)]}
    source, picture = tmp_path / "run.json", tmp_path / "out.png"
    source.write_text(json.dumps(run))
    assert plot_hamming.main([str(source), str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "content", ['{"benchmarks": []}', '{"benchmarks": [{"name": "test_sum", "extra_info": {}}]}', "not JSON"]
)
def test_a_run_without_searches_is_refused_in_one_line(content, tmp_path, capsys):
    import plot_hamming

    source, picture = tmp_path / "run.json", tmp_path / "out.png"
    source.write_text(content)
    assert plot_hamming.main([str(source), str(picture)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not picture.exists()


@pytest.fixture
def rows(peers):
    import hamming_contest

    return hamming_contest


@pytest.mark.parametrize("order", ["descending", "equal", "duplicates"])
def test_adversarial_orders_are_what_they_are_called(peers, rows, order):
    hard, easy, queries = rows.adversary(order, 2000, 16)
    assert len(hard) == len(easy) == 2000
    if order == "descending":
        # The same codes. Each query is one bit from the code that they are sorted by, so that no item is more than two
        # farther than any before it.
        assert sorted(hard.tolist()) == sorted(easy.tolist())
        for query in peers.words(queries):
            away = peers.distances(peers.words(hard), query).astype(int)
            assert (away - np.minimum.accumulate(away)).max() <= 2
            assert away[0] - away[-1] > 10
    else:
        assert len(np.unique(hard, axis=0)) == {"equal": 1, "duplicates": 50}[order]


def test_the_loop_of_argsorts_is_stable_average_precision(rows):
    from agmh_fast.reference import metrics

    torch.manual_seed(0)
    q, x = torch.randn(5, 6).sign(), torch.randn(40, 6).sign()
    labels_q, labels_x = torch.tensor([0, 1, 2, 0, 7]), torch.randint(0, 3, (40,))
    with torch.device("meta"):  # whatever is made of nothing must say that it is made on the codes' device
        found = rows.argsort_precision(q, x, labels_q, labels_x)
    distances = (q[:, None] != x).sum(2)
    relevant = labels_q[:, None] == labels_x
    for row in range(5):
        exact = metrics.average_precision_of_query(distances[row].tolist(), relevant[row].tolist(), "stable")
        assert float(found[row]) == pytest.approx(exact, abs=1e-6)
