"""The dispersion loss's kernels without a GPU: run in the interpreter against the reference, compiled for GPUs that are
not there. peak_cases.py states the error budget.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agmh_fast.kernels.dispersion import kernel
from attention_cases import compiled_gradient_error, make_features, make_params, relative_error, with_own_statistics
from cuda_graphs import capture
from peak_cases import case, compare, counting, doubled, kernels_on_cpu, loss_and_gradients, narrowed, on_gpu
from triton_compile import SHARED_MEMORY, compile_launch, recording

import agmh_fast.functional as af
from agmh_fast.errors import InputError
from agmh_fast.ops import peak_response_triton
from agmh_fast.ops.dispersion import overlap
from agmh_fast.reference import dispersion as reference

EPS = torch.finfo(torch.float32).eps
# (B, D, n): one map, one image, one position, odd numbers; more than one tile; more images than are added at a time.
SHAPES = [
    (1, 1, 49),
    (3, 2, 1),
    (2, 6, 195),
    (4, 6, 196),
    (2, 3, 784),
    (1, 6, 3136),
    (2, 64, 100),
    (1, 33, 250),
    (260, 2, 3),
]


@pytest.fixture
def on_cpu():
    """The kernels on CPU tensors."""
    with kernels_on_cpu():
        yield


def _ticket(device="cpu"):
    return torch.zeros(1, dtype=torch.int32, device=device)


def _by_kernels(peaks, grad=1.0):
    loss, rows = kernel.forward(peaks, _ticket(peaks.device))
    return loss, kernel.backward(torch.tensor(grad, device=peaks.device), peaks, rows)


def _by_torch(peaks, grad=1.0):
    peaks = peaks.clone().requires_grad_()
    loss = overlap(torch.softmax(peaks, dim=2))
    return loss.detach(), torch.autograd.grad(loss * grad, peaks)[0]


def _compare(peaks):
    exact = reference.overlap([torch.softmax(m, dim=-1) for m in peaks.double().unbind(1)])
    (loss, grad), (plain, plain_grad), (_, exact_grad) = (
        _by_kernels(peaks, 3.0),
        _by_torch(peaks, 3.0),
        _by_torch(peaks.double(), 3.0),
    )
    assert loss.shape == ()
    assert grad.shape == peaks.shape
    assert relative_error(loss, exact) <= 2 * relative_error(plain, exact) + 10 * EPS
    # Measured against the peaks' own gradients, which may cancel: P_d (ΣP − P_d − ⟨…⟩) is at most this.
    maps = torch.softmax(peaks.double(), dim=2)
    size = (
        (maps * maps.sum(dim=1, keepdim=True)).norm() * 6 / (max(peaks.shape[1] * (peaks.shape[1] - 1), 1) * len(peaks))
    )
    a, e = (float((x.double() - exact_grad).norm() / size) for x in (grad, plain_grad))
    assert a <= 2 * e + 10 * EPS


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spread", [0.1, 10.0])
@pytest.mark.usefixtures("on_cpu")
def test_loss_and_gradient(shape, spread):
    batch, descriptors, n = shape
    # As the peaks' kernel gives them: positions of a descriptor side by side.
    _compare((spread * torch.randn(descriptors, batch, n)).relu().transpose(0, 1))


@pytest.mark.usefixtures("on_cpu")
def test_large_peaks_and_sharp_maps():
    """Of two tiles: the first holds the largest peak, whose exponential the second's could not take."""
    peaks = 500 * torch.rand(2, 3, 1500)
    _compare(peaks)
    peaks[:, :, 7] += 1000
    loss, grad = _by_kernels(peaks)
    assert loss == 1
    assert not grad.any()


@pytest.mark.usefixtures("on_cpu")
def test_gradient_is_that_of_the_loss():
    """Central differences of the loss itself, in float32: its rounding over the step bounds what can be seen."""
    peaks, direction = torch.randn(2, 4, 30), torch.randn(2, 4, 30)
    step = 0.05
    up, down = (_by_kernels(peaks + sign * step * direction)[0].double() for sign in (1, -1))
    slope = (_by_kernels(peaks)[1] * direction).sum()
    # Third derivatives of the loss are at most some ten times the loss: step² beside the rounding.
    tolerance = float(_by_kernels(peaks)[0]) * (10 * step**2 + 4 * EPS / step)
    assert abs(float((up - down) / (2 * step) - slope)) < tolerance
    assert abs(float(slope)) > 2 * tolerance


