"""Codes of image files in a folder: `codes.npy`, a row an image, `paths.txt`, a line an image, and `encoded.json`.

They are written as they come, and a process that is stopped leaves what the next one continues. encoded.json comes
last: a folder that has it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from agmh_fast.data import ImageFiles
from agmh_fast.data.images import MEAN, STD, files_hash
from agmh_fast.errors import InputError, require
from agmh_fast.files import output_folder
from agmh_fast.modules import AGMH
from agmh_fast.train.config import PRECISIONS
from agmh_fast.train.disk import write_text, writing
from agmh_fast.train.encoding import encoded_batches
from agmh_fast.train.models import load_meta, load_run, model_hash

CODES, PATHS, ABOUT = "codes.npy", "paths.txt", "encoded.json"
_PARTIAL, _PROGRESS = "codes.partial", "progress.json"


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A run's model, made for encoding, and what tells it from others: its SHA-256, code length and backbone; precision
    is a name of `config.PRECISIONS`.
    """

    run: str
    which: str
    model: AGMH
    bits: int
    backbone: str
    sha256: str
    precision: str = "fp32"

    @classmethod
    def load(
        cls,
        run: str | os.PathLike[str],
        which: str = "best",
        device: str | None = None,
        precision: str = "fp32",
    ) -> Encoder:
        """The model of a run that takes colour photographs; raises InputError for any other, and for fp16 on a CPU."""
        require(precision in PRECISIONS, f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        meta = load_meta(run, which)
        fits = meta["channels"] == 3 and tuple(meta["mean"]) == MEAN and tuple(meta["std"]) == STD
        dataset = meta["config"]["dataset"]
        require(fits, f"run: the model in {os.fspath(run)!r} takes the images of {dataset!r}, not image files")
        model = load_run(run, which, device)
        on_cpu = model.hash_weight.device.type == "cpu"
        require(not on_cpu or precision != "fp16", "precision fp16 needs a CUDA device: use bf16 or fp32 on a CPU")
        model, folder = model.for_encoding(PRECISIONS[precision]), os.path.abspath(run)
        return cls(folder, which, model, model.bits, meta["backbone"], model_hash(run, which), precision)

    @property
    def description(self) -> str:
        """For messages."""
        return f"{self.which} of {self.run!r}: {self.backbone}, {self.bits} bits"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What there is to say of codes: which images they are of, and which model made them.

    images: the folder that `paths` are relative to; row i of the codes is that of paths[i].
    """

    images: str
    paths: tuple[str, ...]
    bits: int
    run: str
    which: str
    backbone: str
    sha256: str
    precision: str = "fp32"

    def to_json(self) -> str:
        """As JSON, for `read`."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Encoded:
        """Of a file that `to_json` was written to; raises InputError."""
        try:
            values = json.loads(Path(file).read_text(encoding="utf-8"))
            return cls(**(values | {"paths": tuple(values["paths"])}))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"cannot read {os.fspath(file)!r}, write it anew: {' '.join(str(error).split())}"
            ) from error

    def require_same_model(self, encoder: Encoder) -> None:
        """Raise InputError unless these codes are of the encoder's model."""
        theirs = f"{self.which} of {self.run!r}: {self.backbone}, {self.bits} bits"
        same = self.sha256 == encoder.sha256
        require(same, f"run: the codes were made by another model ({theirs}) than {encoder.description}")


def encode_files(
    encoder: Encoder,
    images: ImageFiles,
    output: str | os.PathLike[str],
    batch_size: int = 256,
    workers: int = 0,
    advance: Callable[[int], object] = lambda done: None,
) -> Encoded:
    """Write codes and paths of all images into the folder `output`, from where an earlier call stopped.

    advance: called with the number of images done, at first with those of the earlier call. Codes that are there and
    whole are left as they are. Raises InputError where the folder holds other codes, for images that cannot be read,
    and where there is no room; what was written until then is kept.
    """
    folder = output_folder(output)
    paths = tuple(images.paths)
    about = Encoded(
        os.path.abspath(images.folder),
        paths,
        encoder.bits,
        encoder.run,
        encoder.which,
        encoder.backbone,
        encoder.sha256,
        encoder.precision,
    )
    if (folder / ABOUT).is_file():
        stored = Encoded.read(folder / ABOUT)
        theirs, ours = (dataclasses.replace(each, run="", which="") for each in (stored, about))
        require(theirs == ours, f"output: {str(folder)!r} holds other codes: choose another folder")
        advance(len(images))
        return stored
    with writing(folder):
        _write_codes(encoder, images, folder, batch_size, workers, advance)
        write_text(folder / PATHS, "".join(f"{path}\n" for path in paths))
        os.replace(folder / _PARTIAL, folder / CODES)
        write_text(folder / ABOUT, about.to_json())
        (folder / _PROGRESS).unlink(missing_ok=True)
    return about


def _write_codes(
    encoder: Encoder,
    images: ImageFiles,
    folder: Path,
    batch_size: int,
    workers: int,
    advance: Callable[[int], object],
) -> None:
    count, row = len(images), (encoder.bits + 7) // 8
    key = _key(encoder, images, batch_size)
    (folder / _PARTIAL).touch()
    with (folder / _PARTIAL).open("r+b") as file:
        head = {"descr": "|u1", "fortran_order": False, "shape": (count, row)}
        np.lib.format.write_array_header_1_0(file, head)
        start = file.tell()
        done = _done(folder / _PROGRESS, key, file, start, row)
        file.truncate(start + done * row)
        file.seek(start + done * row)
        advance(done)
        for items, codes in encoded_batches(encoder.model, images, range(done, count), batch_size, workers):
            file.write(codes.cpu().numpy().data)
            file.flush()
            os.fsync(file.fileno())
            done += len(items)
            write_text(folder / _PROGRESS, json.dumps({"key": key, "done": done}))
            advance(done)


def _done(progress: Path, key: str, file: BinaryIO, start: int, row: int) -> int:
    """Images whose codes an earlier process has written and synced."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        stored: dict[str, Any] = json.loads(progress.read_text())
        done = int(stored["done"])
        if stored["key"] == key and os.fstat(file.fileno()).st_size >= start + done * row:
            return done
    return 0


def _key(encoder: Encoder, images: ImageFiles, batch_size: int) -> str:
    """What the codes depend on, down to their rounding: model, files, and how they are put into batches."""
    return files_hash(images, f"{encoder.sha256}\n{encoder.precision}\n{batch_size}\n{images.folder.absolute()}")
