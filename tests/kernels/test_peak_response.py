"""The Triton kernels without a GPU: run in the interpreter against the reference, compiled for GPUs that are not there.

Error budget: against the float64 reference at most twice the error of plain PyTorch in that type, plus ten roundings
of the type. Plain PyTorch is the `torch` implementation for float32, the reference under autocast for narrower types.
Gradients that cancel to nearly nothing (K = 1) are measured against the largest gradient.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agmh_fast.kernels.peak_response import bwd, config, fwd
from attention_cases import compiled_gradient_error, make_features, make_params, relative_error, with_own_statistics
from triton_compile import compile_launch, recording
from triton_interpreter import interpreting

import agmh_fast.functional as af
from agmh_fast.errors import InputError
from agmh_fast.ops.dispersion import attention_dispersion
from agmh_fast.ops.peak_response import peak_response
from agmh_fast.ops.peak_response_torch import peak_response_forward

NAMES = ("features", "conv_weight", "conv_bias", "query", "mix", "value", "project", "bn_weight", "bn_bias")
# (D, C, K, h, B, H, W): n = 49, 195, 196 and 784, which takes the online softmax; one channel, one slot, one image.
SHAPES = [
    (2, 64, 32, 4, 2, 7, 7),
    (3, 33, 100, 2, 1, 15, 13),
    (1, 96, 128, 1, 2, 14, 14),
    (2, 1, 4, 4, 3, 2, 3),
    (1, 20, 1, 3, 2, 3, 3),
    (1, 512, 16, 2, 1, 7, 7),
    (1, 20, 7, 2, 1, 28, 28),
]


@pytest.fixture
def on_cpu(monkeypatch):
    """Let the kernels serve CPU tensors, in the interpreter."""
    for op in (peak_response, attention_dispersion):
        monkeypatch.setitem(op.obstacles, "triton", lambda *args: None)
    with interpreting():
        yield


@pytest.fixture
def tf32():
    """Allow float32 products in tf32, and put the setting back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def _everything(features, params, impl, training=True):
    """Loss, peaks, running statistics, and the gradients of the loss and a sum that weighs every peak differently."""
    params = with_own_statistics(params)
    peaks = af.peak_response(features, params, training=training, impl=impl)
    weights = torch.linspace(0.5, 2, peaks.numel(), dtype=peaks.dtype).view_as(peaks).sin() / peaks.numel()
    maps = torch.softmax(peaks, dim=2)
    loss = (maps.sum(dim=1).square() - maps.square().sum(dim=1)).sum()
    grads = torch.autograd.grad((peaks * weights).sum() + loss, [features, *params[:8]], materialize_grads=True)
    return {
        "loss": loss.detach(),
        "peaks": peaks.detach(),
        "running_mean": params.running_mean,
        "running_var": params.running_var,
    } | dict(zip(NAMES, grads, strict=True))


def _narrowed(features, params, dtype):
    """Leaves: the features in `dtype`, the parameters in float32."""
    single = [None if t is None else t.detach().float() for t in params]
    leaves = [t.requires_grad_() for t in single[:8]]
    return features.detach().to(dtype).requires_grad_(), type(params)(*leaves, *single[8:])


def _compare(features, params, dtype, against, training=True):
    """The kernels' errors against float64 beside those of plain PyTorch in the type `against`."""
    exact = _everything(features, params, "reference", training)
    low, single = _narrowed(features, params, dtype)
    ours = _everything(low, single, "triton", training)
    if against == torch.float32:
        plain = _everything(low, single, "torch", training)
    else:
        with torch.autocast("cpu", dtype=against):
            plain = _everything(*_narrowed(features, params, against), "reference", training)
    assert ours["features"].dtype == dtype
    assert ours["features"].stride() == low.stride()
    largest = max(float(exact[name].norm()) for name in NAMES)
    for name, expected in exact.items():
        if float(expected.norm()) < 1e-3 * largest and name in NAMES:
            a, e = (float((x[name].double() - expected).norm()) / largest for x in (ours, plain))
        else:
            a, e = relative_error(ours[name], expected), relative_error(plain[name], expected)
        assert a <= 2 * e + 10 * torch.finfo(against).eps, f"{name}: {a:.1e}, plain PyTorch {e:.1e}"


