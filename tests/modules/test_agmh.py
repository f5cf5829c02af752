"""The model: shapes, what is computed when, published checkpoints, autocast, compile, two ranks."""

from __future__ import annotations

import pickle
from unittest import mock

import pytest
import torch
import torchvision
from attention_cases import relative_error
from torch import nn

import agmh_fast as af
from agmh_fast import functional
from agmh_fast.modules import StepwiseExternalAttention
from agmh_fast.reference.attention import StepwiseExternalAttention as ReferenceAttention
from agmh_fast.reference.descriptor import DescriptorGroup as ReferenceDescriptors
from agmh_fast.reference.dispersion import attention_dispersion as reference_dispersion


def tiny_backbone(channels: int = 8) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, channels, 3, stride=4, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
    module.out_channels = channels
    return module


def tiny_model(bits: int = 12, **options) -> af.AGMH:
    sizes = {"num_descriptors": 3, "descriptor_dim": 6, "num_heads": 3, "memory_size": 5} | options
    return af.AGMH(bits, backbone=tiny_backbone(), **sizes)


def test_train_and_eval_outputs():
    model, images = tiny_model(), torch.randn(4, 3, 16, 20)
    out = model(images)
    assert isinstance(out, af.AGMHOutput)
    assert out.embedding.shape == (4, 12)
    assert out.embedding.abs().max() < 1
    assert out.attention_dispersion.shape == ()
    model.eval()
    with mock.patch.object(functional, "attention_dispersion", side_effect=AssertionError("attention in eval mode")):
        out = model(images)
    assert out.attention_dispersion is None


def test_training_forward_is_the_published_one():
    """Descriptors, embedding and loss of the reference's modules on the same parameters, in float64."""
    model = tiny_model().double()
    images = torch.randn(4, 3, 16, 20, dtype=torch.float64)
    state = model.to_official_state_dict()
    descriptors = ReferenceDescriptors(8, 3, 6).double()
    own = {key.removeprefix("refine."): value for key, value in state.items() if key.startswith("refine.conv_list.")}
    descriptors.load_state_dict(own)
    attentions = []
    for d in range(3):
        attention = ReferenceAttention(6, 3, 5).double()
        prefix = f"refine.attn_list.{d}."
        attention.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        attentions.append(attention)
    features = descriptors(model.backbone(images))
    pooled = torch.cat([f.mean(dim=(2, 3)) for f in features], dim=1)
    expected = torch.tanh(pooled @ state["hash_map"].T)
    loss = reference_dispersion([attend(f) for attend, f in zip(attentions, features, strict=True)])
    out = model(images)
    assert relative_error(out.embedding, expected) < 1e-12
    assert relative_error(out.attention_dispersion, loss) < 1e-12
    after = model.to_official_state_dict()
    for d, attention in enumerate(attentions):
        for name, value in attention.state_dict().items():
            assert relative_error(after[f"refine.attn_list.{d}.{name}"], value) < 1e-12, name
    for name, value in descriptors.state_dict().items():
        assert relative_error(after[f"refine.{name}"], value) < 1e-12, name


def test_encode_is_the_sign_of_the_logits_and_touches_nothing():
    model, images = tiny_model(), torch.randn(5, 3, 16, 16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    codes = model.encode(images)
    assert model.training
    assert all(m.training for m in model.modules())
    assert codes.dtype == torch.uint8
    assert codes.shape == (5, 2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        assert torch.equal(af.unpack_codes(codes, 12) > 0, model.logits(model.features(images)) >= 0)
    assert torch.equal(codes, model.encode(images))


def test_modes_of_submodules_come_back():
    model = tiny_model()
    model.backbone.eval()
    model.encode(torch.randn(2, 3, 16, 16))
    assert model.training
    assert not model.backbone.training


def test_attention_maps_are_distributions():
    maps = tiny_model().attention_maps(torch.randn(2, 3, 16, 20))
    assert maps.shape == (2, 3, 4, 5)
    assert torch.allclose(maps.sum(dim=(2, 3)), torch.ones(2, 3), atol=1e-6)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 512), ("resnet50", 2048)])
def test_resnet_is_torchvisions_with_a_finer_last_stage(name, channels):
    model = af.AGMH(8, backbone=name, num_descriptors=2, descriptor_dim=4, memory_size=4)
    net = torchvision.models.get_model(name)
    expected = {key for key in net.state_dict() if not key.startswith("fc.")}
    assert set(model.backbone.state_dict()) == expected
    model.backbone.load_state_dict({k: v for k, v in net.state_dict().items() if k in expected})
    images = torch.randn(1, 3, 64, 64)
    model.eval(), net.eval()
    with torch.no_grad():
        features = model.backbone(images)
        assert features.shape == (1, channels, 4, 4)
        stem = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        middle = net.layer3(net.layer2(net.layer1(stem)))
        ours = model.backbone
        early = ours.layer3(ours.layer2(ours.layer1(ours.maxpool(ours.relu(ours.bn1(ours.conv1(images)))))))
        assert torch.equal(early, middle)


