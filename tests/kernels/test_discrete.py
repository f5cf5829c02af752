"""The discrete step's kernel without a GPU: run in the interpreter against the reference, compiled for GPUs that are
not there. Codes are equal or wrong.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agmh_fast.kernels.discrete import config, kernel
from cuda_graphs import capture
from hashing_cases import make_state
from triton_compile import SHARED_MEMORY, compile_launch, recording, runs_the_same_code
from triton_interpreter import interpreting

import agmh_fast.functional as af
from agmh_fast.errors import InputError
from agmh_fast.ops import compiled, hashing_triton
from agmh_fast.ops.hashing import discrete_step
from agmh_fast.train import HashingState

# (N, L, m): one of each; a part of a tile, a tile and a row more; bits in one block, in several, in part of one.
SHAPES = [(1, 1, 1), (33, 12, 20), (32, 16, 5), (65, 17, 65), (70, 48, 30), (20, 100, 7)]


@pytest.fixture
def on_cpu(monkeypatch):
    """The kernel on CPU tensors."""
    monkeypatch.setitem(discrete_step.obstacles, "triton", lambda *args: None)
    with interpreting():
        yield


def _inputs(count, bits, m, groups=4, exact=False):
    """Arguments of the raw ops. With `exact`, numbers whose sums no order of adding rounds, and which often tie."""

    def numbers(*shape):
        return torch.randint(-2, 3, shape).double() if exact else torch.randn(shape, dtype=torch.float64)

    u = numbers(m, bits)
    codes = numbers(count, bits).float()
    own = torch.randint(-1, m, (count,))
    return codes, numbers(groups, bits), torch.randint(0, groups, (count,)), own, u, (u.T @ u).fill_diagonal_(0), 0.75


def _compiled(*arguments):
    """By the C++ op, whose equality to the reference tests/ops/test_hashing.py shows."""
    assert compiled.missing() is None
    return torch.ops.agmh_fast.discrete_step(*arguments, 1)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_equals_the_reference(shape, kind):
    count, bits, m = shape
    state, sampled = make_state(kind, count, bits, m)
    # The second sweep starts from ±1.
    for _ in range(2):
        embeddings = torch.tanh(torch.randn(m, bits))
        expected = discrete_step(state, embeddings, sampled, impl="reference")
        assert torch.equal(discrete_step(state, embeddings, sampled, impl="torch"), expected)
        assert torch.equal(af.update_database_codes(state, embeddings, sampled, impl="triton"), expected)
        state.begin_iteration(sampled)


@pytest.mark.usefixtures("on_cpu")
def test_as_many_bits_as_there_may_be():
    arguments = _inputs(3, 512, 2)
    assert torch.equal(kernel.discrete_step(*arguments), _compiled(*arguments))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_ties_are_plus_one(shape):
    """Sums without rounding: a tie is a tie in any order of adding."""
    arguments = _inputs(*shape, exact=True)
    before = [argument.clone() for argument in arguments[:-1]]
    assert torch.equal(torch.ops.agmh_fast.triton_discrete_step(*arguments), _compiled(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=False))


@pytest.mark.usefixtures("on_cpu")
def test_nothing_to_compare_is_plus_one():
    codes, *_, gamma = _inputs(40, 20, 3)
    nothing = torch.zeros(3, 20, dtype=torch.float64)
    own = torch.full((40,), -1)
    arguments = codes, nothing, torch.zeros_like(own), own, nothing, torch.zeros(20, 20, dtype=torch.float64), gamma
    assert torch.equal(kernel.discrete_step(*arguments), torch.ones(40, 20))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [1, 4, 5])
@pytest.mark.usefixtures("on_cpu")
def test_what_is_not_finite_is_compared_as_elsewhere(where, value):
    """NaN loses every comparison and infinity ties with itself, in targets, U or Ω."""
    arguments = list(_inputs(60, 21, 9))
    spoilt = arguments[where].clone()
    spoilt[1, 5] = value
    if where == 5:
        spoilt[5, 1] = value
    if where == 4 and value != value:
        arguments[1][0] = value
    arguments[where] = spoilt
    assert torch.equal(kernel.discrete_step(*arguments), _compiled(*arguments))


@pytest.mark.usefixtures("on_cpu")
def test_sums_are_double():
    """A target beside a sum that differs from it by less than float32 sees."""
    codes, gram = torch.ones(1, 2), torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    none = torch.full((1,), -1)
    for difference in (2.0**-40, -(2.0**-40)):
        targets = torch.tensor([[1 + difference, 0.0]], dtype=torch.float64)
        updated = kernel.discrete_step(codes, targets, torch.zeros_like(none), none, gram[:1], gram, 1.0)
        assert updated[0, 0] == (1 if difference > 0 else -1)


@pytest.mark.usefixtures("on_cpu")
def test_no_items_have_no_codes():
    codes, targets, groups, own, *others = _inputs(3, 5, 2)
    assert kernel.discrete_step(codes[:0], targets, groups[:0], own[:0], *others).shape == (0, 5)


@pytest.mark.usefixtures("on_cpu")
def test_opcheck():
    torch.library.opcheck(torch.ops.agmh_fast.triton_discrete_step.default, _inputs(35, 18, 4))


def test_what_is_not_served_says_why(monkeypatch):
    state, sampled = make_state("single", 20, 8, 5)
    with pytest.raises(
        InputError, match=r"impl='triton' cannot serve.*the labels must be on a CUDA device, not on cpu"
    ):
        af.update_database_codes(state, torch.zeros(5, 8), sampled, impl="triton")
    assert "CUDA device" in af.explain("update_database_codes", state).passed_over["triton"]
    monkeypatch.setattr(hashing_triton, "gpu_obstacle", lambda name, tensor: None)
    wide, sampled = make_state("single", 20, 513, 5)
    with pytest.raises(InputError, match="at most 512 bits, not 513"):
        af.update_database_codes(wide, torch.zeros(5, 513), sampled, impl="triton")
    assert "at most 512 bits" in af.explain("update_database_codes", wide).passed_over["triton"]


def _launches(count, bits, m=50):
    def meta(*shape, dtype=torch.float64):
        return torch.empty(*shape, dtype=dtype, device="meta")

    index = meta(count, dtype=torch.int64)
    with recording() as launches:
        kernel.discrete_step(
            meta(count, bits, dtype=torch.float32), meta(5, bits), index, index, meta(m, bits), meta(bits, bits), 200.0
        )
    return launches


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_machine_code(capability, monkeypatch):
    """A sweep is one launch; nothing spills, whatever L; products are float64 on tensor cores where these know it."""
    monkeypatch.setattr(config, "capability", lambda device: capability)
    launches = [launch for bits in (1, 37, 64, 512) for launch in _launches(1000, bits)]
    assert [launch.name for launch in launches] == ["sweep"] * 4
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda launch: compile_launch(launch, capability), launches))
    for launch, code in zip(launches, codes, strict=True):
        assert code.spills == 0, launch.arguments["L"]
        assert code.shared <= SHARED_MEMORY[capability]
        assert code.count("DMMA") > 0 or capability == 100
        assert code.matrix_products == code.count("DMMA")


@pytest.mark.parametrize("capability", [86, 120])
def test_gpus_without_double_tensor_cores(capability, monkeypatch):
    monkeypatch.setattr(config, "capability", lambda device: capability)
    (launch,) = _launches(1000, 48)
    code = compile_launch(launch, capability)
    assert code.spills == 0
    assert code.matrix_products == 0


def test_another_database_compiles_nothing_new():
    (first,), (second,) = (_launches(count, 48, m) for count, m in ((75_750, 2000), (1, 1)))
    assert runs_the_same_code(first, second)


def _on_gpu(count, bits, m, kind="single"):
    state, sampled = make_state(kind, count, bits, m)
    moved = HashingState(state.labels.cuda(), bits, gamma=state.gamma)
    moved.begin_iteration(sampled.cuda())
    return moved, torch.tanh(torch.randn(m, bits)).cuda(), sampled.cuda()


def _moved(arguments):
    return [argument.cuda() if torch.is_tensor(argument) else argument for argument in arguments]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("shape", [*SHAPES, (9000, 64, 500), (100, 512, 30)], ids=str)
def test_gpu_equals_torch(shape, kind):
    state, embeddings, sampled = _on_gpu(*shape, kind)
    for _ in range(2):
        expected = discrete_step(state, embeddings, sampled, impl="torch")
        assert torch.equal(af.update_database_codes(state, embeddings, sampled, impl="triton"), expected)
        state.begin_iteration(sampled)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_ties_are_plus_one(shape):
    arguments = _inputs(*shape, exact=True)
    updated = torch.ops.agmh_fast.triton_discrete_step(*_moved(arguments))
    assert torch.equal(updated.cpu(), _compiled(*arguments))


@pytest.mark.gpu
def test_gpu_auto_takes_the_kernel_and_runs_are_equal_bit_by_bit():
    state, embeddings, sampled = _on_gpu(20_000, 48, 2000)
    assert af.explain("update_database_codes", state, embeddings, sampled).chosen == "triton"
    *arguments, gamma = _moved(_inputs(20_000, 48, 99))
    first = kernel.discrete_step(*arguments, gamma)
    assert all(torch.equal(kernel.discrete_step(*arguments, gamma), first) for _ in range(20))


@pytest.mark.gpu
def test_gpu_graph_replays():
    *arguments, gamma = _moved(_inputs(5000, 48, 99))
    graph, captured = capture(lambda: kernel.discrete_step(*arguments, gamma))
    arguments[0].copy_(torch.randn_like(arguments[0]))
    graph.replay()
    assert torch.equal(captured, kernel.discrete_step(*arguments, gamma))


@pytest.mark.gpu
def test_gpu_memory_is_the_codes_alone():
    *arguments, gamma = _moved(_inputs(50_000, 64, 99))
    kernel.discrete_step(*arguments, gamma)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernel.discrete_step(*arguments, gamma)
    assert torch.cuda.max_memory_allocated() - before <= 4 * 50_000 * 64 + 2**20
    assert torch.cuda.memory_allocated() == before
