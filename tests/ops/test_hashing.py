"""The hashing objective from group sums against the dense formulas.

Both are computed in float64; the loss is a sum of B·N terms of size up to (2L)², and rounding grows with the root of
their number: a relative 1e-12 is far above that and far below any term. Codes are equal or wrong.
"""

from __future__ import annotations

import pytest
import torch
from attention_cases import relative_error
from hashing_cases import make_state
from hypothesis import given
from hypothesis import strategies as st

import agmh_fast.functional as af
from agmh_fast.errors import InputError
from agmh_fast.reference import hashing as reference
from agmh_fast.train import HashingState

BUDGET = 1e-12


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize(
    ("count", "bits", "m", "batch"), [(60, 12, 20, 7), (1, 1, 1, 1), (33, 48, 33, 33), (40, 3, 5, 2)]
)
def test_loss_and_gradient_agree_with_the_dense_form(kind, count, bits, m, batch):
    state, sampled = make_state(kind, count, bits, m)
    items = sampled[torch.randint(0, m, (batch,))]
    embedding = torch.tanh(torch.randn(batch, bits, dtype=torch.float64)).requires_grad_()
    results = {}
    for impl in ("torch", "reference"):
        loss = af.asymmetric_hashing_loss(embedding, items, state, impl=impl)
        results[impl] = (*loss, torch.autograd.grad(loss.total, embedding)[0])
    for ours, theirs in zip(results["torch"], results["reference"], strict=True):
        assert relative_error(ours, theirs) < BUDGET


def test_similarity_is_the_published_one():
    """S = ±1; r = ΣS/Σ(1−S); S ← S(1+r) − r, as a matrix."""
    state, sampled = make_state("single", 50, 8, 20)
    signs = torch.where(state.labels[sampled][:, None] == state.labels[None], 1.0, -1.0).double()
    r = signs.sum() / (1 - signs).sum()
    expected = signs * (1 + r) - r
    assert torch.allclose(reference.similarity(state.labels[sampled], state.labels), expected, rtol=0, atol=1e-14)
    assert state.nu == pytest.approx(float(expected.min()), rel=1e-14)


@pytest.mark.parametrize("impl", ["cpu", "torch"])
@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize(("count", "bits", "m"), [(60, 12, 20), (1, 1, 1), (9000, 16, 100), (33, 48, 33), (17, 512, 5)])
def test_discrete_step_equals_the_dense_one(kind, count, bits, m, impl):
    state, sampled = make_state(kind, count, bits, m)
    for _ in range(3):
        embeddings = torch.tanh(torch.randn(m, bits))
        s = reference.similarity(state.labels[sampled], state.labels)
        expected = reference.discrete_step(state.codes.double(), embeddings.double(), sampled, s, state.gamma)
        codes = af.update_database_codes(state, embeddings, sampled, impl=impl)
        assert torch.equal(codes.double(), expected)
        assert codes is state.codes
        state.begin_iteration(sampled)


def test_discrete_step_lowers_the_objective():
    state, sampled = make_state("single", 80, 8, 30)
    embeddings = torch.tanh(torch.randn(30, 8, dtype=torch.float64))
    s = reference.similarity(state.labels[sampled], state.labels)

    def objective(codes):
        pairs = reference.pairwise_loss(embeddings, codes, s)
        return pairs + reference.quantization_loss(embeddings, codes[sampled], 80, state.gamma)

    state.codes = torch.where(torch.rand(80, 8) < 0.5, 1.0, -1.0)
    for _ in range(3):
        before = objective(state.codes.double())
        state.begin_iteration(sampled)
        assert objective(af.update_database_codes(state, embeddings, sampled).double()) <= before + 1e-9


def test_a_zero_score_is_plus_one():
    state = HashingState(torch.zeros(4, dtype=torch.int64), 3, gamma=1.0)
    state.begin_iteration(torch.arange(4))
    assert torch.equal(af.update_database_codes(state, torch.zeros(4, 3), torch.arange(4)), torch.ones(4, 3))


