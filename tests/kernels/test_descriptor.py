"""The kernels of the descriptors' training without a GPU: run in the interpreter against the reference, compiled for
GPUs that are not there. test_encode.py has those of encoding.

Error budget: against float64 at most twice the error of plain PyTorch in that type, plus ten roundings of the type.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agmh_fast.kernels.descriptor import bwd, fwd
from attention_cases import relative_error
from cuda_graphs import capture
from descriptor_cases import SHAPES, in_layout, norm_inputs, normalised
from triton_compile import SHARED_MEMORY, compile_launch, recording, runs_the_same_code
from triton_interpreter import interpreting

import agmh_fast.functional as af
from agmh_fast import AGMH
from agmh_fast.errors import InputError
from agmh_fast.ops import descriptor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = torch.ops.agmh_fast


@pytest.fixture
def on_cpu(monkeypatch):
    """Let the kernels serve CPU tensors, in the interpreter."""
    for op in (descriptor.batch_norm_relu_mean, descriptor.encode_descriptors):
        monkeypatch.setitem(op.obstacles, "triton", lambda *args: None)
    with interpreting():
        yield


def _compare(inputs, dtype, last, training=True, uses=("features", "pooled"), without=()):
    """The kernels' errors against float64 beside those of plain PyTorch in the same type, but for some results."""
    y = in_layout(inputs[0].to(dtype), last)
    inputs = (y, *inputs[1:])
    exact = normalised((y.double(), *inputs[1:]), "reference", torch.float64, training, uses)
    ours, plain = (normalised(inputs, impl, dtype, training, uses) for impl in ("triton", "reference"))
    assert ours["features"].dtype == ours["y"].dtype == dtype
    kept = torch.channels_last if last else torch.contiguous_format
    assert all(ours[name].is_contiguous(memory_format=kept) for name in ("features", "y"))
    for name in exact.keys() - set(without):
        expected = exact[name]
        a, e = relative_error(ours[name], expected), relative_error(plain[name], expected)
        assert a <= 2 * e + 10 * torch.finfo(dtype).eps, f"{name}: {a:.1e}, plain PyTorch {e:.1e}"
        # It is added before anything is rounded to 16 bits.
        assert name != "pooled" or dtype == torch.float32 or a < 1e-5


@pytest.mark.parametrize("index", range(len(SHAPES)), ids=lambda index: str(SHAPES[index]))
@pytest.mark.usefixtures("on_cpu")
def test_forward_and_every_gradient(index):
    """float32 in one memory format and a narrower type in the other, by turns."""
    inputs, last = norm_inputs(*SHAPES[index]), index % 2 == 0
    _compare(inputs, torch.float32, last)
    _compare(inputs, (torch.bfloat16, torch.float16)[index % 3 == 0], not last)


