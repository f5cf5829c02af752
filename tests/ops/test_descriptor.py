"""BatchNorm + ReLU + mean and encoding without a GPU: the `torch` implementations against the modules of torch.

Error budget in float64: sums of at most 2048 terms, reordered, after a BatchNorm of condition below 10³: 1e-11 is
generous. In narrower types: at most twice the error of plain PyTorch in that type, plus ten roundings of the type.
"""

from __future__ import annotations

import pytest
import torch
from attention_cases import relative_error
from descriptor_cases import SHAPES, encode_inputs, in_layout, narrowed, norm_inputs, normalised, widened
from torch import nn

import agmh_fast.functional as af
from agmh_fast import pack_codes
from agmh_fast.errors import InputError
from agmh_fast.ops import descriptor

BUDGET = 1e-11


def _by_modules(y, gamma, beta, mean, var, training):
    """What nn.BatchNorm2d, relu and mean give."""
    bn = nn.BatchNorm2d(y.shape[1], momentum=0.3).double().train(training)
    state = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": var}
    bn.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
    features = torch.relu(bn(y))
    return features, features.mean(dim=(2, 3)), bn.running_mean, bn.running_var


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_modules(shape, training, impl):
    inputs = norm_inputs(*shape)
    y = in_layout(inputs[0], shape[0] % 2 == 0)
    own = [t.clone() for t in inputs[3:]]
    features, pooled = af.batch_norm_relu_mean(y, *inputs[1:3], *own, training=training, momentum=0.3, impl=impl)
    for actual, expected in zip((features, pooled, *own), _by_modules(*inputs, training), strict=True):
        assert relative_error(actual, expected) < BUDGET
    assert features.stride() == y.stride()