def _case(shape, dtype, last):
    d, c, k, h, b, height, width = shape
    features = make_features(d, c, b, height, width).to(dtype).double()
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    return features.requires_grad_(), make_params(d, c, k, h)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_forward_and_every_gradient(shape, dtype):
    index = SHAPES.index(shape) + (dtype == torch.bfloat16)
    features, params = _case(shape, dtype, last=index % 2 == 0)
    _compare(features, params, dtype, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_given_statistics(dtype):
    features, params = _case((2, 40, 24, 2, 1, 7, 7), dtype, last=True)
    _compare(features, params, dtype, dtype, training=False)


@pytest.mark.usefixtures("on_cpu")
def test_float16_gradients_do_not_vanish():
    features, params = _case((2, 40, 24, 2, 2, 7, 7), torch.float16, last=False)
    _compare(features, params, torch.float16, torch.float16)
    low, single = _narrowed(features, params, torch.float16)
    peaks = af.peak_response(low, single, impl="triton")
    # 2⁻³⁰ is below float16's smallest number: parameters, which are float32, must not notice.
    small, usual = (
        torch.autograd.grad(peaks.sin().sum() * scale, single.project, retain_graph=True)[0] for scale in (2.0**-30, 1)
    )
    assert relative_error(small * 2.0**30, usual) < 1e-6


@pytest.mark.usefixtures("on_cpu", "tf32")
def test_tf32_is_as_exact_as_float16():
    """Its products keep ten bits of mantissa, as float16 does."""
    features, params = _case((2, 64, 32, 2, 2, 7, 7), torch.float32, last=True)
    _compare(features, params, torch.float32, torch.float16)


@pytest.mark.usefixtures("on_cpu")
def test_layouts_give_the_same_result():
    params = make_params(2, 12, 5, 2, torch.float32)
    features = make_features(2, 12, 2, 6, 5, torch.float32)
    wide = torch.empty(*features.shape[:3], 10)
    wide[..., ::2] = features
    expected = _everything(features.requires_grad_(), params, "triton")
    for variant in (wide[..., ::2], features.detach().transpose(0, 1).contiguous().transpose(0, 1)):
        actual = _everything(variant.requires_grad_(), params, "triton")
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
    single = features.detach()[:1].expand(2, -1, -1, -1)
    copied = af.peak_response(single.contiguous(), with_own_statistics(params), impl="triton")
    assert torch.equal(af.peak_response(single, with_own_statistics(params), impl="triton"), copied)


@pytest.mark.usefixtures("on_cpu")
def test_of_equal_channels_the_first_counts():
    features = torch.randint(0, 3, (2, 2 * 70, 7, 7)).float()
    weight, projection = torch.randn(2, 16, 70), torch.zeros(2, 70, 16)
    stats = torch.zeros(2, 70), torch.ones(2, 70)
    args = (features, weight, projection, torch.ones(2, 70), torch.zeros(2, 70), stats, 1e-5)
    expected = peak_response_forward(*args)
    peaks, channel, *_ = fwd.forward(*args)
    first = features.view(2, 2, 70, 49).numpy().argmax(2)
    assert torch.equal(channel, torch.from_numpy(first).to(torch.int16))
    assert torch.equal(peaks, expected.peaks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("on_cpu")
def test_nan_is_not_hidden(training):
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 3, 3, 3, torch.float32)
    features[1, 2, 0, 0] = torch.nan
    peaks = af.peak_response(features, with_own_statistics(params), training=training, impl="triton")
    assert peaks[1, 0].isnan().all()
    assert peaks[:, 1].isfinite().all()


@pytest.mark.usefixtures("on_cpu")
def test_the_dispersion_loss():
    params, features = make_params(3, 16, 8, 2, torch.float32), make_features(3, 16, 2, 4, 4, torch.float32)
    losses = [af.attention_dispersion(features, with_own_statistics(params), impl=i) for i in ("triton", "torch")]
    assert relative_error(*losses) < 10 * torch.finfo(torch.float32).eps
    empty = af.peak_response(features[:0], params, training=False, impl="triton")
    assert empty.shape == (0, 3, 16)


def _saved(features, params, training=True):
    """Arguments of the raw forward op and what it returns."""
    weight, projection = torch.randn(2, 4, 6), torch.randn(2, 6, 4)
    stats = (None, None) if training else (params.running_mean, params.running_var)
    args = (features, weight, projection, params.bn_weight, params.bn_bias, *stats, 1e-5)
    return args, torch.ops.agmh_fast.triton_peak_response(*args)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("on_cpu")
def test_opcheck(training):
    params = make_params(2, 6, 4, 2, torch.float32, requires_grad=False)
    features = make_features(2, 6, 2, 3, 2, torch.bfloat16)
    args, saved = _saved(features, params, training)
    torch.library.opcheck(torch.ops.agmh_fast.triton_peak_response.default, args)
    backward = (torch.randn(saved[0].shape), *args[:4], *saved, 1e-5)
    torch.library.opcheck(torch.ops.agmh_fast.triton_peak_response_backward.default, backward)


@pytest.mark.usefixtures("on_cpu")
def test_compiles_whole_and_for_any_batch():
    assert compiled_gradient_error("triton") < 1e-5


def test_what_is_not_served_says_why():
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 3, 3, 3, torch.float32)
    for op in (af.peak_response, af.attention_dispersion):
        with pytest.raises(InputError, match=r"impl='triton' cannot serve.*CUDA device"):
            op(features, params, impl="triton")
    assert "CUDA device" in str(af.explain("attention_dispersion", features, params))