@pytest.mark.parametrize("uses", [("features",), ("pooled",)], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("on_cpu")
def test_one_result_alone_and_given_statistics(training, uses):
    _compare(norm_inputs(3, 40, 7, 9), torch.float32, last=True, training=training, uses=uses)
    _compare(norm_inputs(2, 70, 4, 4), torch.bfloat16, last=False, training=training, uses=uses)


@pytest.mark.usefixtures("on_cpu")
def test_means_far_from_zero_do_not_cancel():
    """A mean of 10⁴ deviations leaves y three digits; its variance keeps all that y has.

    Gradients are left out: there ReLU passes or stops what lies within the mean's own rounding of zero.
    """
    for last in (True, False):
        inputs = norm_inputs(4, 20, 9, 9, offset=1e4)
        _compare(inputs, torch.float32, last, without=("y", "gamma", "beta"))
        y = in_layout(inputs[0].float(), last)
        variance = fwd.batch_statistics(y, None, None, 0.1)[1]
        assert relative_error(variance, y.double().var(dim=(0, 2, 3), correction=0)) < 1e-6


@pytest.mark.usefixtures("on_cpu")
def test_variance_of_uneven_parts():
    """Images that differ by far more than their pixels: the parts' means carry the variance."""
    y, _, _, mean, var = (t.float() for t in norm_inputs(37, 5, 3, 3))
    y = y + 1000 * torch.randn(37, 1, 1, 1)
    for layout in (False, True):
        average, variance = fwd.batch_statistics(in_layout(y, layout), mean, var, 0.1)
        expected = torch.var_mean(y.double(), dim=(0, 2, 3), correction=0)
        # Some hundred additions, each rounded, of terms all positive.
        assert relative_error(variance, expected[0]) < 100 * torch.finfo(torch.float32).eps
        assert relative_error(average, expected[1]) < 100 * torch.finfo(torch.float32).eps


@pytest.mark.usefixtures("on_cpu")
def test_layouts_give_the_same_result():
    inputs = norm_inputs(2, 12, 6, 5)
    expected = normalised(inputs, "triton", torch.float32)
    wide = torch.empty(2, 12, 6, 10).double()
    wide[..., ::2] = inputs[0]
    for y in (wide[..., ::2], inputs[0].transpose(0, 1).contiguous().transpose(0, 1)):
        actual = normalised((y, *inputs[1:]), "triton", torch.float32)
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    y, gamma, beta, *_ = (t.float() for t in inputs)
    single = y[:1].expand(2, -1, -1, -1)
    results = [af.batch_norm_relu_mean(t, gamma, beta, impl="triton") for t in (single, single.clone())]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.usefixtures("on_cpu")
def test_gradients_of_any_layout():
    """Autograd hands over what the last op made: expanded, transposed, of the other memory format."""
    y, gamma, beta, *_ = (t.float() for t in norm_inputs(2, 12, 6, 5))
    y = in_layout(y, True).requires_grad_()
    grads = torch.randn(5, 6, 12, 2).permute(3, 2, 1, 0), torch.randn(12, 2).T
    for each in (grads, (torch.ones(1, 12, 1, 1).expand(2, 12, 6, 5), grads[1])):
        actual, expected = (
            torch.autograd.grad(af.batch_norm_relu_mean(y, gamma, beta, impl=impl), y, each)[0]
            for impl in ("triton", "reference")
        )
        assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("on_cpu")
def test_nan_is_not_hidden(training):
    y, gamma, beta, mean, var = (t.float() for t in norm_inputs(3, 4, 3, 3))
    y[1, 2, 0, 0] = torch.nan
    results = {
        impl: af.batch_norm_relu_mean(y, gamma, beta, mean.clone(), var.clone(), training=training, impl=impl)
        for impl in ("triton", "reference")
    }
    for actual, expected in zip(*results.values(), strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
        assert actual.isnan().any()


@pytest.mark.usefixtures("on_cpu")
def test_empty_batches_in_eval_mode():
    y, *rest = (t.float() for t in norm_inputs(0, 4, 2, 3))
    leaf = y.requires_grad_()
    features, pooled = af.batch_norm_relu_mean(leaf, *rest, training=False, impl="triton")
    features.sum().backward()
    assert (features.shape, pooled.shape, leaf.grad.shape) == ((0, 4, 2, 3), (0, 4), (0, 4, 2, 3))


@pytest.mark.usefixtures("on_cpu")
def test_the_model_trains_and_encodes_by_the_kernels():
    backbone = torch.nn.Conv2d(3, 8, 3, stride=4)
    models = {
        impl: AGMH(12, backbone=backbone, num_descriptors=2, descriptor_dim=5, memory_size=4, impl=impl)
        for impl in ("torch", "triton")
    }
    models["triton"].load_state_dict(models["torch"].state_dict())
    models["triton"].attention.impl = "torch"
    images, outputs, grads = torch.randn(4, 3, 16, 16), {}, {}
    for impl, model in models.items():
        out = model(images)
        leaves = [*model.descriptors.parameters(), model.hash_weight]
        grads[impl] = torch.autograd.grad(out.embedding.square().mean() + out.attention_dispersion, leaves)
        codes = model.encode(images)
        outputs[impl] = (out.embedding, out.attention_dispersion, *model.descriptors.buffers(), codes)
    for a, b in zip(outputs["triton"], outputs["torch"], strict=True):
        assert relative_error(a, b) < 1e-5
    largest = max(g.norm() for g in grads["torch"])
    for a, b in zip(grads["triton"], grads["torch"], strict=True):
        assert (a - b).norm() < 1e-5 * largest
    with pytest.raises(InputError, match="image 2 gives NaN"):
        models["triton"].encode(torch.where(torch.arange(4)[:, None, None, None] == 2, torch.nan, images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_opcheck(dtype):
    y, gamma, beta, mean, var = (t.float() for t in norm_inputs(2, 6, 3, 2))
    y = in_layout(y.to(dtype), dtype == torch.bfloat16)
    for running in ((mean, var), (None, None)):
        torch.library.opcheck(OPS.triton_batch_statistics.default, (y, *running, 0.1))
    torch.library.opcheck(OPS.triton_normalize_relu_mean.default, (y, mean, var, gamma, beta, 1e-5))
    grads = torch.randn(y.shape).to(dtype), torch.randn(2, 6)
    for features, pooled, training in ((*grads, True), (None, grads[1], False), (grads[0], None, True)):
        args = (features, pooled, y, mean, var, gamma, beta, training, 1e-5)
        torch.library.opcheck(OPS.triton_normalize_relu_mean_backward.default, args)


@pytest.mark.usefixtures("on_cpu")
def test_compiles_whole_and_for_any_batch():
    y, gamma, beta, *_ = (t.float() for t in norm_inputs(5, 6, 3, 3))
    running = {kind: [torch.zeros(6), torch.ones(6)] for kind in ("compiled", "eager")}

    def step(y, kind):
        features, pooled = af.batch_norm_relu_mean(y, gamma, beta, *running[kind], impl="triton")
        return features.square().sum() + pooled.sin().sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 5):
        x = y[:batch].clone().requires_grad_()
        actual, expected = (torch.autograd.grad(f(x, k), x)[0] for f, k in ((compiled, "compiled"), (step, "eager")))
        assert torch.equal(actual, expected)
    assert all(torch.equal(a, b) for a, b in zip(*running.values(), strict=True))
    assert running["eager"][0].any()


@pytest.mark.usefixtures("on_cpu")
def test_a_change_of_running_statistics_is_noticed():
    y, gamma, beta, mean, var = (t.float() for t in norm_inputs(2, 6, 3, 2))
    y.requires_grad_()
    features, _ = af.batch_norm_relu_mean(y, gamma, beta, mean, var, training=False, impl="triton")
    af.batch_norm_relu_mean(y, gamma, beta, mean, var, impl="triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        features.sum().backward()


def test_what_is_not_served_says_why():
    y, gamma, beta, *_ = norm_inputs(2, 6, 3, 2)
    with pytest.raises(InputError, match=r"impl='triton' cannot serve batch_norm_relu_mean.*CUDA device"):
        af.batch_norm_relu_mean(y, gamma, beta, impl="triton")
    assert "CUDA device" in str(af.explain("batch_norm_relu_mean", y))


def _launches(dtype, last=True, batch=32, size=14):
    """What forward and backward launch at the published sizes."""
    y = in_layout(torch.empty(batch, 3072, size, size, dtype=dtype, device="meta"), last)
    vector = torch.empty(3072, device="meta")
    with recording() as launches:
        mean, var = fwd.batch_statistics(y, vector, vector, 0.1)
        features, pooled = fwd.forward(y, mean, var, vector, vector, 1e-5)
        bwd.backward(features, pooled, y, mean, var, vector, vector, True, 1e-5)
    return launches


NAMES = ["statistics", "combine", "normalize", "gradient_sums", "input_gradient"]


@pytest.mark.parametrize(
    ("capability", "dtype", "last", "size"),
    [
        (80, torch.bfloat16, True, 14),
        (90, torch.bfloat16, True, 14),
        (100, torch.bfloat16, True, 14),
        (90, torch.bfloat16, False, 14),
        (80, torch.bfloat16, False, 7),
        (90, torch.float32, True, 14),
    ],
    ids=str,
)
def test_machine_code(capability, dtype, last, size):
    """Nothing spills, and two blocks fit an SM at least."""
    launches = _launches(dtype, last, size=size)
    assert [launch.name for launch in launches] == NAMES
    if not last:
        # It sees one channel's first value of the features: it is what it is for channels_last.
        launches = [launch for launch in launches if launch.name != "combine"]
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda launch: compile_launch(launch, capability), launches))
    for launch, code in zip(launches, codes, strict=True):
        assert code.spills == 0, launch.name
        assert code.shared <= SHARED_MEMORY[capability] // 2, launch.name
        assert code.registers * 32 * launch.options["num_warps"] <= 65536 // 2, launch.name


def test_another_batch_size_compiles_nothing_new():
    """Batch size and number of positions reach the kernels as run-time values that are not specialised."""
    for launches in zip(*(_launches(torch.bfloat16, batch=b) for b in (32, 47)), strict=True):
        assert runs_the_same_code(*launches), launches[0].name


def _on_gpu(dtype, last, batch=32):
    inputs = norm_inputs(batch, 3072, 14, 14)
    y = in_layout(inputs[0].to(dtype), last).cuda()
    return y, *(t.float().cuda() for t in inputs[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_agrees_with_the_reference(dtype, last, training):
    inputs = _on_gpu(dtype, last)
    exact = normalised((inputs[0].double(), *inputs[1:]), "reference", torch.float64, training)
    ours, plain = (normalised(inputs, impl, dtype, training) for impl in ("triton", "reference"))
    for name, expected in exact.items():
        a, e = relative_error(ours[name], expected), relative_error(plain[name], expected)
        assert a <= 2 * e + 10 * torch.finfo(dtype).eps, f"{name}: {a:.1e}, plain PyTorch {e:.1e}"


@pytest.mark.gpu
def test_gpu_runs_are_equal_bit_by_bit():
    inputs = _on_gpu(torch.bfloat16, True)
    first, second = (normalised(inputs, "triton", torch.bfloat16) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
def test_gpu_auto_takes_the_kernels():
    assert af.explain("batch_norm_relu_mean", _on_gpu(torch.bfloat16, True, batch=2)[0]).chosen == "triton"


@pytest.mark.gpu
def test_gpu_graph_replays():
    y, gamma, beta, *_ = _on_gpu(torch.bfloat16, True)
    y.requires_grad_()

    def step():
        features, pooled = af.batch_norm_relu_mean(y, gamma, beta, impl="triton")
        return torch.autograd.grad(features.float().square().sum() + pooled.sum(), y)[0]

    graph, captured = capture(step)
    with torch.no_grad():
        y.copy_(torch.randn_like(y))
    graph.replay()
    assert torch.equal(captured.clone(), step())


@pytest.mark.gpu
def test_gpu_never_waits():
    """No value is looked at on the host."""
    inputs = _on_gpu(torch.bfloat16, True)
    y = inputs[0].requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        features, pooled = af.batch_norm_relu_mean(y, *inputs[1:], impl="triton")
        (features.float().sum() + pooled.sum()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