def test_extractors_that_return_several_maps():
    class Extractor(nn.Module):
        class _Info:
            def channels(self):
                return [3, 5]

        feature_info = _Info()

        def forward(self, x):
            return [x, x[:, :1, ::2, ::2].expand(-1, 5, -1, -1)]

    model = af.AGMH(8, backbone=Extractor(), num_descriptors=2, descriptor_dim=4, memory_size=4)
    assert model(torch.randn(2, 3, 8, 8)).embedding.shape == (2, 8)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_published_checkpoints_round_trip(name, tmp_path):
    model = af.AGMH(16, backbone=name, num_descriptors=2, descriptor_dim=4, num_heads=3, memory_size=4)
    model.attention.num_batches_tracked += 7
    model.descriptors.bn.num_batches_tracked += 7
    state = model.to_official_state_dict()
    assert state["refine.attn_list.1.qry_conv.2.weight"].shape == (4, 4, 1)
    assert state["refine.attn_list.1.alt_conv.1.weight"].shape == (4, 8, 1)
    assert state["refine.attn_list.0.linear.weight"].shape == (4, 4, 1)
    assert state["refine.attn_list.0.conv2.0.weight"].shape == (4, 4, 1, 1)
    assert state["refine.conv_list.1.0.weight"].shape[2:] == (1, 1)
    assert state["hash_map"].shape == (16, 8)
    torch.save(state, tmp_path / "model.pth")
    for source in (state, tmp_path / "model.pth"):
        again = af.AGMH.from_official(source, bits=16)
        for key, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), key
    with pytest.raises(af.InputError, match="bits is 12"):
        af.AGMH.from_official(state, bits=12)
    for key in ("hash_map", "refine.conv_list.0.1.bias", "refine.attn_list.1.linear.weight"):
        with pytest.raises(af.InputError, match="has no"):
            af.AGMH.from_official({k: v for k, v in state.items() if k != key})
    with pytest.raises(af.InputError, match="'extra'"):
        af.AGMH.from_official(state | {"extra": torch.zeros(1)})


def test_checkpoints_never_run_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"hash_map": Payload()}, protocol=2))
    torch.save({"hash_map": Payload()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth", "missing.pth"):
        with pytest.raises(af.InputError, match="weights"):
            af.AGMH.from_official(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_local_weights(tmp_path):
    net = torchvision.models.resnet18()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    options = {"backbone": "resnet18", "num_descriptors": 1, "descriptor_dim": 2, "memory_size": 2}
    model = af.AGMH(8, weights=tmp_path / "resnet18.pth", **options)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    with pytest.raises(af.InputError, match="weights must be None, a local file or one of"):
        af.AGMH(8, weights="IMAGENET9K", **options)
    with pytest.raises(af.InputError, match="does not fit resnet34"):
        af.AGMH(8, weights=tmp_path / "resnet18.pth", **(options | {"backbone": "resnet34"}))


def test_bad_input_is_named():
    for bits in (0, 4097, 2.5, None):
        with pytest.raises(af.InputError, match="bits must be a whole number from 1 to 4096"):
            tiny_model(bits)
    with pytest.raises(af.InputError, match="backbone must be"):
        af.AGMH(8, backbone="resnet9000")
    with pytest.raises(af.InputError, match="feature_channels"):
        af.AGMH(8, backbone=nn.Identity())
    for name in ("num_descriptors", "descriptor_dim", "num_heads", "memory_size"):
        for number in (0, -1, 2.5):
            with pytest.raises(af.InputError, match=f"{name} must be a whole number of at least 1"):
                tiny_model(**{name: number})
    model = tiny_model()
    with pytest.raises(af.InputError, match=r"images must be \(B, channels, H, W\)"):
        model(torch.randn(3, 16, 16))
    with pytest.raises(af.InputError, match="divide by 255"):
        model(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(af.InputError, match="images are on meta"):
        model(torch.randn(2, 3, 16, 16, device="meta"))
    with pytest.raises(af.InputError, match="NaN"):
        model.encode(torch.full((2, 3, 16, 16), torch.nan))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trains_under_autocast(dtype):
    model = tiny_model()
    with torch.autocast("cpu", dtype=dtype):
        out = model(torch.randn(4, 3, 16, 16))
        loss = out.embedding.float().square().mean() + out.attention_dispersion
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_compiles_whole():
    model, images = tiny_model(), torch.randn(4, 3, 16, 16)
    twin = tiny_model()
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for module in (model, compiled):
        out = module(images)
        (out.embedding.square().mean() + out.attention_dispersion).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6), name
    for p, q in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.allclose(p.double(), q.double(), rtol=1e-5, atol=1e-6)


def test_initialisation_is_the_published_one():
    """Standard deviations sqrt(2 / out_channels): with n weights a sample's is within 5/sqrt(2n) relative, five
    sigma.
    """
    attention = StepwiseExternalAttention(4, 64, 4, 32)
    for weight in (attention.conv_weight, attention.query, attention.mix, attention.value, attention.project):
        expected = (2 / weight.shape[-2]) ** 0.5
        assert abs(weight.std().item() / expected - 1) < 5 / (2 * weight.numel()) ** 0.5
    assert "num_descriptors=4" in repr(attention)
