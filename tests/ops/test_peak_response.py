"""The collapse and the sparse gradient against the reference modules.

Error budget in float64: the two ways of computing differ by reordered sums of at most C·n·B ~ 2·10⁵ terms; rounding
grows with the root of that, about 500 · 1.1e-16, times the condition of the BatchNorm (below 10³ for these
parameters): 1e-10 is generous and still 10⁶ times smaller than any term of the formulas.
"""

from __future__ import annotations

import pytest
import torch
from attention_cases import (
    SHAPES,
    compiled_gradient_error,
    make_features,
    make_params,
    relative_error,
    with_own_statistics,
)

import agmh_fast.functional as af
from agmh_fast.errors import InputError
from agmh_fast.ops.peak_response_torch import peak_response_backward, peak_response_forward, segment_sum

BUDGET = 1e-10
NAMES = ("features", "conv_weight", "conv_bias", "query", "mix", "value", "project", "bn_weight", "bn_bias")


def _everything(features, params, training, impl):
    """Loss, peaks, maps, running statistics and the gradients of a loss that weighs every peak differently."""
    params = with_own_statistics(params)
    loss = af.attention_dispersion(features, params, training=training, impl=impl)
    statistics = params.running_mean, params.running_var
    params = with_own_statistics(params)
    peaks = af.peak_response(features, params, training=training, impl=impl)
    maps = af.aggregation_maps(features, with_own_statistics(params), training=training, impl=impl)
    weights = torch.linspace(0.5, 2, peaks.numel(), dtype=peaks.dtype).view_as(peaks).sin()
    inputs = [t for t in (features, *params[:8]) if t.requires_grad]
    grads = torch.autograd.grad((peaks * weights).sum() + loss, inputs, allow_unused=True, materialize_grads=True)
    return loss.detach(), peaks.detach(), maps.detach(), *statistics, *grads


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape, training, channels_last):
    d, c, k, h, b, height, width = shape
    params, features = make_params(d, c, k, h), make_features(d, c, b, height, width)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    expected = _everything(features, params, training, "reference")
    actual = _everything(features, params, training, "torch")
    names = ["loss", "peaks", "maps", "running_mean", "running_var", *NAMES]
    scale = max(float(g.norm()) for g in expected[5:])
    for name, a, e in zip(names, actual, expected, strict=True):
        if name == "conv_bias":
            # Its true gradient is zero: ours is exactly, the reference's up to rounding.
            assert not a.any()
            assert float(e.norm()) < BUDGET * max(scale, 1)
        else:
            assert relative_error(a, e) < BUDGET, name


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    params, features = make_params(2, 5, 3, 3), make_features(2, 5, 3, 3, 2).requires_grad_()
    leaves = list(params[:8])

    def loss(features, *tensors):
        return af.attention_dispersion(
            features, with_own_statistics(type(params)(*tensors, *params[8:])), training=training, impl="torch"
        )

    assert torch.autograd.gradcheck(loss, (features, *leaves), atol=1e-7)


