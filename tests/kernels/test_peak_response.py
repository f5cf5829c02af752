"""The Triton kernels of the peaks without a GPU: run in the interpreter against the reference, compiled for GPUs that
are not there. peak_cases.py states the error budget.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agmh_fast.kernels.peak_response import bwd, config, fwd
from attention_cases import make_features, make_params, relative_error, with_own_statistics
from cuda_graphs import capture
from peak_cases import (
    case,
    compare,
    counting,
    doubled,
    kernels_on_cpu,
    matmul_precision,
    narrowed,
    on_gpu,
    peaks_and_gradients,
)
from triton_compile import SHARED_MEMORY, compile_launch, recording, runs_the_same_code

import agmh_fast.functional as af
from agmh_fast.errors import InputError
from agmh_fast.ops import peak_response_triton
from agmh_fast.ops.peak_response_torch import peak_response_forward

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
def on_cpu():
    """The kernels on CPU tensors."""
    with kernels_on_cpu():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_forward_and_every_gradient(shape, dtype):
    index = SHAPES.index(shape) + (dtype == torch.bfloat16)
    features, params = case(shape, dtype, last=index % 2 == 0)
    compare(peaks_and_gradients, features, params, dtype, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_given_statistics(dtype):
    features, params = case((2, 40, 24, 2, 1, 7, 7), dtype, last=True)
    compare(peaks_and_gradients, features, params, dtype, dtype, training=False)


@pytest.mark.usefixtures("on_cpu")
def test_float16_gradients_do_not_vanish():
    features, params = case((2, 40, 24, 2, 2, 7, 7), torch.float16, last=False)
    compare(peaks_and_gradients, features, params, torch.float16, torch.float16)
    low, single = narrowed(features, params, torch.float16)
    peaks = af.peak_response(low, single, impl="triton")
    # 2⁻³⁰ is below float16's smallest number: parameters, which are float32, must not notice.
    small, usual = (
        torch.autograd.grad(peaks.sin().sum() * scale, single.project, retain_graph=True)[0] for scale in (2.0**-30, 1)
    )
    assert relative_error(small * 2.0**30, usual) < 1e-6


@pytest.mark.usefixtures("on_cpu")
def test_tf32_is_as_exact_as_float16():
    """Its products keep ten bits of mantissa, as float16 does."""
    features, params = case((2, 64, 32, 2, 2, 7, 7), torch.float32, last=True)
    with matmul_precision("high"):
        compare(peaks_and_gradients, features, params, torch.float32, torch.float16)


@pytest.mark.usefixtures("on_cpu")
def test_layouts_give_the_same_result():
    params = make_params(2, 12, 5, 2, torch.float32)
    features = make_features(2, 12, 2, 6, 5, torch.float32)
    wide = torch.empty(*features.shape[:3], 10)
    wide[..., ::2] = features
    expected = peaks_and_gradients(features.requires_grad_(), params, "triton")
    for variant in (wide[..., ::2], features.detach().transpose(0, 1).contiguous().transpose(0, 1)):
        actual = peaks_and_gradients(variant.requires_grad_(), params, "triton")
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
def test_two_halves_of_a_weight_make_it_whole():
    """Each rounds to eight bits of mantissa: the second what the first left over, at most 2⁻⁹ of the weight."""
    weight = torch.randn(3, 50, 33)
    high, low = fwd._in_16_bits(weight, torch.bfloat16)
    assert torch.equal(high, weight.to(torch.bfloat16))
    assert ((high.double() + low.double() - weight).abs() <= weight.abs() * 2.0**-17).all()
    high, low = fwd._in_16_bits(weight, torch.float16)
    assert torch.equal(high, weight.half())
    assert low is None


@pytest.mark.usefixtures("on_cpu")
def test_no_images():
    params, features = make_params(3, 16, 8, 2, torch.float32), make_features(3, 16, 2, 4, 4, torch.float32)
    empty = af.peak_response(features[:0], params, training=False, impl="triton")
    assert empty.shape == (0, 3, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_gradients_of_peaks_of_any_layout(dtype):
    params, features = make_params(3, 16, 8, 2, torch.float32), make_features(3, 16, 2, 4, 3, dtype).requires_grad_()
    peaks = af.peak_response(features, params, impl="triton")
    wide = torch.randn(12, 3, 4)
    grad = wide[..., ::2].permute(2, 1, 0)
    expected, actual, flat = (
        torch.autograd.grad(peaks, features, g, retain_graph=True)[0]
        for g in (grad.contiguous(), grad, torch.ones(()).expand_as(peaks))
    )
    assert torch.equal(actual, expected)
    assert torch.equal(flat, torch.autograd.grad(peaks, features, torch.ones_like(peaks))[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, None], ids=str)
@pytest.mark.usefixtures("on_cpu")
def test_running_statistics_of_any_type_follow(dtype):
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 3, 3, 3, torch.float32)
    if dtype is None:
        af.peak_response(features, params._replace(running_mean=None, running_var=None), impl="triton")
        return
    running = {name: getattr(params, name).to(dtype) for name in ("running_mean", "running_var")}
    ours, plain = (with_own_statistics(params._replace(**running)) for _ in range(2))
    versions = ours.running_mean._version, ours.running_var._version
    af.peak_response(features, ours, momentum=0.3, impl="triton")
    af.peak_response(features, plain, momentum=0.3, impl="torch")
    assert (ours.running_mean._version, ours.running_var._version) > versions
    for name in running:
        # Both round a float32 sum once: to float32 at least, to the type at most.
        assert relative_error(getattr(ours, name), getattr(plain, name)) < max(torch.finfo(dtype).eps, 1e-6)


@pytest.mark.usefixtures("on_cpu")
def test_atomics_change_the_order_of_sums_only(monkeypatch):
    dtype = torch.float16
    features, params = narrowed(*case((2, 140, 16, 2, 3, 14, 14), dtype, last=False), dtype)
    assert config.choose(features, 16).splits > 2
    expected = peaks_and_gradients(features, params, "triton")
    monkeypatch.setattr(config, "_ATOMICS", True)
    assert not config.atomics()
    torch.use_deterministic_algorithms(False)
    assert config.atomics()
    actual = peaks_and_gradients(features, params, "triton")
    for name in expected:
        # Sums of a few float32 parts in another order; rounded R may then differ by one rounding here and there.
        assert relative_error(actual[name], expected[name]) < 1e-6 + torch.finfo(dtype).eps / 10, name


def _saved(features, params, training=True):
    """Arguments of the raw forward op and what it returns."""
    weight, projection = torch.randn(2, 4, 6), torch.randn(2, 6, 4)
    stats = (params.running_mean, params.running_var)
    args = (features, weight, projection, params.bn_weight, params.bn_bias, *stats, training, 0.1, 1e-5)
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
def test_no_second_gradient():
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 2, 3, 3, torch.float32)
    peaks = af.peak_response(features.requires_grad_(), params, impl="triton")
    (grad,) = torch.autograd.grad(peaks.square().sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_what_is_not_served_says_why():
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 3, 3, 3, torch.float32)
    for op in (af.peak_response, af.attention_dispersion):
        with pytest.raises(InputError, match=r"impl='triton' cannot serve.*CUDA device"):
            op(features, params, impl="triton")
    assert "CUDA device" in str(af.explain("attention_dispersion", features, params))


FORWARD = ["attend", "gram", "covariance", "statistics", "peak"]
BACKWARD = ["channel_sums", "channel_gradients", "feedback_products", "slot_sums", "spread", "weight_gradient"]
WITHOUT_DOTS = {"split_weight", "covariance", "largest_gradient"}


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
def test_machine_code(monkeypatch, capability, dtype, mode):
    """Nothing spills, everything fits, and every product is the tensor cores' unless float32 is to be exact."""
    monkeypatch.setattr(config, "capability", lambda device: capability)
    with matmul_precision(mode):
        launches = _launches(dtype)
    halves = [] if dtype == torch.float32 else ["split_weight"]
    assert [launch.name for launch in launches] == [*halves, *FORWARD, *BACKWARD]
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda launch: compile_launch(launch, capability), launches))
    for launch, code in zip(launches, codes, strict=True):
        assert code.spills == 0, launch.name
        assert code.shared <= SHARED_MEMORY[capability], launch.name
        assert (code.matrix_products > 0) == (mode == "high" and launch.name not in WITHOUT_DOTS), launch.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_launches(dtype):
    """From W_z and P on: no torch op but the sum of weight_gradient's parts and b₁'s zeros."""
    features = torch.empty(32, 6 * 512, 14, 14, dtype=dtype, device="meta", requires_grad=True)
    sizes = (6, 128, 512), (6, 512, 128), (6, 512), (6, 512), (6, 512)
    params = [torch.empty(size, device="meta", requires_grad=True) for size in sizes]
    running = torch.empty(6, 512, device="meta"), torch.empty(6, 512, device="meta")
    with counting() as launches:
        peaks = peak_response_triton.peaks(features, (*params, *running), True, 0.1, 1e-5)
        assert launches.names == ["split_weight"] * (dtype != torch.float32) + FORWARD
        grad = torch.empty_like(peaks)
        launches.clear()
        torch.autograd.grad(peaks, [features, *params], grad)
        largest = ["largest_gradient"] * (dtype == torch.float16)
        assert launches.names == [*largest, *BACKWARD, "sum", "zeros_like"]