# Bytes of shared memory that a block can have.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def _launches(dtype, last=True, shape=(32, 6, 512, 14, 14), slots=128):
    """What forward and backward launch at the published sizes."""
    batch, d, c, height, width = shape
    features = torch.empty(batch, d * c, height, width, dtype=dtype, device="meta")
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    weight, projection, gamma, beta = (
        torch.empty(size, device="meta") for size in ((d, slots, c), (d, c, slots), (d, c), (d, c))
    )
    with recording() as launches:
        saved = fwd.forward(features, weight, projection, gamma, beta, None, 1e-5)
        bwd.backward(torch.empty_like(saved[0]), features, weight, projection, gamma, *saved, 1e-5)
    return launches


@pytest.mark.parametrize(
    ("capability", "dtype", "mode"),
    [
        (80, torch.bfloat16, "high"),
        (90, torch.bfloat16, "high"),
        (100, torch.bfloat16, "high"),
        (90, torch.float32, "high"),
        (80, torch.float32, "highest"),
    ],
    ids=str,
)
def test_machine_code(monkeypatch, tf32, capability, dtype, mode):
    """Nothing spills, everything fits, and every kernel uses the tensor cores unless float32 is to be exact."""
    torch.set_float32_matmul_precision(mode)
    monkeypatch.setattr(config, "capability", lambda device: capability)
    launches = _launches(dtype)
    names = ["attend", "gram", "peak", "channel_sums", "slot_sums", "spread", "weight_gradient"]
    assert [launch.name for launch in launches] == names
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda launch: compile_launch(launch, capability), launches))
    for launch, code in zip(launches, codes, strict=True):
        assert code.spills == 0, launch.name
        assert code.shared <= SHARED[capability], launch.name
        assert (code.matrix_products > 0) == (mode == "high"), launch.name


def test_another_batch_size_compiles_nothing_new():
    """Batch size and number of positions reach the kernels as run-time values that are not specialised."""
    for launches in zip(*(_launches(torch.bfloat16, shape=(b, 6, 512, 14, 14)) for b in (32, 48)), strict=True):
        kernel, differing = launches[0].kernel, set()
        for name, value in launches[0].arguments.items():
            if isinstance(value, int) and value != launches[1].arguments[name]:
                differing.add(name)
        free = {p.name for p in kernel.params if p.do_not_specialize}
        assert differing <= free, launches[0].name
        assert launches[0].options == launches[1].options


def _on_gpu(dtype, last, batch=8):
    d, c, k, h, height, width = 6, 512, 128, 4, 14, 14
    features = make_features(d, c, batch, height, width).to(dtype).cuda()
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    params = make_params(d, c, k, h, torch.float32)
    moved = [t.detach().cuda() for t in params]
    return features.requires_grad_(), type(params)(*(t.requires_grad_() for t in moved[:8]), *moved[8:])


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gpu_agrees_with_the_reference(dtype, last):
    features, params = _on_gpu(dtype, last)
    exact = _everything(features.detach().double().requires_grad_(), _double(params), "reference")
    ours, plain = _everything(features, params, "triton"), _everything(features, params, "torch")
    if dtype != torch.float32:
        with torch.autocast("cuda", dtype=dtype):
            plain = _everything(features, params, "reference")
    for name, expected in exact.items():
        if name == "conv_bias":
            continue
        a, e = relative_error(ours[name], expected), relative_error(plain[name], expected)
        assert a <= 2 * e + 10 * torch.finfo(dtype).eps, f"{name}: {a:.1e}, plain PyTorch {e:.1e}"


def _double(params):
    doubled = [t.detach().double() for t in params]
    return type(params)(*(t.requires_grad_() for t in doubled[:8]), *doubled[8:])


@pytest.mark.gpu
def test_gpu_runs_are_equal_bit_by_bit():
    features, params = _on_gpu(torch.bfloat16, True)
    first, second = (_everything(features, params, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
def test_gpu_auto_takes_the_kernels():
    features, params = _on_gpu(torch.bfloat16, True)
    assert af.explain("peak_response", features, params).chosen == "triton"
    assert af.explain("attention_dispersion", features, params).chosen == "triton"
    assert af.explain("peak_response", features.double(), _double(params)).chosen == "torch"


@pytest.mark.gpu
def test_gpu_graph_replays():
    features, params = _on_gpu(torch.bfloat16, True)
    params = params._replace(running_mean=None, running_var=None)
    inputs = [features, *params[:8]]

    def step():
        return torch.autograd.grad(af.attention_dispersion(features, params, impl="triton"), inputs)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        features.copy_(make_features(6, 512, 8, 14, 14))
    graph.replay()
    replayed = [grad.clone() for grad in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))


@pytest.mark.gpu
def test_gpu_memory_does_not_grow():
    features, params = _on_gpu(torch.bfloat16, True)
    used = []
    for _ in range(20):
        af.attention_dispersion(features, params, impl="triton").backward()
        used.append(torch.cuda.memory_allocated())
    assert used[-1] == used[2]