def _float32_errors(impl, dtype, features, params, expected):
    single = [t.detach().float().requires_grad_() for t in params[:8]]
    low = features.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = af.attention_dispersion(low, type(params)(*single), impl=impl)
    grads = torch.autograd.grad(loss, [low, *single], allow_unused=True, materialize_grads=True)
    assert grads[0].dtype == dtype
    chosen = [i for i in range(9) if NAMES[i] != "conv_bias"]
    return [relative_error(loss, expected[0]), *(relative_error(grads[i], expected[1][i]) for i in chosen)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_are_as_exact_as_the_reference_in_them(dtype):
    """At most twice the reference's own error in that type (under autocast), plus ten roundings of the type's or of
    float32.
    """
    params = make_params(3, 64, 32, 4)._replace(running_mean=None, running_var=None)
    features = make_features(3, 64, 4, 7, 7).to(dtype).double().requires_grad_()
    loss = af.attention_dispersion(features, params, impl="reference")
    inputs = [features, *params[:8]]
    expected = loss, torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    ours = _float32_errors("torch", dtype, features, params, expected)
    theirs = _float32_errors("reference", dtype, features, params, expected)
    band = 10 * torch.finfo(dtype).eps
    for a, e in zip(ours, theirs, strict=True):
        assert a <= 2 * e + band


def _variants(features):
    """The same features in other memory layouts."""
    wide = torch.empty(*features.shape[:3], 2 * features.shape[3], dtype=features.dtype)
    wide[..., ::2] = features
    yield "channels_last", features.contiguous(memory_format=torch.channels_last)
    yield "strided", wide[..., ::2]
    for a, b in ((0, 1), (2, 3), (1, 3)):
        yield f"transposed {a} {b}", features.transpose(a, b).contiguous().transpose(a, b)


def test_layouts_give_the_same_result():
    params, features = make_params(2, 12, 5, 3), make_features(2, 12, 4, 6, 5)
    expected = _everything(features.requires_grad_(), params, True, "torch")
    for name, variant in _variants(features.detach()):
        for a, e in zip(_everything(variant.requires_grad_(), params, True, "torch"), expected, strict=True):
            assert relative_error(a, e) < 1e-12, name
    single = features.detach()[:1].expand(4, -1, -1, -1)
    copied = af.peak_response(single.contiguous(), with_own_statistics(params))
    assert relative_error(af.peak_response(single, with_own_statistics(params)), copied) < 1e-13


@pytest.mark.parametrize("subset", [(0,), (1,), (3, 5), (7, 8)])
def test_gradients_of_subsets(subset):
    params, features = make_params(2, 6, 4, 2), make_features(2, 6, 3, 3, 3).requires_grad_()
    inputs = [features, *params[:8]]
    whole = torch.autograd.grad(af.attention_dispersion(features, with_own_statistics(params)), inputs)
    kept = [t if i in subset else t.detach() for i, t in enumerate(inputs)]
    loss = af.attention_dispersion(kept[0], with_own_statistics(type(params)(*kept[1:], *params[8:])))
    for i, grad in zip(subset, torch.autograd.grad(loss, [inputs[i] for i in subset]), strict=True):
        assert torch.equal(grad, whole[i])


def test_running_statistics_are_batch_norms():
    params = make_params(2, 6, 4, 2, requires_grad=False)
    features = make_features(2, 6, 3, 3, 3)
    updated = {}
    for impl in ("torch", "reference"):
        own = with_own_statistics(params)
        for _ in range(3):
            af.peak_response(features, own, momentum=0.3, impl=impl)
        updated[impl] = own
    assert relative_error(updated["torch"].running_mean, updated["reference"].running_mean) < 1e-13
    assert relative_error(updated["torch"].running_var, updated["reference"].running_var) < 1e-13


def test_nan_is_not_hidden():
    params, features = make_params(2, 6, 4, 2), make_features(2, 6, 3, 3, 3)
    features[1, 2, 0, 0] = torch.nan
    assert af.attention_dispersion(features, with_own_statistics(params)).isnan()


def test_the_gradient_is_deterministic():
    params, features = make_params(2, 32, 8, 4, torch.float32), make_features(2, 32, 6, 7, 7, torch.float32)
    features.requires_grad_()
    runs = [_everything(features, params, True, "torch") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_segment_sum_by_sorting_equals_the_loop(monkeypatch):
    values, segment = torch.randn(50, 3, dtype=torch.float64), torch.randint(0, 7, (50,))
    expected = torch.stack([values[segment == s].sum(dim=0) for s in range(9)])
    assert relative_error(segment_sum(values, segment, 9), expected) < 1e-15
    # The path of other devices is plain torch too: run it here.
    order = torch.argsort(segment, stable=True)
    ends = torch.searchsorted(segment[order], torch.arange(10))
    by_sorting = torch.segment_reduce(values[order], "sum", offsets=ends, axis=0, unsafe=True, initial=0)
    assert relative_error(by_sorting, expected) < 1e-15


@pytest.mark.parametrize("training", [True, False])
def test_opcheck(training):
    params, features = make_params(2, 6, 4, 2, requires_grad=False), make_features(2, 6, 3, 3, 3)
    weight, projection = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.float64)
    stats = None if training else (params.running_mean, params.running_var)
    args = (features, weight, projection, params.bn_weight, params.bn_bias)
    torch.library.opcheck(torch.ops.agmh_fast.peak_response.default, (*args, *(stats or (None, None)), 1e-5))
    saved = peak_response_forward(*args, stats, 1e-5)
    grad = torch.randn_like(saved.peaks)
    backward = (grad, features, weight, projection, params.bn_weight, *saved, 1e-5)
    torch.library.opcheck(torch.ops.agmh_fast.peak_response_backward.default, backward)
    assert len(peak_response_backward(grad, features, weight, projection, params.bn_weight, saved, 1e-5)) == 5


def test_compiles_whole_and_for_any_batch():
    assert compiled_gradient_error("torch") < 1e-6


def test_bad_input_is_named():
    params, features = make_params(2, 6, 4, 2), make_features(2, 6, 3, 3, 3)
    with pytest.raises(InputError, match=r"features must be \(B, 12, H, W\)"):
        af.attention_dispersion(features[:, :11], params)
    with pytest.raises(InputError, match="features must be floating point"):
        af.attention_dispersion(features.long(), params)
    with pytest.raises(InputError, match="two positions"):
        af.attention_dispersion(features[:1, :, :1, :1], params)
    with pytest.raises(InputError, match="two positions"):
        af.attention_dispersion(features[:0], params)
    with pytest.raises(InputError, match="running_mean"):
        af.attention_dispersion(features, params._replace(running_mean=None), training=False)
    with pytest.raises(InputError, match="impl='fast' is not known"):
        af.attention_dispersion(features, params, impl="fast")
    with pytest.raises(InputError, match=r"params.*meta|meta"):
        af.attention_dispersion(features.to("meta"), params)


def test_empty_batches_have_no_maps_in_eval_mode():
    params = make_params(2, 6, 4, 2)
    assert af.aggregation_maps(make_features(2, 6, 0, 3, 3), params).shape == (0, 2, 3, 3)
