"""Where the settings of a run come from: what was published for its dataset, a file, the command line.

What is said last and nearest wins: published settings < file < options. A run that is resumed starts from its own
settings instead of the published ones.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from agmh_fast.errors import InputError, require, require_int, shown
from agmh_fast.files import output_folder
from agmh_fast.ops.codes import MAX_BITS
from agmh_fast.train import checkpoint
from agmh_fast.train.config import TrainConfig
from agmh_fast.train.disk import write_text, writing

FILE = "config.json"

_RESNET = {"backbone": "resnet50", "weights": "IMAGENET1K_V1"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "cub": _RESNET,
    "aircraft": _RESNET,
    "food101": _RESNET | {"max_iter": 50},
    "nabirds": _RESNET | {"max_iter": 50, "num_samples": 4000},
    "vegfru": _RESNET | {"max_iter": 50, "num_samples": 4000},
}
"""Dataset -> where its published settings differ from the defaults of `TrainConfig`, which are those of CUB."""


@dataclass(frozen=True)
class Plan:
    """Runs that differ in their code length alone. config: their settings, `bits` that of the first."""

    config: TrainConfig
    lengths: tuple[int, ...]

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(str(self.config.output))

    def runs(self) -> list[TrainConfig]:
        """The settings of each run: the one run lies in the output folder, each of several in a folder of its own.

        Of a plan that is resumed, runs go on that have a checkpoint, and the others begin.
        """
        folders = [self.folder / f"{bits}bits" for bits in self.lengths] if len(self.lengths) > 1 else [self.folder]
        return [
            self.config.replace(
                bits=bits, output=str(folder), resume=self.config.resume and (folder / checkpoint.FILE).is_file()
            )
            for bits, folder in zip(self.lengths, folders, strict=True)
        ]

    def check(self) -> None:
        """Raise InputError where another run would be overwritten, and where the one to resume had other settings."""
        if self.config.resume:
            self._require_same(stored_plan(self.folder))
            return
        taken = [self.folder / checkpoint.FILE, *self.folder.glob(f"*bits/{checkpoint.FILE}")]
        free = not any(path.is_file() for path in taken)
        require(free, f"output: {str(self.folder)!r} already holds a run: resume it or choose another folder")

    def claim(self) -> None:
        """Check, make the output folder, and write the settings there."""
        self.check()
        folder = output_folder(self.folder)
        with writing(folder):
            write_text(folder / FILE, json.dumps(self.to_mapping(), indent=2) + "\n")

    def to_mapping(self) -> dict[str, Any]:
        """Field names and values, to be given again; `bits` is a list where there are several lengths."""
        bits = self.lengths[0] if len(self.lengths) == 1 else list(self.lengths)
        # A run's settings, whichever command was the last to go on with it.
        return self.config.to_mapping() | {"bits": bits, "resume": False}

    def _require_same(self, stored: Plan) -> None:
        ours, theirs = self.lengths, stored.lengths
        # Lengths may be added where each has a folder of its own.
        fits = ours == theirs or (len(theirs) > 1 and set(theirs) <= set(ours))
        if not fits:
            ours_shown, theirs_shown = (",".join(map(str, lengths)) for lengths in (ours, theirs))
            raise InputError(
                f"bits is {ours_shown}, but the run in {str(self.folder)!r} has {theirs_shown}: "
                "give the same value, or another output folder for a new run"
            )
        self.config.continuing(stored.config.replace(bits=self.config.bits))


def plan(given: Mapping[str, Any], file: str | os.PathLike[str] | None = None, output: str = "train-out") -> Plan:
    """The runs that options `given`, by field of `TrainConfig`, ask for, on top of a file and the published settings.

    `bits` may be a number, several in a list, or text such as "12,24". output: the folder, where neither names one.
    Raises InputError for what does not fit.
    """
    said = {"output": output} | ({} if file is None else read_settings(file)) | dict(given)
    base = stored_plan(Path(said["output"])).to_mapping() if said.get("resume") else _published(said)
    values = base | said
    lengths = code_lengths(values.pop("bits", TrainConfig.bits))
    return Plan(TrainConfig.from_mapping(values | {"bits": lengths[0]}), lengths)


def _published(said: Mapping[str, Any]) -> dict[str, Any]:
    """Published settings of the dataset that is asked for; a backbone without published weights begins without."""
    dataset = said.get("dataset", TrainConfig.dataset)
    base = dict(PUBLISHED.get(dataset, {})) if isinstance(dataset, str) else {}
    if said.get("backbone", base.get("backbone")) == "small":
        base.pop("weights", None)
    return base


def stored_plan(folder: Path) -> Plan:
    """The plan of the runs in an output folder; raises InputError where there are none."""
    path = folder / FILE
    values = _read(path, json.loads) if path.is_file() else checkpoint.stored_settings(folder)
    lengths = code_lengths(values.get("bits", TrainConfig.bits))
    # A run may go on where there is no such device.
    return Plan(TrainConfig.from_mapping(values | {"bits": lengths[0], "device": None}), lengths)


def code_lengths(value: object) -> tuple[int, ...]:
    """Different code lengths, of a number, a list of numbers, or text such as "12,24,48"; raises InputError."""
    parts: list[object] = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(value, str):
        parts = [int(part) if part.strip().isdecimal() else part for part in value.split(",")]
    lengths = tuple(require_int("bits", part, 1, MAX_BITS) for part in parts)
    require(len(set(lengths)) == len(lengths) > 0, f"bits must be different code lengths, got {shown(value)}")
    return lengths


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings of a .toml, .yaml or .json file, by field of `TrainConfig`; "-" in a name may stand for "_".

    The text none is None where a setting may be that. Raises InputError for a file that cannot be read and for names
    that are no settings.
    """
    file = Path(path)
    parsers = {".toml": _parse_toml, ".yaml": _parse_yaml, ".yml": _parse_yaml, ".json": json.loads}
    require(file.suffix in parsers, f"config: {str(file)!r} must end in {', '.join(parsers)}")
    values = {str(name).replace("-", "_"): value for name, value in _read(file, parsers[file.suffix]).items()}
    kinds = {field.name: str(field.type) for field in fields(TrainConfig)}
    unknown = [name for name in values if name not in kinds]
    if unknown:
        names = "no setting" if len(unknown) == 1 else "no settings"
        raise InputError(
            f"config: {', '.join(unknown)} in {str(file)!r}: {names} of a run, which are {', '.join(kinds)}"
        )
    return {name: _typed(kinds[name], value) for name, value in values.items()}


def _read(path: Path, parse: Any) -> dict[str, Any]:
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"config: cannot read {str(path)!r}: {' '.join(reason.split())}") from error
    require(isinstance(values, dict), f"config: {str(path)!r} must hold names and values, got {type(values).__name__}")
    return values


def _parse_toml(text: str) -> Any:
    parser = _first_module(("tomllib", "tomli"), "a .toml file needs Python 3.11 or tomli: pip install tomli")
    return parser.loads(text)


def _parse_yaml(text: str) -> Any:
    parser = _first_module(("yaml",), "a .yaml file needs PyYAML: pip install pyyaml, or write a .toml file")
    try:
        return parser.safe_load(text)
    except parser.YAMLError as error:
        raise ValueError(str(error)) from error


def _first_module(names: tuple[str, ...], missing: str) -> ModuleType:
    for name in names:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise InputError(f"config: {missing}")


def _typed(kind: str, value: object) -> object:
    """YAML takes 1e-3, without a point, for text, and TOML has no null: "none" is none, as on the command line."""
    if isinstance(value, str) and kind == "float":
        with contextlib.suppress(ValueError):
            return float(value)
    return None if value == "none" and kind == "str | None" else value
