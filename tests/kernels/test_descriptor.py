"""The descriptor kernels without a GPU: run in the interpreter against the reference, compiled for GPUs that are not
there.

Error budget: against float64 at most twice the error of plain PyTorch in that type, plus ten roundings of the type.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agmh_fast.kernels.descriptor import bwd, config, encode, fwd
from attention_cases import relative_error
from cuda_graphs import capture
from descriptor_cases import SHAPES, encode_inputs, in_layout, narrowed, norm_inputs, normalised, widened
from triton_compile import SHARED_MEMORY, compile_launch, recording, runs_the_same_code
from triton_interpreter import interpreting

import agmh_fast.functional as af
from agmh_fast import AGMH, pack_codes
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


@pytest.fixture
def keep_precision():
    """Put the setting of float32 products back."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


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
    codes, logits = af.encode_descriptors(*narrowed(encode_inputs(0, 4, 2, 2, 6, 10), torch.float32), impl="triton")
    assert (codes.shape, logits.shape) == ((0, 2), (0, 10))


# (B, C_in, H, W, channels, bits): tiles of 128 positions that end in an image, at its end, and hold many images; more
# channels and inputs than a tile, and fewer; n odd, which 16-bit contiguous features are copied for.
ENCODE_SHAPES = [
    (3, 70, 7, 7, 300, 12),
    (2, 64, 14, 14, 40, 48),
    (2, 33, 16, 8, 17, 8),
    (150, 5, 1, 1, 9, 1),
    (33, 20, 2, 2, 520, 3),
    (1, 130, 15, 13, 20, 9),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ENCODE_SHAPES, ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_codes_and_logits(shape, dtype):
    args = narrowed(encode_inputs(*shape), dtype)
    args = (in_layout(args[0], (ENCODE_SHAPES.index(shape) + (dtype == torch.bfloat16)) % 2 == 0), *args[1:])
    exact = af.encode_descriptors(*widened(args), impl="reference")[1]
    codes, logits = af.encode_descriptors(*args, impl="triton")
    plain = af.encode_descriptors(*args, impl="torch")[1]
    error = relative_error(logits, exact)
    assert error <= 2 * relative_error(plain, exact) + 10 * torch.finfo(torch.float32).eps
    # Products of 16-bit numbers are exact and nothing is rounded to 16 bits on the way.
    assert error < 1e-5
    assert torch.equal(codes, pack_codes(logits))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.usefixtures("on_cpu", "keep_precision")
def test_tf32_is_as_exact_as_float16(last):
    """Its products keep ten bits of mantissa, as float16 does; exact float32 keeps all."""
    args = narrowed(encode_inputs(2, 70, 7, 7, 80, 12), torch.float32)
    args = (in_layout(args[0], last), *args[1:])
    exact = af.encode_descriptors(*widened(args), impl="reference")[1]
    errors = {}
    for mode in ("high", "highest"):
        torch.set_float32_matmul_precision(mode)
        errors[mode] = relative_error(af.encode_descriptors(*args, impl="triton")[1], exact)
    assert errors["highest"] < 1e-5 < errors["high"] < 10 * torch.finfo(torch.float16).eps


@pytest.mark.usefixtures("on_cpu")
def test_no_bias_zero_logits_and_nan():
    args = narrowed(encode_inputs(3, 4, 2, 2, 6, 10), torch.float32)
    x, weight, bias, gamma, beta, mean, var, hash_weight = args
    codes, logits = af.encode_descriptors(x, weight, None, gamma, beta, mean - bias, var, hash_weight, impl="triton")
    assert relative_error(logits, af.encode_descriptors(*args, impl="reference")[1]) < 1e-5
    codes, logits = af.encode_descriptors(*args[:-1], 0 * hash_weight, impl="triton")
    assert not logits.any()
    assert codes.tolist() == [[255, 192]] * 3
    x[1, 2, 0, 1] = torch.nan
    codes, logits = af.encode_descriptors(*args, impl="triton")
    assert logits.isnan().any(dim=1).tolist() == [False, True, False]
    assert codes[1].tolist() == [0, 0]


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
    args = narrowed(encode_inputs(3, 4, 2, 2, 6, 10), dtype)
    torch.library.opcheck(OPS.triton_encode_descriptors.default, (*args, 1e-5))


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


# The tensor cores' instruction of each generation.
PRODUCT = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


def _launches(dtype, last=True, batch=32, size=14):
    """What forward, backward and encoding launch at the published sizes."""

    def new(*shape, kind=torch.float32):
        return torch.empty(*shape, dtype=kind, device="meta")

    y, x = (in_layout(new(batch, c, size, size, kind=dtype), last) for c in (3072, 2048))
    vector = new(3072)
    with recording() as launches:
        mean, var = fwd.batch_statistics(y, vector, vector, 0.1)
        features, pooled = fwd.forward(y, mean, var, vector, vector, 1e-5)
        bwd.backward(features, pooled, y, mean, var, vector, vector, True, 1e-5)
        encode.encode(x, new(3072, 2048, kind=dtype), vector, vector, vector, mean, var, new(48, 3072), 1e-5)
    return launches


NAMES = ["statistics", "combine", "normalize", "gradient_sums", "input_gradient", "project", "hash_codes"]


@pytest.mark.parametrize(
    ("capability", "dtype", "mode", "last", "size"),
    [
        (80, torch.bfloat16, "high", True, 14),
        (90, torch.bfloat16, "high", True, 14),
        (100, torch.bfloat16, "high", True, 14),
        (90, torch.bfloat16, "high", False, 14),
        (80, torch.bfloat16, "high", False, 7),
        (90, torch.float32, "highest", True, 14),
    ],
    ids=str,
)
def test_machine_code(monkeypatch, keep_precision, capability, dtype, mode, last, size):
    """Nothing spills, everything fits, and the convolution uses the tensor cores unless float32 is to be exact."""
    torch.set_float32_matmul_precision(mode)
    monkeypatch.setattr(config, "capability", lambda device: capability)
    launches = _launches(dtype, last, size=size)
    assert [launch.name for launch in launches] == NAMES
    if not last:
        # These two see no features: they are what they are for channels_last.
        launches = [launch for launch in launches if launch.name not in ("combine", "hash_codes")]
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda launch: compile_launch(launch, capability), launches))
    for launch, code in zip(launches, codes, strict=True):
        assert code.spills == 0, launch.name
        assert code.shared <= SHARED_MEMORY[capability], launch.name
        assert (code.count(PRODUCT[capability]) > 0) == (launch.name == "project" and mode == "high"), launch.name
        # Features are loaded in advance wherever four bytes of them lie side by side.
        assert (code.count("LDGSTS") > 0) == (launch.name == "project"), launch.name


