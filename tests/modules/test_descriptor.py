"""The descriptor module: fused where it is a plain convolution and BatchNorm, else the modules as they are."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from attention_cases import relative_error
from torch import nn
from torch.nn.utils import parametrize, prune

import agmh_fast as af
from agmh_fast import functional
from agmh_fast.modules import DescriptorGroup


def group(**options) -> DescriptorGroup:
    """Seven inputs, two descriptors of six channels, with running statistics of their own."""
    module = DescriptorGroup(7, 2, 6, **options)
    nn.init.normal_(module.bn.weight)
    nn.init.normal_(module.bn.bias)
    nn.init.normal_(module.bn.running_mean)
    nn.init.uniform_(module.bn.running_var, 0.5, 2)
    return module


def _twin(module: DescriptorGroup) -> DescriptorGroup:
    other = group()
    other.load_state_dict(module.state_dict())
    return other


def _by_modules(module: DescriptorGroup, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.relu(module.bn(module.conv(x)))
    return features, features.mean(dim=(2, 3))


def _no_fused():
    fail = {"side_effect": AssertionError("a fused op in the place of the modules")}
    return mock.patch.multiple(functional, batch_norm_relu_mean=mock.Mock(**fail), encode_descriptors=mock.Mock(**fail))


@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_is_convolution_batch_norm_and_relu(mode):
    module, x = group(), torch.randn(3, 7, 5, 4)
    module.train(mode != "eval")
    module.bn.train(mode == "train")
    twin = _twin(module)
    twin.bn.train(mode == "train")
    for _ in range(2):
        for actual, expected in zip(module(x), _by_modules(twin, x), strict=True):
            assert relative_error(actual, expected) < 1e-6
    for name, value in twin.state_dict().items():
        assert relative_error(module.state_dict()[name], value) < 1e-6, name
    assert int(module.bn.num_batches_tracked) == 2 * (mode == "train")


class _Negative(nn.Module):
    def forward(self, x):
        return -x


def _changed(change: str) -> DescriptorGroup:
    """A module whose BatchNorm or convolution is not what its parameters alone say."""
    module = group()
    if change == "momentum":
        module.bn.momentum = None
    elif change == "affine":
        module.bn = nn.BatchNorm2d(12, affine=False)
    elif change == "track":
        module.bn = nn.BatchNorm2d(12, track_running_stats=False)
    elif change == "flag":
        module.bn.track_running_stats = False
    elif change == "hook":
        module.bn.register_forward_hook(lambda _, args, out: out + 1)
    elif change == "subclass":
        module.bn = type("Norm", (nn.BatchNorm2d,), {"forward": lambda self, x: 2 * x})(12)
    elif change == "parametrized":
        parametrize.register_parametrization(module.bn, "weight", _Negative())
    elif change == "group norm":
        module.bn = nn.GroupNorm(2, 12)
    return module


CHANGES = ["momentum", "affine", "track", "flag", "hook", "subclass", "parametrized", "group norm"]


@pytest.mark.parametrize("change", CHANGES)
def test_another_batch_norm_runs_as_it_is(change):
    torch.manual_seed(1)
    module = _changed(change)
    torch.manual_seed(1)
    twin, x = _changed(change), torch.randn(3, 7, 5, 4)
    with _no_fused():
        results = module(x)
        assert module.encode(x, torch.randn(8, 12)) is None
    for actual, expected in zip(results, _by_modules(twin, x), strict=True):
        assert relative_error(actual, expected) < 1e-6
    for name, value in twin.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


@pytest.mark.parametrize("change", ["pruned", "replaced", "strided", "wider"])
def test_another_convolution_is_not_encoded_by_its_weights(change):
    module, x = group().eval(), torch.randn(3, 7, 5, 4)
    if change == "pruned":
        prune.l1_unstructured(module.conv, "weight", amount=0.5)
    elif change == "replaced":
        module.conv = nn.Sequential(nn.Conv2d(7, 12, 1))
    elif change == "strided":
        module.conv = nn.Conv2d(7, 12, 1, stride=2)
    else:
        module.conv = nn.Conv2d(7, 12, 3, padding=1)
    with _no_fused():
        assert module.encode(x, torch.randn(8, 12)) is None
    for actual, expected in zip(module(x), _by_modules(module, x), strict=True):
        assert relative_error(actual, expected) < 1e-6


def _model(**options) -> af.AGMH:
    backbone = nn.Sequential(nn.Conv2d(3, 7, 3, stride=4), nn.BatchNorm2d(7), nn.ReLU())
    return af.AGMH(11, backbone, num_descriptors=2, descriptor_dim=6, memory_size=4, feature_channels=7, **options)


def test_encode_is_the_same_with_and_without_the_fused_op():
    model, images = _model(), torch.randn(5, 3, 16, 16)
    codes = model.encode(images)
    assert torch.equal(codes, _model_with_hook(model).encode(images))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(synchronised.descriptors.bn) is nn.SyncBatchNorm
    with mock.patch.object(functional, "encode_descriptors", wraps=functional.encode_descriptors) as fused:
        assert torch.equal(synchronised.encode(images), codes)
    fused.assert_called_once()


def _model_with_hook(model: af.AGMH) -> af.AGMH:
    other = _model()
    other.load_state_dict(model.state_dict())
    other.descriptors.bn.register_forward_hook(lambda *args: None)
    return other


def test_synchronised_batch_norm_trains_as_itself():
    module = nn.SyncBatchNorm.convert_sync_batchnorm(group())
    with _no_fused(), mock.patch.object(nn.SyncBatchNorm, "forward", side_effect=lambda x: 2 * x) as forward:
        module(torch.randn(3, 7, 5, 4))
    forward.assert_called_once()


def test_nan_is_named_by_its_image():
    model, images = _model(), torch.randn(5, 3, 16, 16)
    images[3, 0, 0, 0] = torch.nan
    for m in (model, _model_with_hook(model)):
        with pytest.raises(af.InputError, match=r"(image|row) 3 .*NaN"):
            m.encode(images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_models_of_other_types(dtype):
    model, images = _model().to(dtype), torch.randn(5, 3, 16, 16, dtype=dtype)
    out = model(images)
    assert out.embedding.dtype == dtype
    (out.embedding.square().mean() + out.attention_dispersion.to(dtype)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.encode(images).shape == (5, 2)


def test_autocast_keeps_the_mean_in_float32():
    module, x = group(), torch.randn(3, 7, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, pooled = module(x)
    assert (features.dtype, pooled.dtype) == (torch.bfloat16, torch.float32)


def test_encode_compiles_whole():
    model, images = _model().eval(), torch.randn(5, 3, 16, 16)
    compiled = torch.compile(model.descriptors.encode, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        x = model.backbone(images)
        codes, logits = compiled(x, model.hash_weight)
        assert torch.equal(codes, model.encode(images))
        assert relative_error(logits, model.logits(model.features(images))) < 1e-5


def test_implementations_are_passed_on():
    for impl in ("reference", "torch"):
        module, x = group(impl=impl), torch.randn(3, 7, 5, 4)
        called = []
        for op in ("batch_norm_relu_mean", "encode_descriptors"):
            original = getattr(functional, op)
            called.append(mock.patch.object(functional, op, wraps=original))
        with called[0] as norm, called[1] as encode:
            module(x), module.encode(x, torch.randn(8, 12))
        assert norm.call_args.kwargs["impl"] == encode.call_args.kwargs["impl"] == impl
    with pytest.raises(af.InputError, match="impl='triton' cannot serve batch_norm_relu_mean"):
        group(impl="triton")(x)
    with pytest.raises(af.InputError, match="impl must be one of"):
        group(impl="fast")
    # An implementation that only the attention has leaves the choice here free.
    assert group(impl="cpu")(x)[1].shape == (3, 12)
