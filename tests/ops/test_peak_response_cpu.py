"""The compiled peak response against the float64 reference.

Error budget: at most twice the error of plain PyTorch in that type, plus ten roundings of it. Plain PyTorch is the
`torch` implementation for float32 and the reference under autocast for bfloat16. Gradients that cancel to nearly
nothing (K = 1) are measured against the largest gradient.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from attention_cases import (
    SHAPES,
    assert_as_exact_as_plain,
    compiled_gradient_error,
    make_features,
    make_params,
    with_own_statistics,
)

import agmh_fast.functional as af
from agmh_fast.errors import InputError
from agmh_fast.official import Feat_Loss, SIExtAttn
from agmh_fast.ops.peak_response_cpu import peak_response_forward

NAMES = ("features", "conv_weight", "conv_bias", "query", "mix", "value", "project", "bn_weight", "bn_bias")


def _everything(features, params, impl, training=True):
    """Loss, peaks, running statistics, and the gradients of the loss and a sum that weighs every peak differently."""
    params = with_own_statistics(params)
    loss = af.attention_dispersion(features, with_own_statistics(params), training=training, impl=impl)
    peaks = af.peak_response(features, params, training=training, impl=impl)
    weights = torch.linspace(0.5, 2, peaks.numel(), dtype=peaks.dtype).view_as(peaks).sin()
    inputs = [features, *params[:8]]
    grads = torch.autograd.grad((peaks * weights).sum() + loss, inputs, allow_unused=True, materialize_grads=True)
    values = (loss.detach(), peaks.detach(), params.running_mean, params.running_var)
    return dict(zip(("loss", "peaks", "running_mean", "running_var", *NAMES), (*values, *grads), strict=True))


def _narrowed(features, params, dtype):
    """Leaves: the features in `dtype`, the parameters in float32."""
    single = [t.detach().float() for t in params]
    return features.detach().to(dtype).requires_grad_(), type(params)(
        *(t.requires_grad_() for t in single[:8]), *single[8:]
    )


def _plain(features, params, dtype, training):
    low, single = _narrowed(features, params, dtype)
    if dtype == torch.float32:
        return _everything(low, single, "torch", training)
    with torch.autocast("cpu", dtype=dtype):
        return _everything(low, single, "reference", training)


def _compare(features, params, dtype, training=True):
    exact = _everything(features, params, "reference", training)
    ours = _everything(*_narrowed(features, params, dtype), "cpu", training)
    assert ours["features"].dtype == dtype
    assert not ours["conv_bias"].any()
    del exact["conv_bias"]
    gradients = [name for name in NAMES if name != "conv_bias"]
    plain, roundoff = lambda params: _plain(features, params, dtype, training), torch.finfo(dtype).eps
    assert_as_exact_as_plain(ours, exact, plain, params, roundoff, gradients, negligible=1e-2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 40, 20, 2, 1, 28, 28)], ids=str)
def test_forward_and_every_gradient(shape, dtype, training):
    d, c, k, h, b, height, width = shape
    features = make_features(d, c, b, height, width).to(dtype).double()
    if b % 2:
        features = features.contiguous(memory_format=torch.channels_last)
    _compare(features.requires_grad_(), make_params(d, c, k, h), dtype, training)


def _variants(features):
    """The same features in other memory layouts."""
    wide = torch.empty(*features.shape[:3], 2 * features.shape[3], dtype=features.dtype)
    wide[..., ::2] = features
    yield "channels_last", features.contiguous(memory_format=torch.channels_last)
    yield "gaps", wide[..., ::2]
    for a, b in ((0, 1), (2, 3), (1, 3)):
        yield f"transposed {a} {b}", features.transpose(a, b).contiguous().transpose(a, b)


@pytest.mark.parametrize("channels", [12, 32])
def test_layouts_give_the_same_result(channels):
    params, features = make_params(2, channels, 5, 3, torch.float32), make_features(2, channels, 4, 6, 5, torch.float32)
    expected = _everything(features.requires_grad_(), params, "cpu")
    for name, variant in _variants(features.detach()):
        actual = _everything(variant.requires_grad_(), params, "cpu")
        assert all(torch.equal(actual[key], expected[key]) for key in expected), name
    for narrow in (features.detach()[..., :1], features.detach()[:, :, :1]):
        spread = torch.empty(*narrow.shape[:2], narrow.shape[2] * 2, narrow.shape[3] * 3)
        spread[:, :, ::2, ::3] = narrow
        outcomes = [
            _everything(x.requires_grad_(), params, "cpu") for x in (narrow.contiguous(), spread[:, :, ::2, ::3])
        ]
        assert all(torch.equal(outcomes[0][key], outcomes[1][key]) for key in expected)
    single = features.detach()[:1].expand(4, -1, -1, -1)
    copied = af.peak_response(single.contiguous(), with_own_statistics(params), impl="cpu")
    assert torch.equal(af.peak_response(single, with_own_statistics(params), impl="cpu"), copied)


@pytest.mark.parametrize("training", [True, False])
def test_nan_is_not_hidden(training):
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 3, 3, 3, torch.float32)
    features[1, 2, 0, 0] = torch.nan
    ours, plain = (
        af.peak_response(features, with_own_statistics(params), training=training, impl=i) for i in ("cpu", "torch")
    )
    assert torch.equal(ours.isnan(), plain.isnan())
    assert ours[1, 0].isnan().all()


def test_of_equal_channels_the_first_counts():
    features = torch.randint(0, 3, (2, 2 * 70, 7, 7)).float()
    weight, projection = torch.randn(2, 16, 70), torch.zeros(2, 70, 16)
    stats = torch.zeros(2, 70), torch.ones(2, 70)
    saved = peak_response_forward(features, weight, projection, torch.ones(2, 70), torch.zeros(2, 70), stats, 1e-5)
    first = features.view(2, 2, 70, 49).numpy().argmax(2)
    assert torch.equal(saved.channel, torch.from_numpy(first).to(torch.int32))


def test_any_number_of_threads_gives_the_same_bits():
    """In a process of its own: the number of threads is torch's, and global."""
    script = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from attention_cases import make_features, make_params, with_own_statistics