def test_another_batch_size_compiles_nothing_new():
    """Batch size and number of positions reach the kernels as run-time values that are not specialised."""
    for launches in zip(*(_launches(torch.bfloat16, batch=b) for b in (32, 47)), strict=True):
        assert runs_the_same_code(*launches), launches[0].name


def test_encoding_stores_no_descriptors():
    """Nothing that encoding touches is as large as the descriptors, or a tenth of them beside its inputs."""
    for launch in _launches(torch.bfloat16)[-2:]:
        for name, value in launch.arguments.items():
            if isinstance(value, torch.Tensor) and name not in ("x", "weight"):
                assert value.numel() < 32 * 3072 * 196 / 10, name


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


def _encode_on_gpu(dtype, last, batch=32, size=14):
    args = narrowed(encode_inputs(batch, 2048, size, size, 3072, 48), dtype)
    return tuple(t.cuda() for t in (in_layout(args[0], last), *args[1:]))


@pytest.mark.gpu
@pytest.mark.parametrize(("last", "size"), [(True, 14), (False, 14), (False, 7)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_encodes_as_the_reference(dtype, last, size):
    args = _encode_on_gpu(dtype, last, size=size)
    exact = af.encode_descriptors(*widened(args), impl="reference")[1]
    codes, logits = af.encode_descriptors(*args, impl="triton")
    plain = af.encode_descriptors(*args, impl="torch")[1]
    assert relative_error(logits, exact) <= 2 * relative_error(plain, exact) + 1e-5
    assert torch.equal(codes, pack_codes(logits))


@pytest.mark.gpu
def test_gpu_runs_are_equal_bit_by_bit():
    inputs, args = _on_gpu(torch.bfloat16, True), _encode_on_gpu(torch.bfloat16, True)
    first, second = (normalised(inputs, "triton", torch.bfloat16) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(*(af.encode_descriptors(*args, impl="triton")[1] for _ in range(2)))


@pytest.mark.gpu
def test_gpu_auto_takes_the_kernels():
    for op, x in (("batch_norm_relu_mean", _on_gpu(torch.bfloat16, True)[0]), ("encode_descriptors", _x())):
        assert af.explain(op, x).chosen == "triton"


def _x():
    return _encode_on_gpu(torch.bfloat16, True, batch=2)[0]


@pytest.mark.gpu
def test_gpu_graph_replays():
    y, gamma, beta, *_ = _on_gpu(torch.bfloat16, True)
    y.requires_grad_()
    args = _encode_on_gpu(torch.bfloat16, True)

    def step():
        features, pooled = af.batch_norm_relu_mean(y, gamma, beta, impl="triton")
        (grad,) = torch.autograd.grad(features.float().square().sum() + pooled.sum(), y)
        return grad, *af.encode_descriptors(*args, impl="triton")

    graph, captured = capture(step)
    with torch.no_grad():
        y.copy_(torch.randn_like(y))
        args[0].copy_(torch.rand_like(args[0]))
    graph.replay()
    replayed = [result.clone() for result in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))


@pytest.mark.gpu
def test_gpu_encoding_takes_little_memory():
    args = _encode_on_gpu(torch.bfloat16, True)
    af.encode_descriptors(*args, impl="triton")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    af.encode_descriptors(*args, impl="triton")
    assert torch.cuda.max_memory_allocated() - before < 32 * 3072 * 196 * 2 / 10
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
def test_gpu_never_waits():
    """Neither training nor encoding looks at a value on the host."""
    inputs, args = _on_gpu(torch.bfloat16, True), _encode_on_gpu(torch.bfloat16, True)
    y = inputs[0].requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        features, pooled = af.batch_norm_relu_mean(y, *inputs[1:], impl="triton")
        (features.float().sum() + pooled.sum()).backward()
        af.encode_descriptors(*args, impl="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