@pytest.mark.usefixtures("on_cpu")
def test_nan_is_not_hidden():
    peaks = torch.randn(2, 3, 20)
    peaks[1, 0, 4] = torch.nan
    loss, grad = _by_kernels(peaks)
    assert loss.isnan()
    assert grad[1].isnan().all()
    assert grad[0].isfinite().all()


@pytest.mark.usefixtures("on_cpu")
def test_no_images_have_no_mean():
    loss, grad = _by_kernels(torch.empty(0, 3, 20))
    assert loss.isnan()
    assert grad.shape == (0, 3, 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("on_cpu")
def test_from_features_to_every_gradient(dtype, training):
    features, params = case((3, 40, 24, 2, 3, 7, 7), dtype, last=training)
    compare(loss_and_gradients, features, params, dtype, dtype, training)


@pytest.mark.usefixtures("on_cpu")
def test_one_descriptor_has_no_gradient_and_no_loss():
    features, params = narrowed(*case((1, 20, 8, 2, 2, 4, 4), torch.float32, last=True), torch.float32)
    results = loss_and_gradients(features, params, "triton")
    assert results["loss"] == 0
    assert not results["features"].any()


def _saved(training):
    """Arguments of the raw forward op and what it returns."""
    params = make_params(2, 6, 4, 2, torch.float32, requires_grad=False)
    features = make_features(2, 6, 2, 3, 2, torch.bfloat16)
    stats = (params.running_mean, params.running_var)
    inputs = (features, torch.randn(2, 4, 6), torch.randn(2, 6, 4), params.bn_weight, params.bn_bias)
    args = (*inputs, *stats, training, 0.1, 1e-5)
    return args, torch.ops.agmh_fast.triton_attention_dispersion(*args)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.usefixtures("on_cpu")
def test_opcheck(training):
    args, (loss, *saved) = _saved(training)
    torch.library.opcheck(torch.ops.agmh_fast.triton_attention_dispersion.default, args)
    backward = (torch.ones_like(loss), *args[:4], *saved, 1e-5)
    torch.library.opcheck(torch.ops.agmh_fast.triton_attention_dispersion_backward.default, backward)


@pytest.mark.usefixtures("on_cpu")
def test_no_second_gradient():
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 2, 3, 3, torch.float32)
    loss = af.attention_dispersion(features.requires_grad_(), params, impl="triton")
    (grad,) = torch.autograd.grad(loss.square(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.usefixtures("on_cpu")
def test_autocast_changes_nothing():
    features, params = narrowed(*case((2, 12, 8, 2, 2, 4, 4), torch.bfloat16, last=True), torch.bfloat16)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = af.attention_dispersion(features, with_own_statistics(params), impl="triton")
        results.append((loss, *torch.autograd.grad(loss, [features, *params[:8]])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.usefixtures("on_cpu")
def test_compiles_whole_and_for_any_batch():
    assert compiled_gradient_error("triton") < 1e-5


def test_what_is_not_served_says_why(monkeypatch):
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 3, 3, 3, torch.float32)
    with pytest.raises(InputError, match=r"impl='triton' cannot serve.*CUDA device"):
        af.attention_dispersion(features, params, impl="triton")
    assert "CUDA device" in str(af.explain("attention_dispersion", features, params))
    monkeypatch.setattr(peak_response_triton, "features_obstacle", lambda *_: None)
    many = make_params(65, 2, 2, 2, torch.float32)
    features = make_features(65, 2, 1, 2, 2, torch.float32)
    with pytest.raises(InputError, match="at most 64 descriptors, not 65"):
        af.attention_dispersion(features, many, impl="triton")


def _launches(shape):
    batch, descriptors, n = shape
    peaks = torch.empty(descriptors, batch, n, device="meta").transpose(0, 1)
    with recording() as launches:
        loss, rows = kernel.forward(peaks, torch.empty(1, dtype=torch.int32, device="meta"))
        kernel.backward(loss, peaks, rows)
    return launches


@pytest.mark.parametrize("capability", SHARED_MEMORY)
def test_machine_code(capability):
    """Nothing spills, whatever the tile: published sizes, many positions, as many maps as there may be."""
    launches = [launch for shape in ((32, 6, 196), (32, 64, 3136)) for launch in _launches(shape)]
    assert [launch.name for launch in launches] == ["overlap", "overlap_gradient"] * 2
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda launch: compile_launch(launch, capability), launches))
    for launch, code in zip(launches, codes, strict=True):
        assert code.spills == 0, launch.name
        assert code.shared <= SHARED_MEMORY[capability], launch.name


def test_another_batch_size_compiles_nothing_new():
    for first, second in zip(_launches((32, 6, 196)), _launches((47, 6, 196)), strict=True):
        for name, value in first.arguments.items():
            if not isinstance(value, torch.Tensor):
                assert value == second.arguments[name], name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_launches(dtype):
    """Attention and its loss from W_z and P on: 7 launches forward and 9 backward in bfloat16."""
    features = torch.empty(32, 6 * 512, 14, 14, dtype=dtype, device="meta", requires_grad=True)
    sizes = (6, 128, 512), (6, 512, 128), (6, 512), (6, 512), (6, 512)
    params = [torch.empty(size, device="meta", requires_grad=True) for size in sizes]
    running = torch.empty(6, 512, device="meta"), torch.empty(6, 512, device="meta")
    with counting() as launches:
        loss = peak_response_triton.dispersion(features, (*params, *running), True, 0.1, 1e-5)
        assert launches.names[-1] == "overlap"
        assert len(launches.names) == 6 + (dtype != torch.float32)
        grad = torch.empty_like(loss)
        launches.clear()
        torch.autograd.grad(loss, [features, *params], grad)
        assert launches.names[0] == "overlap_gradient"
        assert len(launches.names) == 9 + (dtype == torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_loss_and_gradient(shape):
    batch, descriptors, n = shape
    _compare(torch.randn(descriptors, batch, n, device="cuda").relu().transpose(0, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gpu_agrees_with_the_reference(dtype, last):
    features, params = doubled(*on_gpu(dtype, last))
    compare(loss_and_gradients, features, params, dtype, dtype)


@pytest.mark.gpu
def test_gpu_gradient_is_that_of_the_loss():
    peaks, direction = torch.randn(2, 16, 6, 196, device="cuda")
    step = 0.05
    up, down = (_by_kernels(peaks + sign * step * direction)[0].double() for sign in (1, -1))
    slope = (_by_kernels(peaks)[1] * direction).sum()
    tolerance = float(_by_kernels(peaks)[0]) * (10 * step**2 + 4 * EPS / step)
    assert abs(float((up - down) / (2 * step) - slope)) < tolerance


@pytest.mark.gpu
def test_gpu_sum_over_images_is_equal_bit_by_bit():
    """Whichever program comes last: many images, many times."""
    peaks = torch.randn(6, 2000, 196, device="cuda").transpose(0, 1)
    losses = torch.stack([kernel.forward(peaks, _ticket("cuda"))[0] for _ in range(200)])
    assert (losses == losses[0]).all()


@pytest.mark.gpu
def test_gpu_runs_are_equal_bit_by_bit():
    features, params = on_gpu(torch.bfloat16, True)
    first, second = (loss_and_gradients(features, params, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
def test_gpu_graph_replays_with_running_statistics():
    features, params = on_gpu(torch.bfloat16, True)
    inputs = [features, *params[:8]]

    def step(stats):
        loss = af.attention_dispersion(
            features, params._replace(running_mean=stats[0], running_var=stats[1]), impl="triton"
        )
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    own, expected = (with_own_statistics(params)[8:] for _ in range(2))
    graph, captured = capture(lambda: step(own), warm_up=lambda: step(with_own_statistics(params)[8:]))
    for _ in range(3):
        with torch.no_grad():
            features.copy_(make_features(6, 512, 8, 14, 14))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(expected), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))