import agmh_fast.functional as af
torch.manual_seed(0)
params = make_params(2, 40, 8, 2, torch.float32)
features = make_features(2, 40, 11, 5, 5, torch.float32).requires_grad_()
args = [features, params.value, params.query]
runs = []
for threads in (1, 2, 5):
    torch.set_num_threads(threads)
    peaks = af.peak_response(features, with_own_statistics(params), impl="cpu")
    # Weights are composed by torch's own products, whose bits are not ours to promise: the features' gradient is.
    runs.append((peaks, *torch.autograd.grad(peaks.sin().sum(), args)))
assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0][:2], other[:2]))
"""
    folder = str(__file__).rsplit("/", 2)[0]
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("training", [True, False])
def test_opcheck(training):
    params = make_params(2, 6, 4, 2, torch.float32, requires_grad=False)
    features = make_features(2, 6, 2, 3, 2, torch.bfloat16)
    stats = (None, None) if training else (params.running_mean, params.running_var)
    args = (features, torch.randn(2, 4, 6), torch.randn(2, 6, 4), params.bn_weight, params.bn_bias, *stats, 1e-5)
    torch.library.opcheck(torch.ops.agmh_fast.cpu_peak_response.default, args)
    saved = torch.ops.agmh_fast.cpu_peak_response(*args)
    backward = (torch.randn(saved[0].shape), *args[:4], *saved, 1e-5)
    torch.library.opcheck(torch.ops.agmh_fast.cpu_peak_response_backward.default, backward)


def test_compiles_whole_and_for_any_batch():
    assert compiled_gradient_error("cpu") < 1e-5


def test_auto_takes_it_and_the_published_names_too():
    params, features = make_params(2, 6, 4, 2, torch.float32), make_features(2, 6, 3, 3, 3, torch.float32)
    for op in ("peak_response", "attention_dispersion"):
        assert af.explain(op, features, params).chosen == "cpu"
        assert af.explain(op, features.double(), make_params(2, 6, 4, 2)).chosen == "torch"
    modules = [SIExtAttn(6, 4) for _ in range(2)]
    with torch.profiler.profile() as profile:
        Feat_Loss()(None, None, [m(x) for m, x in zip(modules, features.chunk(2, dim=1), strict=True)], "cpu")
    assert any(event.name == "agmh_fast::cpu_peak_response" for event in profile.events())


def test_what_is_not_served_says_why():
    params, features = make_params(2, 6, 4, 2), make_features(2, 6, 3, 3, 3)
    with pytest.raises(InputError, match="must be float32 or bfloat16"):
        af.peak_response(features, params, impl="cpu")
    empty = af.peak_response(features[:0].float(), make_params(2, 6, 4, 2, torch.float32), training=False, impl="cpu")
    assert empty.shape == (0, 2, 9)


def test_the_raw_ops_refuse_what_would_read_out_of_bounds():
    ops, features = torch.ops.agmh_fast, torch.randn(2, 12, 3, 3)
    weight, projection = torch.randn(2, 4, 6), torch.randn(2, 6, 4)
    attention, slot_sum, _, _ = ops.attend(features, weight, True)
    peaks, channel = ops.peak(features, attention, projection, torch.zeros(2, 6))
    beyond = torch.full_like(channel, 6)
    with pytest.raises(RuntimeError, match="weight must be contiguous"):
        ops.attend(features, weight.double(), True)
    with pytest.raises(RuntimeError, match="evenly spaced"):
        ops.attend(torch.randn(2, 12, 3, 4)[..., :3], weight, True)
    with pytest.raises(RuntimeError, match="attention must be contiguous"):
        ops.peak(features, attention[..., :4], projection, torch.zeros(2, 6))
    with pytest.raises(RuntimeError, match="channel must lie from 0 to 5"):
        ops.channel_sums(peaks, beyond, attention, 6, 4)
    arguments = (features, peaks, beyond, attention, slot_sum, weight, projection, None, None)
    with pytest.raises(RuntimeError, match="channel must lie from 0 to 5"):
        ops.spread(*arguments, torch.empty_like(features), torch.empty_like(weight))
    with pytest.raises(RuntimeError, match="dfeatures must be"):
        ops.spread(*arguments, torch.empty(2, 12, 3, 2), torch.empty_like(weight))
