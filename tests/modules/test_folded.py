"""Models made for encoding: the same codes from folded convolutions, by oneDNN and by plain operators."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import agmh_fast as af
from agmh_fast import InputError
from agmh_fast.modules import folded as folded_module
from agmh_fast.modules.folded import FusedConv
from agmh_fast.modules.small import SmallResNet

SIZES = {"num_descriptors": 2, "descriptor_dim": 16, "num_heads": 2, "memory_size": 4}
BACKBONES = ["resnet18", "resnet50", "small"]


def _model(backbone: str, **options) -> af.AGMH:
    """A model whose BatchNorms have statistics and weights of their own, as trained ones do."""
    torch.manual_seed(0)
    model = af.AGMH(24, SmallResNet(3) if backbone == "small" else backbone, **SIZES, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def _logits(model: af.AGMH, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.features(images)).double()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_folding_is_exact_but_for_rounding(backbone):
    model, images = _model(backbone).double(), torch.randn(2, 3, 64, 48, dtype=torch.float64)
    folded = model.for_encoding(torch.float64)
    expected = _logits(model, images)
    # Some hundred layers of sums in another order.
    assert (_logits(folded, images) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_float32_errs_as_the_model_itself_does(backbone, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(folded_module, "_by_onednn", lambda x: False)
    model, images = _model(backbone), torch.randn(3, 3, 64, 64)
    exact = _logits(copy.deepcopy(model).double(), images.double())
    folded = model.for_encoding()
    actual = _logits(folded, images)
    codes = af.unpack_codes(folded.encode(images), 24) > 0
    own = (_logits(model, images) - exact).norm()
    error = (actual - exact).norm()
    assert error <= 2 * own + 10 * torch.finfo(torch.float32).eps * exact.norm()
    undecided = exact.abs() <= 10 * (own + error)
    assert ((codes == (exact >= 0)) | undecided).all()
    assert undecided.float().mean() < 0.1


def test_bfloat16_errs_as_bfloat16_does():
    model, images = _model("resnet18"), torch.randn(3, 3, 64, 64)
    exact = _logits(copy.deepcopy(model).double(), images.double())
    with torch.autocast("cpu", torch.bfloat16):
        own = (_logits(model, images) - exact).norm()
    error = (_logits(model.for_encoding(torch.bfloat16), images) - exact).norm()
    assert error <= 2 * own + torch.finfo(torch.bfloat16).eps * exact.norm()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_nothing_is_left_to_normalise_or_add(backbone):
    kinds = {type(module) for module in _model(backbone).for_encoding().backbone.modules()}
    assert FusedConv in kinds
    assert not kinds & {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}
    graph = _model(backbone).for_encoding().backbone.net.graph
    assert not [node for node in graph.nodes if node.op == "call_function"]


class Reading(nn.Module):
    """A block whose shortcut somebody else reads: the convolution itself, a later sum, or a later view of it."""

    def __init__(self, channels: int, reader: str) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.view, self.relu, self.reader = nn.Identity(), nn.ReLU(), reader

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.reader == "convolution":
            return self.relu(self.second(x) + x)
        seen = self.view(x) if self.reader == "view" else x
        y = self.relu(self.second(self.first(x)) + x)
        return self.relu(self.second(y) + seen)


@pytest.mark.parametrize("reader", ["convolution", "sum", "view"])
def test_a_shortcut_that_is_read_again_is_not_overwritten(reader):
    model, images = _model("small"), torch.randn(2, 3, 32, 32)
    model.backbone.blocks.append(Reading(128, reader))
    expected = _logits(model, images)
    assert (_logits(model.for_encoding(), images) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_every_sum_of_a_resnet_takes_its_shortcuts_memory(backbone):
    net = _model(backbone).for_encoding().backbone.net
    sums = [net.get_submodule(node.target) for node in net.graph.nodes if len(node.args) == 2]
    assert len(sums) == {"resnet18": 8, "resnet50": 16}[backbone]
    assert all(module.overwrites for module in sums)


def test_images_stay_as_they_were():
    model = _model("small")
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    model.for_encoding().encode(images)
    assert torch.equal(images, before)


def test_the_model_it_was_made_of_stays_as_it_was():
    model, images = _model("resnet18").train(), torch.randn(2, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    model.for_encoding(torch.bfloat16).encode(images)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model(images).embedding.requires_grad


def test_images_of_several_sizes_and_layouts():
    model = _model("small")
    folded = model.for_encoding()
    for shape in ((3, 3, 64, 64), (1, 3, 40, 96), (3, 3, 64, 64)):
        images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        expected = _logits(model, images)
        assert (_logits(folded, images) - expected).norm() <= 1e-5 * expected.norm()


def test_copies_and_conversions_lay_the_weights_out_anew():
    model, images = _model("small"), torch.randn(2, 3, 64, 64)
    folded = model.for_encoding()
    codes = folded.encode(images)
    assert torch.equal(pickle.loads(pickle.dumps(folded)).encode(images), codes)
    assert torch.equal(copy.deepcopy(folded).encode(images), codes)
    with torch.no_grad():
        for module in folded.backbone.modules():
            if isinstance(module, FusedConv):
                module.weight.mul_(-1)
    moved = folded.double().float()
    assert not torch.equal(moved.encode(images), codes)


def test_a_model_made_for_encoding_is_taken_as_it_is_or_converted():
    folded = _model("small").for_encoding()
    assert folded.for_encoding() is folded
    assert folded.for_encoding(torch.float32) is folded
    images = torch.randn(2, 3, 64, 64)
    again, direct = folded.for_encoding(torch.float64), _model("small").for_encoding(torch.float64)
    assert again is not folded
    # The folded weights were rounded to float32 once.
    expected = _logits(direct, images)
    assert (_logits(again, images) - expected).norm() <= 1e-5 * expected.norm()


def test_convolutions_with_hooks_are_called():
    model, called = _model("small"), []
    model.backbone.conv.register_forward_hook(lambda *_: called.append(True))
    folded = model.for_encoding()
    images = torch.randn(2, 3, 64, 64)
    expected = _logits(model, images)
    assert called == [True]
    assert (_logits(folded, images) - expected).norm() <= 1e-5 * expected.norm()
    assert len(called) > 1


class Asking(nn.Module):
    """A backbone that a trace would follow the wrong way."""

    out_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)) if isinstance(x, torch.Tensor) else x[-1]


def test_a_backbone_of_your_own_is_taken_as_it_is():
    model, images = af.AGMH(24, Asking(), **SIZES).eval(), torch.randn(2, 3, 16, 16)
    expected = _logits(model, images)
    assert (_logits(model.for_encoding(), images) - expected).norm() <= 1e-5 * expected.norm()


def test_it_cannot_be_trained_and_takes_floating_types_only():
    folded = _model("small").for_encoding().train()
    with pytest.raises(InputError, match="cannot be trained"):
        folded(torch.randn(2, 3, 64, 64))
    assert folded.encode(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    with pytest.raises(InputError, match="dtype"):
        _model("small").for_encoding(torch.int8)
