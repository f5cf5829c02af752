"""Visual font recognition: the fine-grained set that needs no download.

The classes are the 21 text faces that matplotlib ships; an image is one or two short made-up words set in a face,
jittered in size, place and angle. Every word is set in every face, so a word says nothing about the class, and no
query word is in the database.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from agmh_fast.data.base import RetrievalData
from agmh_fast.errors import InputError, require, require_int

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

FACES = {
    "DejaVu Sans": "DejaVuSans",
    "DejaVu Sans Bold": "DejaVuSans-Bold",
    "DejaVu Sans Oblique": "DejaVuSans-Oblique",
    "DejaVu Sans Bold Oblique": "DejaVuSans-BoldOblique",
    "DejaVu Sans Mono": "DejaVuSansMono",
    "DejaVu Sans Mono Bold": "DejaVuSansMono-Bold",
    "DejaVu Sans Mono Oblique": "DejaVuSansMono-Oblique",
    "DejaVu Sans Mono Bold Oblique": "DejaVuSansMono-BoldOblique",
    "DejaVu Serif": "DejaVuSerif",
    "DejaVu Serif Bold": "DejaVuSerif-Bold",
    "DejaVu Serif Italic": "DejaVuSerif-Italic",
    "DejaVu Serif Bold Italic": "DejaVuSerif-BoldItalic",
    "STIX General": "STIXGeneral",
    "STIX General Bold": "STIXGeneralBol",
    "STIX General Italic": "STIXGeneralItalic",
    "STIX General Bold Italic": "STIXGeneralBolIta",
    "Computer Modern Roman": "cmr10",
    "Computer Modern Bold": "cmb10",
    "Computer Modern Italic": "cmti10",
    "Computer Modern Sans": "cmss10",
    "Computer Modern Typewriter": "cmtt10",
}
"""Class name -> file (without .ttf) among matplotlib's fonts; symbol, size-variant and display faces are left out."""

MEAN, STD = (0.86,), (0.31,)
"""Grey level and contrast of the rendered images, on the scale where white is 1."""

_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxz", "aeiouy"
_OVERSAMPLING, _TRIAL_POINTS = 3, 100


class FontImages:
    """One split of `fonts`: images uint8 (N, 1, size, size), white paper 255, and the words on each."""

    def __init__(self, pixels: Tensor, labels: Tensor, words: tuple[str, ...]) -> None:
        self.pixels, self.labels, self.words = pixels, labels, words

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, items: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images (B, 1, size, size) float32, normalised, of `items` (B,) int64; see `ImageSet.load`."""
        ink = 1 - self.pixels[items].float() / 255
        if generator is not None:
            ink = _augment(ink, generator)
        return (1 - ink - MEAN[0]) / STD[0]


def fonts(
    seed: int = 0, size: int = 64, words_per_class: int = 80, queries_per_class: int = 25, lines: int = 2
) -> RetrievalData:
    """Short words in 21 faces: grey images (1, size, size), each face with as many images a split as the counts say.

    Every image shows `lines` words (1 or 2), one above the other. Item i of a split shows its words number i // 21 in
    face i % 21. The same arguments give the same images. Raises InputError if a number is out of range or matplotlib
    (which brings the faces) is not installed.
    """
    seed = require_int("seed", seed, 0)
    size = require_int("size", size, 16, 1024)
    # There are some 30 000 words of the kind made here.
    counts = (
        require_int("words_per_class", words_per_class, 1, 5000),
        require_int("queries_per_class", queries_per_class, 1, 5000),
    )
    lines = require_int("lines", lines, 1, 2)
    typesetter = _Typesetter(size)
    rng = np.random.default_rng(seed)
    words = _words(rng, sum(counts) * lines)
    texts = [words[start : start + lines] for start in range(0, len(words), lines)]
    database, query = (_split(rng, typesetter, part) for part in (texts[: counts[0]], texts[counts[0] :]))
    return RetrievalData("fonts", tuple(FACES), database, query, MEAN, STD)


def _words(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct made-up words of 3 or 4 letters, vowels and consonants in turn, half of them capitalised."""
    words: dict[str, str] = {}
    while len(words) < count:
        start, length = int(rng.integers(2)), int(rng.integers(3, 5))
        kinds = [_CONSONANTS, _VOWELS, _CONSONANTS, _VOWELS, _CONSONANTS][start : start + length]
        word = "".join(letters[rng.integers(len(letters))] for letters in kinds)
        words.setdefault(word, word.capitalize() if rng.random() < 0.5 else word)
    return list(words.values())


