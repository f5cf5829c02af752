"""From settings to a model, and from a finished run's folder back to its model and database codes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agmh_fast._version import __version__
from agmh_fast.data import RetrievalData
from agmh_fast.errors import InputError, first_line, require
from agmh_fast.files import atomic_write
from agmh_fast.modules import AGMH
from agmh_fast.modules.small import SmallResNet
from agmh_fast.ops.codes import pack_codes
from agmh_fast.train.config import TrainConfig

_CODES = "database_codes"
_META = "agmh_fast"
_SIZES = ("bits", "num_descriptors", "descriptor_dim", "num_heads", "memory_size")


def backbone_name(config: TrainConfig, channels: int) -> str:
    """The backbone for images of so many channels; InputError where a ResNet would get grey ones."""
    if config.backbone == "auto":
        return "resnet50" if channels == 3 else "small"
    require(
        config.backbone == "small" or channels == 3,
        f"backbone {config.backbone} takes images of 3 channels, {config.dataset} has {channels}: use small",
    )
    return config.backbone


def build_model(config: TrainConfig, channels: int) -> AGMH:
    """A new model for images of so many channels, initialised from the seed; torch's generators are left alone."""
    sizes = {name: getattr(config, name) for name in _SIZES}
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        return _make(backbone_name(config, channels), channels, config.weights, sizes)


def _make(backbone: str, channels: int, weights: str | None, sizes: dict[str, int]) -> AGMH:
    module = SmallResNet(channels) if backbone == "small" else backbone
    return AGMH(backbone=module, weights=weights, **sizes)  # type: ignore[arg-type]


def describe_model(config: TrainConfig, data: RetrievalData, own_model: bool) -> dict[str, Any]:
    """What a saved model needs to be built again and used: sizes, classes, normalisation, settings."""
    channels = len(data.mean)
    return {
        "version": __version__,
        "backbone": None if own_model else backbone_name(config, channels),
        "channels": channels,
        "sizes": {name: getattr(config, name) for name in _SIZES},
        "class_names": list(data.class_names),
        "mean": list(data.mean),
        "std": list(data.std),
        "fingerprints": data.fingerprints,
        "selected_by": config.select,
        "config": config.to_mapping(),
    }


def save_model(path: Path, model: AGMH, codes: Tensor, meta: dict[str, Any]) -> None:
    """Write weights, packed database codes and `meta` to one safetensors file, whole or not at all.

    codes: (N, bits) of either sign, as in `HashingState.codes`.
    """
    from safetensors.torch import save

    tensors = {name: value.detach().contiguous().cpu() for name, value in model.state_dict().items()}
    tensors[_CODES] = pack_codes(codes).cpu()
    with atomic_write(path) as temporary:
        # Not save_file: it puts a file of its own in the place of this one.
        temporary.write_bytes(save(tensors, {_META: json.dumps(meta)}))


def load_run(folder: str | os.PathLike[str], which: str = "best", device: str | torch.device | None = "cpu") -> AGMH:
    """The model of a run in eval mode: `which` is "best", as the setting `select` says, or "final".

    device: None takes CUDA where there is one. Raises InputError if the folder holds no such model, or one with a
    backbone of the user's own, and for a device that cannot be used.
    """
    tensors, meta = _read(folder, which)
    del tensors[_CODES]
    require(
        meta["backbone"] is not None,
        f"folder: the model in {os.fspath(folder)!r} is of your own making: build it and load its safetensors file",
    )
    with torch.random.fork_rng([]):
        model = _make(meta["backbone"], meta["channels"], None, meta["sizes"])
    model.load_state_dict(tensors)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(place).eval()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: cannot use {str(place)!r}: {first_line(error)}") from error


def load_codes(folder: str | os.PathLike[str], which: str = "best") -> Tensor:
    """Learned database codes (N, ceil(bits/8)) uint8 that belong to `load_run(folder, which)`; same errors."""
    return _read(folder, which)[0][_CODES]


def load_meta(folder: str | os.PathLike[str], which: str = "best") -> dict[str, Any]:
    """What was stored with `load_run(folder, which)`: map, iteration, selected_by, class_names, mean, std, fingerprints
    of the splits, config; same errors.
    """
    return _read(folder, which)[1]


def model_hash(folder: str | os.PathLike[str], which: str = "best") -> str:
    """SHA-256 of the weights of `load_run(folder, which)`, whatever the file's metadata: hexadecimal; same errors."""
    hasher = hashlib.sha256()
    tensors, _ = _read(folder, which)
    del tensors[_CODES]
    for name, value in sorted(tensors.items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hasher.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _read(folder: str | os.PathLike[str], which: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    require(which in ("best", "final"), f"which must be best or final, got {which!r}")
    path = Path(folder) / f"{which}.safetensors"
    if not path.is_file():
        # Of several code lengths each has a folder of its own.
        found = sorted(str(inner.parent) for inner in path.parent.glob(f"*bits/{path.name}"))
        how = f"name one of {', '.join(found)}" if found else "name the output folder of a run"
        raise InputError(f"folder: there is no {path.name} in {os.fspath(folder)!r}: {how}")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})[_META])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"folder: {str(path)!r} is damaged or not the model of a run: {error}") from error
