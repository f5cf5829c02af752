"""JPEG files that are decoded on the device which trains on them: workers only read bytes and draw crops.

A GPU's decoder and its resizing round otherwise than Pillow, so that pixels are near the published ones, not the same:
by default nothing is decoded this way. Files that are no JPEG in RGB are decoded as always.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agmh_fast.data.base import RetrievalData
from agmh_fast.data.images import Draw, ImageFiles, random_draws, read_image, view_of
from agmh_fast.errors import InputError


class Encoded(NamedTuple):
    """A batch before it is decoded: each image's bytes, one after the other, and what is to be seen of it.

    shapes: (bytes,) of a JPEG file or (3, H, W) of pixels; draws: box and flip of random views, else empty.
    """

    names: list[str]
    data: Tensor
    shapes: list[tuple[int, ...]]
    draws: list[Draw]


class DeviceDecodedImages(ImageFiles):
    """`ImageFiles` whose JPEGs are decoded and cropped by the device that images are finished on."""

    def pixels(self, items: Tensor, part: slice, generator: torch.Generator | None) -> Encoded:  # type: ignore[override]
        """The files of items[part], read but not decoded. Raises InputError for those that are no images."""
        own = items[part].tolist()
        opened = [self._opened(item) for item in own]
        draws = (
            [] if generator is None else random_draws([size for _, size in opened], self.size, items, part, generator)
        )
        parts = [data for data, _ in opened]
        names = [str(self.folder / self.paths[item]) for item in own]
        data = torch.cat([data.flatten() for data in parts]) if parts else torch.empty(0, dtype=torch.uint8)
        return Encoded(names, data, [tuple(data.shape) for data in parts], draws)

    def finish(self, pixels: Encoded, device: torch.device | None = None) -> Tensor:  # type: ignore[override]
        """Normalised images (b, 3, size, size) float32 on `device`. Raises InputError that names a damaged file."""
        place = device or torch.device("cpu")
        if not pixels.names:
            return torch.empty(0, 3, self.size, self.size, device=place)
        sizes = [torch.Size(shape).numel() for shape in pixels.shapes]
        parts = [data.view(shape) for data, shape in zip(pixels.data.split(sizes), pixels.shapes, strict=True)]
        files = [number for number, data in enumerate(parts) if data.dim() == 1]
        decoded = _decoded([parts[number] for number in files], [pixels.names[number] for number in files], place)
        images = [data if data.dim() == 1 else data.to(place) for data in parts]
        for number, image in zip(files, decoded, strict=True):
            images[number] = image
        draws: Sequence[Draw | None] = pixels.draws or [None] * len(images)
        views = [view_of(image, draw, self.side, self.size) for image, draw in zip(images, draws, strict=True)]
        return super().finish(torch.stack(views))

    def _opened(self, item: int) -> tuple[Tensor, Any]:
        """Bytes of a JPEG file or pixels (3, H, W), uint8, and something that has the image's size."""
        from PIL import Image
        from torchvision.transforms.v2 import functional

        path = self.folder / self.paths[item]
        try:
            with Image.open(path) as image:
                if image.format == "JPEG" and image.mode == "RGB":
                    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), image
        except Exception:  # says why below
            pass
        picture = read_image(path)
        return functional.pil_to_tensor(picture), picture


def decoded_on_device(data: RetrievalData) -> RetrievalData:
    """The dataset with the JPEGs of both splits decoded where images are finished. Raises InputError without files."""
    splits = []
    for images in (data.database, data.query):
        if type(images) is not ImageFiles:
            raise InputError(f"gpu_decode: dataset {data.name!r} has no image files to decode")
        splits.append(DeviceDecodedImages(images.folder, images.paths, images.labels, images.size))
    return RetrievalData(data.name, data.class_names, splits[0], splits[1], data.mean, data.std)


def _decoded(files: list[Tensor], names: list[str], device: torch.device) -> list[Tensor]:
    """Pixels (3, H, W) uint8 of JPEG files on a device."""
    if not files:
        return []
    pixels = _try_to_decode(files, device)
    if not isinstance(pixels, str):
        return pixels
    for data, name in zip(files, names, strict=True):
        reason = _try_to_decode([data], device)
        if isinstance(reason, str):
            how = "mend it, or leave out such images with skip_broken"
            raise InputError(f"cannot read the image {name!r}: {reason}; {how}")
    raise RuntimeError(pixels)


def _try_to_decode(files: list[Tensor], device: torch.device) -> list[Tensor] | str:
    """The pixels, or why there are none."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to a package of its own
        try:
            return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
        except RuntimeError as error:
            return " ".join(str(error).split())