def _split(rng: np.random.Generator, typesetter: _Typesetter, texts: list[list[str]]) -> FontImages:
    """Every text in every face, faces changing fastest."""
    pixels = np.stack([typesetter.render(rng, face, text) for text in texts for face in FACES.values()])
    labels = torch.arange(len(FACES)).repeat(len(texts))
    return FontImages(torch.from_numpy(pixels)[:, None], labels, tuple(" ".join(text) for text in texts for _ in FACES))


class _Typesetter:
    """Renders words with the faces found in matplotlib's folder, each face opened once a size."""

    def __init__(self, size: int) -> None:
        self.size, self.folder = size, _folder()
        self.opened: dict[tuple[str, int], FreeTypeFont] = {}

    def render(self, rng: np.random.Generator, face: str, words: list[str]) -> np.ndarray:
        """One image uint8 (size, size): black words on white, one a line; layout, size, place, angle from `rng`."""
        from PIL import Image, ImageDraw

        share, across, down, angle = rng.uniform([0.76, -0.6, -0.6, -7], [0.94, 0.6, 0.6, 7])
        # Drawn anew for each image, so that the distance of lines tells nothing about the face.
        pitch, indents = rng.uniform(0.95, 1.1), rng.uniform(size=len(words))
        canvas = self.size * _OVERSAMPLING
        _, width, height = self._lines(face, _TRIAL_POINTS, words, pitch, indents)
        points = max(1, round(_TRIAL_POINTS * share * canvas / max(width, height)))
        origins, width, height = self._lines(face, points, words, pitch, indents)
        left, top = (1 + across) * (canvas - width) / 2, (1 + down) * (canvas - height) / 2
        image = Image.new("L", (canvas, canvas), 0)
        draw = ImageDraw.Draw(image)
        for word, (x, y) in zip(words, origins, strict=True):
            draw.text((left + x, top + y), word, 255, self._open(face, points), anchor="ls")
        return 255 - np.asarray(image.rotate(angle, Image.Resampling.BILINEAR).reduce(_OVERSAMPLING))

    def _lines(
        self, face: str, points: int, words: list[str], pitch: float, indents: np.ndarray
    ) -> tuple[list[tuple[float, float]], float, float]:
        """Where each word starts on its baseline, from the top left of all ink, and the width and height of all ink."""
        boxes = [self._open(face, points).getbbox(word, anchor="ls") for word in words]
        baselines = [pitch * points * line for line in range(len(words))]
        top = min(baseline + box[1] for baseline, box in zip(baselines, boxes, strict=True))
        bottom = max(baseline + box[3] for baseline, box in zip(baselines, boxes, strict=True))
        width = max(box[2] - box[0] for box in boxes)
        starts = [indent * (width - box[2] + box[0]) - box[0] for indent, box in zip(indents, boxes, strict=True)]
        return list(zip(starts, (baseline - top for baseline in baselines), strict=True)), width, bottom - top

    def _open(self, face: str, points: int) -> FreeTypeFont:
        from PIL import ImageFont

        if (face, points) not in self.opened:
            path = self.folder / f"{face}.ttf"
            require(path.is_file(), f"matplotlib's folder {str(self.folder)!r} lacks {path.name}: reinstall matplotlib")
            # The basic layout is in every build of Pillow; the other one, where it is there, kerns otherwise.
            self.opened[face, points] = ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)
        return self.opened[face, points]


def _folder() -> Path:
    """The folder of matplotlib's own fonts."""
    try:
        import matplotlib
        import PIL  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the fonts data needs matplotlib and pillow: pip install matplotlib pillow ({error})"
        ) from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _augment(ink: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each image (B, 1, H, W), ink 1 on paper 0: turn, zoom, shift, contrast and noise."""
    number = len(ink)
    draws = torch.rand(6, number, generator=generator) * 2 - 1
    angle, zoom = draws[0] * math.radians(5), 1 + 0.12 * draws[1]
    turn, tilt = zoom * angle.cos(), zoom * angle.sin()
    theta = torch.stack([turn, -tilt, 0.12 * draws[2], tilt, turn, 0.12 * draws[3]], dim=1).view(number, 2, 3)
    # Paper is zero here, so that what comes in from outside the image is paper.
    grid = F.affine_grid(theta, list(ink.shape), align_corners=False)
    moved = F.grid_sample(ink, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    contrast, shade = 0.85 + 0.15 * draws[4], 0.05 * draws[5]
    noise = torch.randn(ink.shape, generator=generator) * 0.03
    return moved * contrast.view(-1, 1, 1, 1) + shade.view(-1, 1, 1, 1) + noise
