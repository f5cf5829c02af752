"""The hashing loss's kernels without a GPU: run in the interpreter against the reference, compiled for GPUs that are
not there.

Error budget: sums are float64, for which tests/ops/test_hashing.py derives 1e-12. A float32 result is rounded once more
and the total's parts before it: two roundings of float32. A narrower embedding's gradient is rounded to its type.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agmh_fast.kernels.hashing_loss import kernel
from attention_cases import relative_error
from cuda_graphs import capture
from hashing_cases import make_state
from triton_compile import SHARED_MEMORY, compile_launch, recording, runs_the_same_code
from triton_interpreter import interpreting

import agmh_fast.functional as af
from agmh_fast.errors import InputError
from agmh_fast.ops import hashing_triton
from agmh_fast.ops.hashing import hashing_loss
from agmh_fast.train import HashingState

BUDGET = 1e-12
# (N, L, m, B): one of each; tiles of images and of bits whole, in part and several; one program and more.
SHAPES = [
    (1, 1, 1, 1),
    (33, 12, 20, 7),
    (60, 48, 60, 32),
    (40, 17, 9, 33),
    (50, 64, 12, 70),
    (20, 100, 8, 5),
    (20, 130, 8, 5),
    (9, 512, 4, 35),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def on_cpu(monkeypatch):
    """The kernels on CPU tensors."""
    monkeypatch.setitem(hashing_loss.obstacles, "triton", lambda *args: None)
    with interpreting():
        yield


def _case(shape, kind="single", dtype=torch.float64, device="cpu"):
    count, bits, m, batch = shape
    state, sampled = make_state(kind, count, bits, m)
    if device != "cpu":
        moved = HashingState(state.labels.to(device), bits, gamma=state.gamma)
        moved.begin_iteration(sampled.to(device))
        state = moved
    items = sampled[torch.randint(0, m, (batch,))].to(device)
    return torch.tanh(torch.randn(batch, bits, dtype=torch.float64)).to(device, dtype), items, state


def _results(embedding, items, state, impl):
    """The three losses and the gradient of each."""
    embedding = embedding.detach().requires_grad_()
    losses = af.asymmetric_hashing_loss(embedding, items, state, impl=impl)
    grads = [torch.autograd.grad(loss, embedding, retain_graph=True)[0] for loss in losses]
    return [loss.detach() for loss in losses], grads


def _compare(embedding, items, state):
    exact = _results(embedding.double(), items, state, "reference")
    losses, grads = _results(embedding, items, state, "triton")
    single = torch.promote_types(embedding.dtype, torch.float32)
    for actual, expected in zip(losses, exact[0], strict=True):
        assert actual.dtype == single
        assert actual.shape == ()
        assert relative_error(actual, expected) <= 2 * torch.finfo(single).eps + BUDGET
    for actual, expected in zip(grads, exact[1], strict=True):
        assert actual.dtype == embedding.dtype
        assert actual.shape == embedding.shape
        # Scaled by one, which float16 may yet flush to zero.
        tolerance = torch.finfo(embedding.dtype).eps * expected.abs() + torch.finfo(embedding.dtype).smallest_normal
        assert ((actual.double() - expected).abs() <= tolerance + BUDGET * expected.abs().max()).all()


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_losses_and_gradients(shape, kind):
    _compare(*_case(shape, kind))


@pytest.mark.parametrize("shape", [(33, 12, 20, 7), (40, 17, 9, 33)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_every_dtype(shape, dtype):
    _compare(*_case(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(33, 12, 20, 7), (40, 17, 9, 33)], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_equals_torch_and_the_compiled_op(shape):
    """The same sums in float64: only their order differs, and the rounding to float32 may then fall the other way."""
    case = _case(shape, "multi", torch.float32)
    for impl in ("torch", "cpu"):
        for ours, theirs in zip(_results(*case, "triton"), _results(*case, impl), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert (a - b).abs().max() <= 2 * torch.finfo(torch.float32).eps * b.abs().max()


@pytest.mark.parametrize("layout", ["transposed", "every other bit", "expanded", "backwards in a larger one"])
@pytest.mark.usefixtures("on_cpu")
def test_any_strides(layout):
    embedding, items, state = _case((40, 20, 30, 37), dtype=torch.float32)
    given = {
        "transposed": lambda: embedding.T.contiguous().T,
        "every other bit": lambda: torch.randn(37, 40)[:, ::2].copy_(embedding),
        "expanded": lambda: embedding[:1].expand(37, 20),
        "backwards in a larger one": lambda: torch.randn(3, 40, 20)[1, :37].copy_(embedding),
    }[layout]()
    ours = hashing_triton._loss(given, items, *_sums(state))
    expected = hashing_triton._loss(given.contiguous(), items, *_sums(state))
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def _sums(state):
    return state.groups, state.targets, state.square_sums, state.gram, state.codes, state.gamma


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_items_of_any_integer_type(dtype):
    embedding, items, state = _case((60, 12, 60, 9))
    expected = hashing_triton._loss(embedding, items, *_sums(state))
    apart = torch.zeros(9, 2, dtype=dtype)
    apart[:, 0] = items
    for given in (items.to(dtype), apart[:, 0]):
        ours = hashing_triton._loss(embedding, given, *_sums(state))
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("item", [-1, 33, 2**40])
@pytest.mark.parametrize("shape", [(33, 12, 20, 7), (33, 70, 20, 34)], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_an_item_that_does_not_exist_is_nan(shape, item):
    embedding, items, state = _case(shape)
    expected = hashing_triton._loss(embedding, items, *_sums(state))[3]
    items[3] = item
    *losses, gradients = hashing_triton._loss(embedding, items, *_sums(state))
    assert all(loss.isnan() for loss in losses)
    assert gradients[:, 3].isnan().all()
    others = torch.arange(len(items)) != 3
    assert torch.equal(gradients[:, others], expected[:, others])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.usefixtures("on_cpu")
def test_what_is_not_finite_is_not_hidden(value):
    """Losses and gradients are NaN or infinite where the torch implementation's are."""
    embedding, items, state = _case((33, 21, 20, 7))
    embedding[2, 4] = value
    for ours, theirs in zip(
        _results(embedding, items, state, "triton"), _results(embedding, items, state, "torch"), strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert not b.isfinite().all()
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.usefixtures("on_cpu")
def test_gradients_follow_what_comes_down():
    embedding, items, state = _case((33, 12, 20, 7))
    embedding.requires_grad_()
    results = []
    for impl in ("triton", "reference"):
        loss = af.asymmetric_hashing_loss(embedding, items, state, impl=impl)
        results.append(
            torch.autograd.grad(2 * loss.total - 3 * loss.pairwise + loss.quantization.square(), embedding)[0]
        )
    assert relative_error(*results) < BUDGET


@pytest.mark.usefixtures("on_cpu")
def test_no_second_gradient():
    embedding, items, state = _case((33, 12, 20, 7))
    loss = af.asymmetric_hashing_loss(embedding.requires_grad_(), items, state, impl="triton").total
    (grad,) = torch.autograd.grad(loss.square(), embedding, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.usefixtures("on_cpu")
def test_no_images_are_refused():
    embedding, items, state = _case((33, 12, 20, 7))
    with pytest.raises(RuntimeError, match="a row or more"):
        hashing_triton._loss(embedding[:0], items[:0], *_sums(state))


@pytest.mark.parametrize("shape", [(33, 12, 20, 7), (33, 12, 20, 40)], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_opcheck(shape):
    embedding, items, state = _case(shape, dtype=torch.float32)
    torch.library.opcheck(torch.ops.agmh_fast.triton_hashing_loss.default, (embedding, items, *_sums(state)))


@pytest.mark.usefixtures("on_cpu")
def test_compiles_whole():
    embedding, items, state = _case((33, 12, 20, 7), dtype=torch.float32)
    embedding.requires_grad_()

    def step(u):
        return af.asymmetric_hashing_loss(u, items, state, impl="triton").total

    whole = torch.compile(step, fullgraph=True, backend="aot_eager")
    for loss in (whole, step):
        loss(embedding).backward()
    assert torch.equal(whole(embedding), step(embedding))
    assert torch.equal(embedding.grad / 2, torch.autograd.grad(step(embedding), embedding)[0])


def test_what_is_not_served_says_why(monkeypatch):
    embedding, items, state = _case((20, 8, 5, 3))
    with pytest.raises(InputError, match=r"impl='triton' cannot serve.*embedding must be on a CUDA device, not on cpu"):
        af.asymmetric_hashing_loss(embedding, items, state, impl="triton")
    assert "CUDA device" in af.explain("asymmetric_hashing_loss", embedding, items, state).passed_over["triton"]
    monkeypatch.setattr(hashing_triton, "gpu_obstacle", lambda name, tensor: None)
    with pytest.raises(InputError, match="embedding is on meta, and items are on cpu"):
        af.asymmetric_hashing_loss(embedding.to("meta"), items, state, impl="triton")
    wide = _case((20, 513, 5, 3))
    with pytest.raises(InputError, match="at most 512 bits, not 513"):
        af.asymmetric_hashing_loss(*wide, impl="triton")


def _launches(batch, bits, dtype=torch.float32, last=True, count=1000, items=torch.int64):
    def meta(*shape, dtype=torch.float64):
        return torch.empty(*shape, dtype=dtype, device="meta")

    embedding = meta(batch, bits, dtype=dtype) if last else meta(bits, batch, dtype=dtype).T
    groups = meta(count, dtype=torch.int64)
    codes = meta(count, bits, dtype=torch.float32)
    with recording() as launches:
        kernel.hashing_loss(
            embedding, meta(batch, dtype=items), groups, meta(5, bits), meta(5), meta(bits, bits), codes, 200.0
        )
    return launches


def test_launches():
    """One up to 32 images and 128 bits, a second that adds parts beyond."""
    names = ["losses_and_gradients", "add_parts"]
    for batch, bits, launches in ((1, 1, 1), (32, 48, 1), (32, 128, 1), (33, 48, 2), (32, 129, 2), (256, 512, 2)):
        assert [launch.name for launch in _launches(batch, bits)] == names[:launches]


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_machine_code(capability):
    """Nothing spills, whatever L, B and layout; products are float64 on tensor cores where these know it."""
    shapes = ((32, 1), (31, 37), (32, 48), (32, 128), (33, 127), (128, 512))
    launches = [launch for number, shape in enumerate(shapes) for launch in _launches(*shape, last=number % 2 == 0)]
    launches += _launches(32, 48, torch.float64, items=torch.int32)
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda launch: compile_launch(launch, capability), launches))
    for launch, code in zip(launches, codes, strict=True):
        assert code.spills == 0, (launch.name, launch.arguments["L"])
        assert code.shared <= SHARED_MEMORY[capability]
        assert code.matrix_products == code.count("DMMA")
        if launch.name == "losses_and_gradients":
            assert code.count("DMMA") > 0 or capability == 100


def test_another_batch_and_database_compile_nothing_new():
    """Of one tile of images and of several each: these sizes are run-time values that are not specialised."""
    for first, second in (((30, 1), (17, 75_750)), ((40, 1000), (129, 999))):
        ours, theirs = (_launches(batch, 48, count=count) for batch, count in (first, second))
        for launches in zip(ours, theirs, strict=True):
            assert runs_the_same_code(*launches), launches[0].name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_agrees_with_the_reference(shape, dtype):
    _compare(*_case(shape, dtype=dtype, device="cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(5000, 48, 500, 32), (5000, 64, 500, 300)], ids=str)
def test_gpu_auto_takes_the_kernels_and_runs_are_equal_bit_by_bit(shape):
    embedding, items, state = _case(shape, dtype=torch.float32, device="cuda")
    assert af.explain("asymmetric_hashing_loss", embedding, items, state).chosen == "triton"
    first = hashing_triton._loss(embedding, items, *_sums(state))
    for _ in range(20):
        again = hashing_triton._loss(embedding, items, *_sums(state))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_gpu_item_that_does_not_exist_is_nan():
    embedding, items, state = _case((33, 12, 20, 7), device="cuda")
    items[3] = 33
    *losses, gradients = hashing_triton._loss(embedding, items, *_sums(state))
    assert all(loss.isnan() for loss in losses)
    assert torch.equal(gradients.isnan().any(dim=(0, 2)).cpu(), torch.arange(7) == 3)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(5000, 48, 500, 32), (5000, 64, 500, 300)], ids=str)
def test_gpu_graph_replays(shape):
    embedding, items, state = _case(shape, dtype=torch.float32, device="cuda")
    embedding.requires_grad_()

    def step():
        losses = af.asymmetric_hashing_loss(embedding, items, state, impl="triton")
        return *(loss.detach() for loss in losses), torch.autograd.grad(losses.total, embedding)[0]

    graph, captured = capture(step)
    for _ in range(2):
        with torch.no_grad():
            embedding.copy_(torch.randn_like(embedding).tanh())
            items.copy_(items.roll(1))
        graph.replay()
        replayed = [result.clone() for result in captured]
        assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_gpu_never_waits(dtype):
    embedding, items, state = _case((5000, 48, 500, 32), dtype=torch.float32, device="cuda")
    embedding.requires_grad_()
    items = items.to(dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        af.asymmetric_hashing_loss(embedding, items, state, impl="triton").total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_gpu_memory_is_the_gradients_alone():
    embedding, items, state = _case((200_000, 64, 500, 256), dtype=torch.float32, device="cuda")
    hashing_triton._loss(embedding, items, *_sums(state))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    hashing_triton._loss(embedding, items, *_sums(state))
    assert torch.cuda.max_memory_allocated() - before <= 3 * 4 * 256 * 64 + 2**15
    assert torch.cuda.memory_allocated() == before
