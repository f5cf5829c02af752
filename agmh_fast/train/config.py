"""The settings of a training run, checked when they are made and stored with the run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from agmh_fast.errors import InputError, require, require_int
from agmh_fast.metrics.result import TIE_RULES
from agmh_fast.modules.backbone import RESNETS
from agmh_fast.ops.codes import MAX_BITS
from agmh_fast.train.selection import SELECTIONS

BACKBONES = ("auto", "small", *RESNETS)
SCHEDULES = ("constant", "cosine")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What may differ between a run and its continuation, for it does not bear on what is learned; the images do, and are
# compared by themselves.
_FREE = (
    "root", "skip_broken", "workers", "device", "output", "resume", "eval_every", "ties", "checkpoint_seconds",
    "rank_seconds",
)  # fmt: skip


def _setting(default: object, text: str) -> Any:
    """A field with a default and the text that the command line shows for it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `fit`; the defaults are the published ones. Raises InputError that names the field."""

    dataset: str = _setting("fonts", "a name of agmh_fast.data.DATASETS")
    root: str | None = _setting(None, "folder of the dataset")
    skip_broken: bool = _setting(False, "leave out images that cannot be read, after reading all of them once")
    cache: str | None = _setting(None, "folder for decoded images, written at first; random crops come from those")
    cache_whole: bool = _setting(
        False, "cache images at their own size: more room, and random crops are those without a cache"
    )
    gpu_decode: bool = _setting(False, "decode JPEG files on the GPU: near the published pixels, not the same")
    bits: int = _setting(48, "code length, 1..4096")
    backbone: str = _setting(
        "auto", "small, a ResNet such as resnet50, or auto: resnet50 for colour images, small for grey ones"
    )
    weights: str | None = _setting(None, "of a ResNet: IMAGENET1K_V2 and the like, or a local file")
    num_descriptors: int = _setting(6, "descriptors D")
    descriptor_dim: int = _setting(512, "channels of a descriptor")
    num_heads: int = _setting(4, "steps of the attention")
    memory_size: int = _setting(128, "memory slots of the attention")
    max_iter: int = _setting(40, "outer iterations, each ended by a discrete step")
    max_epoch: int = _setting(30, "epochs in an outer iteration")
    num_samples: int = _setting(2000, "database items sampled for an outer iteration, all where there are fewer")
    batch_size: int = _setting(32, "images of a step")
    lr: float = _setting(1e-3, "learning rate of SGD")
    momentum: float = _setting(0.9, "Nesterov momentum of SGD")
    weight_decay: float = _setting(1e-4, "weight decay of SGD")
    schedule: str = _setting("constant", "of the learning rate: constant, or cosine to zero at the last step")
    warmup: float = _setting(0.0, "share of all steps over which the learning rate rises from zero")
    gamma: float = _setting(200.0, "weight of the quantization loss")
    dispersion_weight: float = _setting(0.5, "weight of the attention dispersion loss")
    seed: int = _setting(0, "of everything random")
    workers: int = _setting(0, "processes that load images")
    device: str | None = _setting(None, "cpu, cuda or cuda:N; none takes CUDA where there is one")
    precision: str = _setting("fp32", "fp32, or bf16 or fp16 by autocast")
    channels_last: bool = _setting(False, "memory format of model and images")
    compile: bool = _setting(False, "compile the backbone by torch.compile, which takes a while at the first batch")
    fused: bool = _setting(False, "SGD of all parameters in one pass, which rounds a little differently")
    cuda_graph: bool = _setting(False, "capture forward and backward in a CUDA graph, which frees the host")
    sync_bn: bool = _setting(True, "batch statistics are those of all ranks' images, under torchrun")
    rank_seconds: float = _setting(600.0, "how long a rank may keep the others waiting, under torchrun")
    output: str | None = _setting(None, "folder for checkpoint, scalars and models")
    resume: bool = _setting(False, "continue the run in the output folder")
    select: str = _setting(
        "validation",
        "the best model, by mAP: of database images held out of training (validation), of the test queries as "
        "published (test), or simply the last",
    )
    validation_share: float = _setting(0.1, "share of the database images that validation holds out, below a half")
    eval_every: int = _setting(5, "outer iterations between evaluations; the last is always evaluated")
    ties: str = _setting("stable", "order of equal distances in mAP: stable, expected, optimistic or pessimistic")
    checkpoint_seconds: float = _setting(
        30.0, "least time between two checkpoints, each written at the end of an epoch"
    )

    def __post_init__(self) -> None:
        for name in ("root", "cache", "weights", "output"):
            self._check_path(name)
        self._check_choice("backbone", BACKBONES)
        self._check_choice("schedule", SCHEDULES)
        self._check_choice("precision", PRECISIONS)
        self._check_choice("ties", TIE_RULES)
        self._check_choice("select", SELECTIONS)
        require(isinstance(self.dataset, str) and self.dataset != "", f"dataset must be a name, got {self.dataset!r}")
        self._set("bits", require_int("bits", self.bits, 1, MAX_BITS))
        for name in ("num_descriptors", "descriptor_dim", "num_heads", "memory_size", "max_iter", "max_epoch"):
            self._set(name, require_int(name, getattr(self, name), 1))
        for name in ("num_samples", "batch_size", "eval_every"):
            self._set(name, require_int(name, getattr(self, name), 1))
        self._set("seed", require_int("seed", self.seed, 0, 2**63 - 1))
        self._set("workers", require_int("workers", self.workers, 0))
        self._check_number("lr", above=0)
        self._check_number("rank_seconds", above=0)
        for name in ("weight_decay", "gamma", "dispersion_weight", "checkpoint_seconds"):
            self._check_number(name)
        for name in ("momentum", "warmup"):
            self._check_number(name, below=1)
        self._check_number("validation_share", above=0, below=0.5)
        for name in (
            "resume",
            "channels_last",
            "compile",
            "fused",
            "cuda_graph",
            "sync_bn",
            "skip_broken",
            "cache_whole",
            "gpu_decode",
        ):
            require(isinstance(getattr(self, name), bool), f"{name} must be True or False, got {getattr(self, name)!r}")
        require(
            not self.cache_whole or self.cache is not None, "cache must name a folder where cache_whole is asked for"
        )
        require(not self.resume or self.output is not None, "output must name the folder of the run to resume")
        self._check_device()

    @property
    def torch_device(self) -> torch.device:
        """The device that training uses on this machine."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def to_mapping(self) -> dict[str, Any]:
        """Field names and values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to_json(self) -> str:
        """The settings as JSON, keys in the order of the fields."""
        return json.dumps(self.to_mapping(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The settings that `to_json` wrote; raises InputError for anything else."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"config is not JSON: {error}") from error
        require(isinstance(values, dict), f"config must be a JSON object, got {type(values).__name__}")
        return cls.from_mapping(values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Settings from field names and values; raises InputError for an unknown field."""
        known = [f.name for f in fields(cls)]
        for name in values:
            require(name in known, f"{name} is no setting of a run: choose from {', '.join(known)}")
        return cls(**values)

    def continuing(self, stored: TrainConfig) -> TrainConfig:
        """These settings, if they continue a run begun with `stored` exactly; else InputError names what differs."""
        for name in self.to_mapping():
            ours, theirs = getattr(self, name), getattr(stored, name)
            longer = name == "max_iter" and self.schedule == "constant" and self.warmup == 0 and ours > theirs
            if name not in _FREE and not longer and ours != theirs:
                raise InputError(
                    f"{name} is {ours!r}, but the run in {self.output!r} has {theirs!r}: "
                    "give the same value, or another output folder for a new run"
                )
        return self

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0..steps-1: linear warm-up, then the schedule."""
        warmup = self.warmup * steps
        if step < warmup:
            return self.lr * (step + 1) / (math.floor(warmup) + 1)
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2

    def replace(self, **changes: Any) -> TrainConfig:
        """These settings with some changed, checked again."""
        return replace(self, **changes)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_path(self, name: str) -> None:
        value = getattr(self, name)
        require(value is None or isinstance(value, str | os.PathLike), f"{name} must be a path or None, got {value!r}")
        require(value is None or os.fspath(value) != "", f"{name} must be a path or None, got an empty one")
        self._set(name, None if value is None else os.fspath(value))

    def _check_choice(self, name: str, choices: Any) -> None:
        value = getattr(self, name)
        require(
            isinstance(value, str) and value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}"
        )

    def _check_number(self, name: str, above: float | None = None, below: float = math.inf) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        low = "0 or more" if above is None else f"above {above}"
        limit = low if below == math.inf else f"{low} and below {below}"
        fits = number and (value >= 0 if above is None else value > above) and value < below
        require(fits, f"{name} must be a number {limit}, got {value!r}")
        self._set(name, float(value))

    def _check_device(self) -> None:
        try:
            device = self.torch_device
        except (RuntimeError, TypeError) as error:
            raise InputError(f"device must be None, 'cpu', 'cuda' or 'cuda:N', got {self.device!r}") from error
        require(device.type in ("cpu", "cuda"), f"device must be None, 'cpu', 'cuda' or 'cuda:N', got {self.device!r}")
        if device.type == "cuda":
            count = torch.cuda.device_count()
            require(
                (device.index or 0) < count, f"device is {self.device!r}, but this machine has {count} CUDA devices"
            )
        for name in ("cuda_graph", "gpu_decode"):
            require(not getattr(self, name) or device.type == "cuda", f"{name} needs a CUDA device")
        require(not (self.gpu_decode and self.cache), "gpu_decode: a cache is decoded already: choose one of them")
        require(
            self.precision != "fp16" or device.type == "cuda",
            "precision fp16 needs a CUDA device: use bf16 or fp32 on a CPU",
        )
