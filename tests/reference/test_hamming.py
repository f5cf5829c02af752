"""The reference against a few lines of plain Python on bit strings."""

from __future__ import annotations

import torch

from agmh_fast.reference import codes, hamming

BITS = 11


def _problem():
    q, x = torch.rand(3, BITS) < 0.5, torch.rand(20, BITS) < 0.5
    x[7] = x[2] = q[1]
    rankings = [
        sorted((sum(a != b for a, b in zip(r, s, strict=True)), j) for j, s in enumerate(x.tolist()))
        for r in q.tolist()
    ]
    return codes.pack_bits(q), codes.pack_bits(x), rankings


def test_packing_follows_its_definition():
    assert codes.pack_bits(torch.tensor([[True] + [False] * 8 + [True]])).tolist() == [[0b10000000, 0b01000000]]
    bits = torch.rand(4, 19) < 0.5
    assert torch.equal(codes.unpack_bits(codes.pack_bits(bits), 19), bits)


def test_search_follows_its_definition():
    q, x, rankings = _problem()
    matrix = hamming.hamming_distance(q, x, BITS)
    assert matrix.dtype == torch.int32
    assert torch.equal(hamming.hamming_distance(q, x, BITS, torch.uint8), matrix.to(torch.uint8))
    assert [sorted((d, j) for j, d in enumerate(row)) for row in matrix.tolist()] == rankings
    distances, ids = hamming.hamming_topk(q, x, 25, BITS)
    for row, ranking in enumerate(rankings):
        found = list(zip(distances[row].tolist(), ids[row].tolist(), strict=True))
        assert found == ranking + [(2**31 - 1, -1)] * 5
    lims, distances, ids = hamming.hamming_range(q, x, 4, BITS)
    for row, ranking in enumerate(rankings):
        part = slice(lims[row], lims[row + 1])
        expected = [pair for pair in ranking if pair[0] <= 4]
        assert list(zip(distances[part].tolist(), ids[part].tolist(), strict=True)) == expected


def test_counts_follow_their_definition():
    q, x, rankings = _problem()
    labels_q, labels_x = torch.tensor([0, 1, 2]), torch.arange(20) % 3
    counts = hamming.hamming_histogram(q, x, BITS, labels_q, labels_x)
    sums, within = hamming.hamming_stable_ranking(q, x, BITS, labels_q, labels_x, 15, [1, 15])
    for row, ranking in enumerate(rankings):
        assert counts[row, :, 0].tolist() == [sum(d == bin for d, _ in ranking) for bin in range(BITS + 1)]
        relevant = [j % 3 == row for _, j in ranking]
        assert counts[row, :, 1].sum() == sum(relevant)
        precision = [sum(relevant[: r + 1]) / (r + 1) for r in range(15) if relevant[r]]
        # Fifteen terms of at most 1, each rounded once, and their sum.
        assert abs(float(sums[row]) - sum(precision)) < 1e-14
        assert within[row].tolist() == [sum(relevant[:1]), sum(relevant[:15])]


def test_label_sets_meet():
    assert hamming.is_relevant(torch.tensor([5, 0]), torch.tensor([[2, 1], [4, 0], [0, 7]])).tolist() == [
        False,
        True,
        False,
    ]
