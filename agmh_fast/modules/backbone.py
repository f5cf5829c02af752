"""Backbones: modules from images (B, channels, H, W) to features (B, out_channels, H', W')."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from agmh_fast.errors import InputError, first_line, require

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


class ResNetFeatures(nn.Module):
    """A torchvision ResNet without pooling and classifier, its last stage at stride 1: (B, 3, H, W) -> (B, C, H/16,
    W/16).

    Children keep torchvision's names, so its state dicts load. Source: Lu et al. 2023, section 3.1.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        net = torchvision.models.get_model(name)
        self.out_channels: int = net.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        for module in self.layer4[0].modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, out_channels, H/16, W/16) of images (B, 3, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class LastFeatureMap(nn.Module):
    """Wraps an extractor that returns several feature maps (timm's features_only) and keeps the last."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        """The last of the feature maps of images (B, channels, H, W)."""
        maps = self.extractor(images)
        return maps if isinstance(maps, Tensor) else maps[-1]


def build_backbone(
    backbone: str | nn.Module, weights: str | os.PathLike[str] | None, channels: int | None
) -> tuple[nn.Module, int]:
    """The backbone module and its number of output channels.

    backbone: one of `RESNETS`, or a module that returns (B, C, H, W) or a list of feature maps. weights: None, the
    name of torchvision weights, or a local file of a state dict. channels: C of a module that does not say it itself.
    """
    if isinstance(backbone, str):
        require(backbone in RESNETS, f"backbone must be a module or one of {', '.join(RESNETS)}, got {backbone!r}")
        module: nn.Module = ResNetFeatures(backbone)
        if weights is not None:
            _load_resnet(module, backbone, weights)
        return module, module.out_channels  # type: ignore[return-value]
    if not isinstance(backbone, nn.Module):
        raise InputError(f"backbone must be a module or one of {', '.join(RESNETS)}, got {type(backbone).__name__}")
    if weights is not None:
        _load(backbone, read_state_dict(weights), f"weights: {os.fspath(weights)!r} does not fit the backbone")
    return LastFeatureMap(backbone) if hasattr(backbone, "feature_info") else backbone, channels or _channels(backbone)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state dict from a .safetensors file or a torch file of plain tensors; nothing is unpickled but tensors."""
    file = Path(path)
    require(file.is_file(), f"weights: there is no file {str(file)!r}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"weights: cannot read {str(file)!r} as plain tensors: {first_line(error)}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"weights: {str(file)!r} does not hold a state dict of tensors")
    return dict(state)


def _load_resnet(module: nn.Module, name: str, weights: str | os.PathLike[str]) -> None:
    known = {w.name: w for w in torchvision.models.get_model_weights(name)}
    if str(weights) in known:
        try:
            state = known[str(weights)].get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise InputError(
                f"weights: cannot download {weights} for {name} ({error}); pass the path of a local file"
            ) from error
    elif Path(weights).is_file():
        state = read_state_dict(weights)
    else:
        raise InputError(
            f"weights must be None, a local file or one of {', '.join(known)} for {name}, got {str(weights)!r}"
        )
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    _load(module, state, f"weights: {str(weights)!r} does not fit {name}")


def _load(module: nn.Module, state: dict[str, Tensor], otherwise: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        # It names every key, of which a ResNet has hundreds.
        reason = textwrap.shorten(str(error).splitlines()[1], 200, placeholder=" …")
        raise InputError(f"{otherwise}: {reason}") from error


def _channels(module: nn.Module) -> int:
    info = getattr(module, "feature_info", None)
    if info is not None:
        return int(info.channels()[-1])
    for attribute in ("out_channels", "num_features"):
        if isinstance(getattr(module, attribute, None), int):
            return int(getattr(module, attribute))
    raise InputError("backbone does not say its channels (out_channels or num_features): pass feature_channels=")