@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(0, 10**6),
    st.sampled_from(["single", "multi"]),
)
def test_any_small_problem(count, bits, m, seed, kind):
    torch.manual_seed(seed)
    state, sampled = make_state(kind, count, bits, min(m, count), seed)
    embeddings = torch.tanh(torch.randn(len(sampled), bits, dtype=torch.float64))
    dense = af.asymmetric_hashing_loss(embeddings, sampled, state, impl="reference")
    ours = af.asymmetric_hashing_loss(embeddings, sampled, state, impl="torch")
    assert relative_error(ours.total, dense.total) < BUDGET
    before = state.codes.clone()
    expected = af.update_database_codes(state, embeddings, sampled, impl="reference").clone()
    for impl in ("cpu", "torch"):
        state.codes = before
        state.begin_iteration(sampled)
        assert torch.equal(af.update_database_codes(state, embeddings, sampled, impl=impl), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_compiled_step_is_the_same_for_any_number_of_threads(threads):
    count, bits = 5003, 24
    args = (
        torch.randn(count, bits),
        torch.randn(7, bits, dtype=torch.float64),
        torch.randint(0, 7, (count,)),
        torch.randint(-1, 9, (count,)),
        torch.randn(9, bits, dtype=torch.float64),
        torch.randn(bits, bits, dtype=torch.float64),
        1.5,
    )
    assert af.explain("update_database_codes", HashingState(args[2], bits)).chosen == "cpu"
    op = torch.ops.agmh_fast.discrete_step
    assert torch.equal(op(*args, threads), op(*args, 1))
    torch.library.opcheck(op.default, (*args, threads))


def test_compiled_step_guards_its_memory():
    af.explain("update_database_codes", HashingState(torch.zeros(3, dtype=torch.int64), 4))
    good = {
        "codes": torch.zeros(3, 4),
        "targets": torch.zeros(2, 4, dtype=torch.float64),
        "groups": torch.tensor([0, 1, 1]),
        "sampled": torch.tensor([-1, 0, 0]),
        "embeddings": torch.zeros(1, 4, dtype=torch.float64),
        "gram": torch.zeros(4, 4, dtype=torch.float64),
    }
    bad = {
        "codes": torch.zeros(3, 4).double(),
        "targets": torch.zeros(2, 3, dtype=torch.float64),
        "groups": torch.tensor([0, 1, 2]),
        "sampled": torch.tensor([-2, 0, 0]),
        "embeddings": torch.zeros(1, 4),
        "gram": torch.zeros(4, 4, dtype=torch.float64).T[::2],
    }
    torch.ops.agmh_fast.discrete_step(*good.values(), 1.0, 1)
    for name, value in bad.items():
        with pytest.raises(RuntimeError, match=name):
            torch.ops.agmh_fast.discrete_step(*(good | {name: value}).values(), 1.0, 1)


def test_same_seed_same_start():
    labels = torch.randint(0, 4, (20,))
    assert torch.equal(HashingState(labels, 8, seed=3).codes, HashingState(labels, 8, seed=3).codes)
    assert not torch.equal(HashingState(labels, 8, seed=3).codes, HashingState(labels, 8, seed=4).codes)


def test_narrow_embeddings_under_autocast():
    """The sums are formed in float64 whatever autocast says: only the embedding's own rounding counts."""
    state, sampled = make_state("single", 60, 12, 20)
    embedding = torch.tanh(torch.randn(20, 12)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = af.asymmetric_hashing_loss(embedding, sampled, state)
    expected = af.asymmetric_hashing_loss(embedding.double(), sampled, state, impl="reference")
    assert loss.total.dtype == torch.float32
    assert relative_error(loss.total, expected.total) < 4 * torch.finfo(torch.float32).eps


def test_compiles_whole():
    state, sampled = make_state("single", 60, 12, 20)
    embedding = torch.tanh(torch.randn(20, 12))
    step = torch.compile(
        lambda e: af.asymmetric_hashing_loss(e, sampled, state).total, fullgraph=True, backend="aot_eager"
    )
    assert relative_error(step(embedding), af.asymmetric_hashing_loss(embedding, sampled, state).total) < 1e-6


def test_bad_input_is_named_and_changes_nothing():
    labels = torch.randint(0, 4, (20,))
    for bits in (0, 4097, 1.5, True):
        with pytest.raises(InputError, match="bits must be a whole number"):
            HashingState(labels, bits)
    with pytest.raises(InputError, match="labels must be 0 or more"):
        HashingState(labels - 4, 8)
    with pytest.raises(InputError, match="integers"):
        HashingState(labels.float(), 8)
    with pytest.raises(InputError, match="0 and 1"):
        HashingState(torch.full((3, 2), 2), 8)
    with pytest.raises(InputError, match="N >= 1"):
        HashingState(labels[:0], 8)
    with pytest.raises(InputError, match="gamma"):
        HashingState(labels, 8, gamma=-1)
    state = HashingState(labels, 8)
    with pytest.raises(InputError, match="begin_iteration"):
        af.asymmetric_hashing_loss(torch.randn(2, 8), torch.arange(2), state)
    for sampled, message in (
        (torch.tensor([0, 0]), "twice"),
        (torch.tensor([20]), "from 0 to 19"),
        (torch.ones(2), "integers"),
    ):
        with pytest.raises(InputError, match=message):
            state.begin_iteration(sampled)
    state.begin_iteration(torch.arange(5))
    codes = state.codes.clone()
    with pytest.raises(InputError, match=r"embedding must be \(2, 8\)"):
        af.asymmetric_hashing_loss(torch.randn(2, 7), torch.arange(2), state)
    with pytest.raises(InputError, match="items must be"):
        af.asymmetric_hashing_loss(torch.randn(2, 8), torch.ones(2), state)
    with pytest.raises(InputError, match="finite"):
        af.update_database_codes(state, torch.full((5, 8), torch.nan), torch.arange(5))
    with pytest.raises(InputError, match="begin_iteration was given"):
        af.update_database_codes(state, torch.zeros(5, 8), torch.arange(1, 6))
    with pytest.raises(InputError, match="finite"):
        state.codes = torch.full((20, 8), torch.inf)
    assert torch.equal(state.codes, codes)