@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    y, gamma, beta, mean, var = norm_inputs(3, 4, 2, 3)
    leaves = [t.requires_grad_() for t in (y, gamma, beta)]

    def both(y, gamma, beta):
        return af.batch_norm_relu_mean(y, gamma, beta, mean.clone(), var.clone(), training=training, impl="torch")

    assert torch.autograd.gradcheck(both, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_narrow_types(dtype):
    inputs = norm_inputs(4, 40, 7, 7)
    inputs = (inputs[0].to(dtype).double(), *inputs[1:])
    exact = normalised(inputs, "reference", torch.float64)
    ours, plain = (normalised(inputs, impl, dtype) for impl in ("torch", "reference"))
    assert ours["features"].dtype == ours["y"].dtype == dtype
    assert ours["pooled"].dtype == torch.float32
    for name, expected in exact.items():
        a, e = relative_error(ours[name], expected), relative_error(plain[name], expected)
        assert a <= 2 * e + 10 * torch.finfo(dtype).eps, name


def test_running_statistics_are_optional_in_training():
    y, gamma, beta, *_ = norm_inputs(3, 4, 2, 3)
    features, _ = af.batch_norm_relu_mean(y, gamma, beta)
    assert relative_error(features, torch.relu(nn.functional.batch_norm(y, None, None, gamma, beta, True))) < BUDGET


ENCODE_SHAPES = [
    (3, 20, 7, 7, 70, 12),
    (1, 64, 15, 13, 33, 8),
    (2, 33, 14, 14, 600, 48),
    (70, 5, 1, 1, 9, 1),
    (2, 7, 50, 50, 3, 17),
]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", ENCODE_SHAPES, ids=str)
def test_codes_are_the_signs_of_the_models_logits(shape, channels_last):
    args = encode_inputs(*shape)
    x, weight, bias, gamma, beta, mean, var, hash_weight = args
    y = nn.functional.conv2d(x, weight[:, :, None, None], bias)
    pooled = torch.relu(nn.functional.batch_norm(y, mean, var, gamma, beta)).mean(dim=(2, 3))
    for impl in ("torch", "reference"):
        codes, logits = af.encode_descriptors(in_layout(x, channels_last), *args[1:], impl=impl)
        assert relative_error(logits, pooled @ hash_weight.T) < BUDGET
        assert torch.equal(codes, pack_codes(logits))
        assert codes.dtype == torch.uint8
    without, _ = af.encode_descriptors(x, weight, None, gamma, beta, mean - bias, var, hash_weight)
    assert torch.equal(without, codes)


def test_blocks_are_smaller_than_the_descriptors(monkeypatch):
    """The largest tensor made is a block, not (B, D·C, n)."""
    args = encode_inputs(6, 10, 7, 7, 50, 8)
    expected = af.encode_descriptors(*args, impl="reference")
    monkeypatch.setattr(descriptor, "_CPU_BLOCK", (100, 16))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result._base is None:
                largest = max(largest, result.numel())
            return result

    with Watch():
        codes, logits = descriptor._encode_in_blocks(*args, 1e-5)
    assert torch.equal(codes, expected[0])
    assert relative_error(logits, expected[1]) < BUDGET
    assert 0 < largest <= 100 * 16


@pytest.mark.parametrize("widened_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_encoding_in_narrow_types(monkeypatch, dtype, widened_first):
    monkeypatch.setattr(descriptor, "_slow_in_16_bits", lambda x: widened_first)
    args = narrowed(encode_inputs(4, 96, 7, 7, 80, 32), dtype)
    exact = af.encode_descriptors(*widened(args), impl="reference")[1]
    ours, plain = (af.encode_descriptors(*args, impl=impl)[1] for impl in ("torch", "reference"))
    assert ours.dtype == torch.float32
    assert relative_error(ours, exact) <= 2 * relative_error(plain, exact) + 10 * torch.finfo(torch.float32).eps


def test_encoding_under_autocast_takes_its_type():
    args = narrowed(encode_inputs(2, 96, 7, 7, 80, 32), torch.float32)
    low = (*(t.to(torch.bfloat16) for t in args[:2]), *args[2:])
    for impl in ("torch", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            codes, logits = af.encode_descriptors(*args, impl=impl)
            double = af.encode_descriptors(*widened(args), impl=impl)[1]
        expected = af.encode_descriptors(*low, impl=impl)
        if impl == "torch":
            assert torch.equal(codes, expected[0])
            assert torch.equal(logits, expected[1])
        assert relative_error(double, af.encode_descriptors(*widened(args), impl=impl)[1]) < BUDGET


def test_zero_is_plus_one_and_nan_is_visible():
    x, weight, bias, gamma, beta, mean, var, hash_weight = encode_inputs(3, 4, 2, 2, 6, 10)
    args = (weight, bias, gamma, beta, mean, var)
    for impl in ("torch", "reference"):
        codes, logits = af.encode_descriptors(x, *args, 0 * hash_weight, impl=impl)
        assert not logits.any()
        assert codes.tolist() == [[255, 192]] * 3
        bad = x.clone()
        bad[1, 2, 0, 1] = torch.nan
        codes, logits = af.encode_descriptors(bad, *args, hash_weight, impl=impl)
        assert logits.isnan().any(dim=1).tolist() == [False, True, False]
        assert codes[1].tolist() == [0, 0]


def test_empty_batches():
    args = encode_inputs(0, 4, 2, 2, 6, 10)
    codes, logits = af.encode_descriptors(*args)
    assert codes.shape == (0, 2)
    assert logits.shape == (0, 10)
    y, *rest = norm_inputs(0, 4, 2, 3)
    features, pooled = af.batch_norm_relu_mean(y, *rest, training=False)
    assert features.shape == (0, 4, 2, 3)
    assert pooled.shape == (0, 4)


def test_opcheck():
    for dtype in (torch.float64, torch.bfloat16):
        args = encode_inputs(3, 4, 2, 2, 6, 10)
        args = args if dtype == torch.float64 else narrowed(args, dtype)
        torch.library.opcheck(torch.ops.agmh_fast.encode_descriptors.default, (*args, 1e-5))


def test_compiles_whole_and_for_any_batch():
    args = narrowed(encode_inputs(5, 12, 3, 3, 20, 9), torch.float32)
    y, gamma, beta, mean, var = (t.float() for t in norm_inputs(5, 6, 3, 3))

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def both(x, y):
        encoded = af.encode_descriptors(x, *args[1:], impl="torch")
        return encoded, af.batch_norm_relu_mean(y, gamma, beta, mean, var, impl="torch")

    for batch in (3, 5):
        x, part = args[0][:batch], y[:batch]
        (codes, logits), (features, pooled) = both(x, part)
        expected = af.encode_descriptors(x, *args[1:], impl="torch")
        assert torch.equal(codes, expected[0])
        assert torch.equal(logits, expected[1])
        again = af.batch_norm_relu_mean(part, gamma, beta, impl="torch")
        assert relative_error(features, again[0]) < 1e-6
        assert relative_error(pooled, again[1]) < 1e-6


def test_bad_input_is_named():
    y, gamma, beta, mean, var = norm_inputs(2, 4, 3, 3)
    for match, change in {
        r"y must be \(B, channels, H, W\)": {"y": y[0]},
        "y must be floating": {"y": y.long()},
        "y must have at least one position": {"y": y[:, :, :0]},
        r"gamma must be \(4,\)": {"gamma": gamma[:3]},
        "beta must be floating": {"beta": beta.long()},
        "running_var on meta": {"running_var": var.to("meta")},
        "two positions": {"y": y[:1, :, :1, :1]},
        "are needed when training=False": {"running_mean": None, "training": False},
        "impl='fast' is not known": {"impl": "fast"},
        "impl='triton' cannot serve": {"impl": "triton"},
    }.items():
        arguments = {"y": y, "gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var} | change
        with pytest.raises(InputError, match=match):
            af.batch_norm_relu_mean(**arguments)


def test_bad_input_of_encoding_is_named():
    names = ("x", "weight", "bias", "gamma", "beta", "running_mean", "running_var", "hash_weight")
    good = dict(zip(names, encode_inputs(2, 4, 3, 3, 6, 10), strict=True))
    for match, change in {
        r"x must be \(B, channels, H, W\)": {"x": good["x"][0]},
        r"weight must be \(D·C, 4\)": {"weight": good["weight"][:, :3]},
        "weight is torch.float32 and x torch.float64": {"weight": good["weight"].float()},
        r"bias must be \(6,\)": {"bias": good["bias"][:2]},
        r"running_mean must be \(6,\)": {"running_mean": good["running_mean"][:2]},
        "running_var must be floating": {"running_var": good["running_var"].long()},
        r"hash_weight must be \(1..4096, 6\)": {"hash_weight": good["hash_weight"][:, :5]},
        "weight on meta": {"weight": good["weight"].to("meta")},
        "impl='triton' cannot serve encode_descriptors: x must be on a CUDA device": {"impl": "triton"},
    }.items():
        with pytest.raises(InputError, match=match):
            af.encode_descriptors(**(good | change))
    assert "CUDA device" in str(af.explain("encode_descriptors", good["x"]))