def test_another_batch_size_compiles_nothing_new():
    """Batch size and number of positions reach the kernels as run-time values that are not specialised."""
    for launches in zip(*(_launches(torch.bfloat16, shape=(b, 6, 512, 14, 14)) for b in (32, 48)), strict=True):
        assert runs_the_same_code(*launches), launches[0].name


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gpu_agrees_with_the_reference(dtype, last):
    features, params = on_gpu(dtype, last)
    exact = peaks_and_gradients(*doubled(features, params), "reference")
    ours, plain = peaks_and_gradients(features, params, "triton"), peaks_and_gradients(features, params, "torch")
    if dtype != torch.float32:
        with torch.autocast("cuda", dtype=dtype):
            plain = peaks_and_gradients(features, params, "reference")
    for name, expected in exact.items():
        if name == "conv_bias":
            continue
        a, e = relative_error(ours[name], expected), relative_error(plain[name], expected)
        assert a <= 2 * e + 10 * torch.finfo(dtype).eps, f"{name}: {a:.1e}, plain PyTorch {e:.1e}"


@pytest.mark.gpu
def test_gpu_runs_are_equal_bit_by_bit():
    features, params = on_gpu(torch.bfloat16, True)
    first, second = (peaks_and_gradients(features, params, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
def test_gpu_auto_takes_the_kernels():
    features, params = on_gpu(torch.bfloat16, True)
    assert af.explain("peak_response", features, params).chosen == "triton"
    assert af.explain("attention_dispersion", features, params).chosen == "triton"
    assert af.explain("peak_response", *doubled(features, params)).chosen == "torch"


@pytest.mark.gpu
def test_gpu_graph_replays():
    features, params = on_gpu(torch.bfloat16, True)
    params = params._replace(running_mean=None, running_var=None)
    inputs = [features, *params[:8]]

    def step():
        return torch.autograd.grad(af.attention_dispersion(features, params, impl="triton"), inputs)

    graph, captured = capture(step)
    with torch.no_grad():
        features.copy_(make_features(6, 512, 8, 14, 14))
    graph.replay()
    replayed = [grad.clone() for grad in captured]
    assert all(torch.equal(a, b) for a, b in zip(replayed, step(), strict=True))


@pytest.mark.gpu
def test_gpu_memory_does_not_grow():
    features, params = on_gpu(torch.bfloat16, True)
    used = []
    for _ in range(20):
        af.attention_dispersion(features, params, impl="triton").backward()
        used.append(torch.cuda.memory_allocated())
    assert used[-1] == used[2]
