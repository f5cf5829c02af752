"""The Hamming ops on a GPU: equal to the CPU engine, in a CUDA graph, on a stream of their own, on bad arguments."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cuda_graphs import capture

import agmh_fast as af
from agmh_fast.ops import hamming

pytestmark = pytest.mark.gpu


def _codes(rows, bits, distinct):
    values = af.pack_codes(torch.randn(distinct, bits))
    return values[torch.randint(distinct, (rows,))]


def _equal(call, *tensors):
    """The same answer from both devices, bit for bit."""
    here, there = call("cpu", *tensors), call("cuda", *(tensor.cuda() for tensor in tensors))
    for a, b in zip(*(result if isinstance(result, tuple) else (result,) for result in (here, there)), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b.cpu())


@pytest.mark.parametrize("seed", range(50))
def test_equals_the_cpu_engine(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    bits = draw.choice([1, 12, 16, 24, 32, 33, 48, 64, 96, 128, 192, 256, 257, 512, 768, 1024, 4096])
    n = draw.choice([0, 1, 127, 128, 129, 5000, 100_000, 1_000_000 if bits <= 256 else 20_000])
    queries = draw.choice([0, 1, 3, 9, 33, 200])
    distinct = draw.choice([1, 50, max(n, 1)])
    q, x = _codes(queries, bits, 60), _codes(n, bits, distinct)
    k = draw.choice([1, 10, 100, 4096, 5000, n + 1 if n <= 5000 else n // 20])
    _equal(lambda impl, q, x: hamming.hamming_topk(q, x, k, bits, impl=impl), q, x)
    radius = draw.randrange(max(bits // 3, 1))
    _equal(lambda impl, q, x: hamming.hamming_range(q, x, radius, bits, impl=impl), q, x)
    for mask in (torch.rand(n) < draw.random(), torch.rand(min(queries, 9), n) < draw.random()):
        args = (q if mask.dim() == 1 else q[:9], x, mask)
        limits = {"bits": bits, "max_distance": draw.randrange(bits + 1)}
        _equal(lambda impl, q, x, m, limits=limits: hamming.hamming_topk(q, x, k, mask=m, impl=impl, **limits), *args)
        _equal(lambda impl, q, x, m: hamming.hamming_range(q, x, radius, bits, mask=m, impl=impl), *args)
    _equal(lambda impl, q, x: hamming.hamming_histogram(q, x, bits=bits, impl=impl), q, x)
    depth, cutoffs = draw.choice([None, 10, 5000]), draw.choice([[], [1, 10, 100, 1000]])
    for labels in [
        (torch.randint(5, (queries,)), torch.randint(5, (n,))),
        (torch.rand(queries, 70) < 0.03, torch.rand(n, 70) < 0.03),
    ]:
        _equal(lambda impl, q, x, *of: hamming.hamming_histogram(q, x, *of, bits=bits, impl=impl), q, x, *labels)
        _equal(
            lambda impl, q, x, *of: hamming.hamming_ranked_histogram(
                q, x, *of, k=depth, cutoffs=cutoffs, bits=bits, impl=impl
            ),
            q,
            x,
            *labels,
        )


@pytest.mark.parametrize("ties", ["stable", "expected", "optimistic", "pessimistic"])
@pytest.mark.parametrize("k", [None, 50])
def test_metrics_are_those_of_the_cpu(ties, k):
    torch.manual_seed(0)
    given = _codes(300, 48, 300), _codes(20_000, 48, 500), torch.randint(9, (300,)), torch.randint(9, (20_000,))
    here = af.metrics.retrieval(*given, bits=48, ties=ties, k=k)
    there = af.metrics.retrieval(*(tensor.cuda() for tensor in given), bits=48, ties=ties, k=k)
    assert there.per_query_ap.device.type == "cuda"
    torch.testing.assert_close(there.per_query_ap.cpu(), here.per_query_ap, rtol=1e-12, atol=0)
    for figure in ("precision_at", "recall_at"):
        assert getattr(there, figure) == pytest.approx(getattr(here, figure), rel=1e-12)
    for a, b in zip(there.pr_curve, here.pr_curve, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-12, atol=0)


def test_ranking_takes_as_many_cutoffs_as_it_says():
    q, x, of_q, of_x = _codes(3, 64, 3), _codes(900, 64, 900), torch.zeros(3).long(), torch.zeros(900).long()
    given = tuple(tensor.cuda() for tensor in (q, x, of_q, of_x))
    hamming.hamming_stable_ranking(*given, cutoffs=range(1, 129), impl="cuda")
    with pytest.raises(af.InputError, match="128 cutoffs"):
        hamming.hamming_stable_ranking(*given, cutoffs=range(1, 130), impl="cuda")
    counts = hamming.hamming_stable_ranking(*given, cutoffs=range(1, 130))[1]
    assert torch.equal(counts.cpu(), hamming.hamming_stable_ranking(q, x, of_q, of_x, cutoffs=range(1, 130))[1])


@pytest.mark.parametrize("back_end", ["popc", "bmma", "imma"])
@pytest.mark.parametrize("bits", [12, 32, 48, 64, 128, 192, 256, 1000, 4096])
def test_each_back_end_equals_the_cpu_engine(monkeypatch, back_end, bits):
    monkeypatch.setenv("AGMH_FAST_CUDA_ISA", back_end)
    torch.manual_seed(0)
    n = 300_000 if bits <= 256 else 30_000
    for distinct in (40, n):
        q, x = _codes(150, bits, 60), _codes(n, bits, distinct)
        q[::3], x[-1], x[-5] = x[torch.arange(0, len(q), 3)], q[1], q[2]
        if back_end == "bmma" and not (8, 0) <= torch.cuda.get_device_capability() <= (9, 0):
            with pytest.raises(RuntimeError, match="no products of bits"):
                hamming.hamming_topk(q.cuda(), x.cuda(), 5, bits, impl="cuda")
            return
        for queries, k in ((150, 1), (150, 20), (3, 20), (64, 100)):
            _equal(lambda impl, q, x, k=k: hamming.hamming_topk(q, x, k, bits, impl=impl), q[:queries], x)
        mask = torch.rand(n) < 0.5
        _equal(lambda impl, q, x, m: hamming.hamming_topk(q, x, 5, bits, mask=m, impl=impl), q, x, mask)


def test_a_back_end_that_is_not_known_raises(monkeypatch):
    monkeypatch.setenv("AGMH_FAST_CUDA_ISA", "wgmma")
    x = _codes(9, 64, 9).cuda()
    with pytest.raises(RuntimeError, match="AGMH_FAST_CUDA_ISA=wgmma: choose popc, bmma or imma"):
        hamming.hamming_topk(x, x, 2, impl="cuda")


@pytest.mark.parametrize("k", [10, 5000])
def test_top_k_in_a_graph(k):
    q, x = _codes(20, 64, 20).cuda(), _codes(40_000, 64, 40_000).cuda()
    graph, captured = capture(lambda: hamming.hamming_topk(q, x, k, impl="cuda"))
    q.copy_(_codes(20, 64, 20))
    x.copy_(x.flip(0).clone())
    graph.replay()
    for a, b in zip(captured, hamming.hamming_topk(q.cpu(), x.cpu(), k, impl="cpu"), strict=True):
        assert torch.equal(a.cpu(), b)


def test_the_current_stream_is_used():
    q, x = _codes(5, 64, 5).cuda(), _codes(2_000_000, 64, 2_000_000).cuda()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.bitwise_not_()  # a search that did not wait for its stream would miss this
        answer = hamming.hamming_topk(q, x, 20, impl="cuda")
    side.synchronize()
    for a, b in zip(answer, hamming.hamming_topk(q.cpu(), x.cpu(), 20, impl="cpu"), strict=True):
        assert torch.equal(a.cpu(), b)


def test_rows_that_are_no_whole_words_or_not_aligned():
    bits = 128
    q, x = _codes(4, bits, 4).cuda(), _codes(3000, bits, 3000).cuda()
    bytes_apart = torch.empty(x.numel() + 1, dtype=torch.uint8, device="cuda")[1:].view_as(x).copy_(x)
    for other in (bytes_apart, torch.cat([x, x], 1)[:, :16], x.t().contiguous().t()):
        for a, b in zip(hamming.hamming_topk(q, other, 7), hamming.hamming_topk(q, x, 7), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("bits", [12, 20, 45, 300])
def test_stored_rows(bits):
    words = 4 if bits <= 32 else -(-bits // 64) * 8
    q, x = _codes(4, bits, 4).cuda(), _codes(3000, bits, 3000).cuda()
    stored = torch.nn.functional.pad(x, (0, words - x.shape[1]))
    for a, b in zip(
        hamming.topk_op(q, stored, 7, bits, bits, None, impl="cuda"), hamming.hamming_topk(q, x, 7, bits), strict=True
    ):
        assert torch.equal(a, b)


def test_too_little_memory_is_an_error_that_passes():
    q, x = _codes(50, 64, 2).cuda(), _codes(1000, 64, 1000).cuda()
    many = x[:1].repeat(2**22, 1)
    for call in (
        lambda: hamming.hamming_topk(q, x, 2**31 - 1, impl="cuda"),  # 1.3 TB of results
        lambda: hamming.hamming_distance(many, many, impl="cuda"),  # 17.6 TB
    ):
        with pytest.raises(RuntimeError, match=r"out of memory, \d+ bytes were asked for"):
            call()
    _equal(lambda impl, q, x: hamming.hamming_topk(q, x, 5, impl=impl), q.cpu(), x.cpu())


def test_tensors_on_two_devices_are_named():
    q, x, labels = _codes(3, 48, 3), _codes(9, 48, 9).cuda(), torch.zeros(9).long()
    for message, call in {
        "q is on cpu, x on cuda:0: move one of them": lambda: hamming.hamming_topk(q, x, 1),
        "mask is on cpu, the codes on cuda:0: move one of them": lambda: hamming.hamming_range(
            x, x, 1, mask=torch.ones(9, dtype=torch.bool)
        ),
        "labels_q is on cpu, the codes on cuda:0: move one of them": lambda: hamming.hamming_histogram(
            x, x, labels, labels
        ),
    }.items():
        with pytest.raises(af.InputError) as error:
            call()
        assert str(error.value) == message
    # The ops themselves can be called by anyone.
    mask = torch.ones(9, dtype=torch.bool)
    for message, call in {
        "q and x must be on the same device": lambda: torch.ops.agmh_fast.hamming_distance(x, q, 48, 1),
        "mask must be on the device": lambda: torch.ops.agmh_fast.hamming_topk(x, x, 48, 1, 48, mask, 1),
        "labels must be on the device": lambda: torch.ops.agmh_fast.hamming_histogram(x, x, 48, labels, labels, 1),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("op", [op.name for op in hamming.OPS])
def test_opcheck(op):
    q, x = _codes(3, 48, 3).cuda(), _codes(20, 48, 20).cuda()
    labels, mask = (torch.randint(3, (3,)).cuda(), torch.randint(3, (20,)).cuda()), torch.rand(3, 20).cuda() < 0.5
    arguments = {
        "hamming_distance": [(q, x, 48, 1)],
        "hamming_topk": [(q, x, 48, 25, 48, None, 1), (q, x, 48, 4, 30, mask, 1)],
        "hamming_range": [(q, x, 48, 20, None, 1), (q, x, 48, 20, mask, 1)],
        "hamming_histogram": [(q, x, 48, None, None, 1), (q, x, 48, *labels, 1)],
        "hamming_stable_ranking": [(q, x, 48, *labels, 10, [1, 5], 1)],
    }
    for args in arguments[op]:
        torch.library.opcheck(getattr(torch.ops.agmh_fast, op).default, args)


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    q, x, mask = _codes(3, 45, 3).cuda(), _codes(20, 45, 20).cuda(), torch.rand(3, 20).cuda() < 0.5

    def search(q, x):
        return (
            *hamming.hamming_topk(q, x, 7, 45, mask=mask, max_distance=20, impl="cuda"),
            *hamming.hamming_range(q, x, 20, 45, mask=mask[0], impl="cuda"),
            hamming.hamming_distance(q, x, 45, impl="cuda"),
        )

    for a, b in zip(torch.compile(search, fullgraph=True, backend="aot_eager")(q, x), search(q, x), strict=True):
        assert torch.equal(a, b)


def test_threads_and_streams_side_by_side():
    q, x = _codes(30, 64, 30), _codes(200_000, 64, 200_000)
    expected = hamming.hamming_topk(q, x, 50, impl="cpu"), hamming.hamming_range(q, x, 22, impl="cpu")
    q, x = q.cuda(), x.cuda()
    torch.cuda.synchronize()

    def search(_):
        with torch.cuda.stream(torch.cuda.Stream()):
            found = hamming.hamming_topk(q, x, 50, impl="cuda"), hamming.hamming_range(q, x, 22, impl="cuda")
            return [[part.cpu() for part in parts] for parts in found]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(search, range(32)):
            for parts, right in zip(found, expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(parts, right, strict=True))


@pytest.mark.parametrize("ties", ["stable", "expected"])
def test_metrics_keep_no_matrix(ties):
    """8000 × 400 000 distances would be 3.2 GB."""
    given = _codes(8000, 48, 8000), _codes(400_000, 48, 500), torch.arange(8000) % 9, torch.arange(400_000) % 9
    given = tuple(tensor.cuda() for tensor in given)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    af.metrics.retrieval(*given, bits=48, ties=ties)
    assert torch.cuda.max_memory_allocated() - before < 200 << 20
