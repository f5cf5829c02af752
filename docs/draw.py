"""The pictures of docs/how-it-works.md, computed by the library or by NumPy: `make pictures` writes docs/pictures.

Narrow, with panels one below the other, so that letters can be read on a phone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import agmh_fast as af
from agmh_fast.viz.figure import BLUE, GRID, INK, MUTED, ORANGE, VIOLET, dress, new_figure, svg_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = Path(__file__).resolve().parent / "pictures"
# Other versions place letters elsewhere.
MATPLOTLIB = "3.11.2"

WIDTH = 5.4
PALE = "#dbe9f6"
Box = tuple[str, str, float, float]


def collapse() -> Figure:
    """The chain of products of SIEA, as published and composed."""
    channels, slots, heads = 512, 128, 4
    published = channels * channels + heads * slots * channels + (heads - 1) * 2 * slots * slots
    published += channels * slots + channels * channels
    collapsed = 2 * slots * channels
    before: Sequence[Box] = [
        ("F", "C×n", 0, 1),
        ("W₁", "C×C", 1, 1),
        ("Q₁…Q₄", "K×C", 2, 1),
        ("A₁…A₃", "K×2K", 3, 1),
        ("softmax", "K×n", 4, 1),
        ("V", "C×K", 5, 1),
        ("W₂", "C×C", 6, 1),
        ("BN, ReLU", "C×n", 7, 1),
    ]
    after: Sequence[Box] = [
        ("F", "C×n", 0, 1),
        ("W_z", "K×C", 1, 3),
        ("softmax", "K×n", 4, 1),
        ("P", "C×K", 5, 2),
        ("max", "n", 7, 1),
    ]
    figure = new_figure(WIDTH, 2.9)
    parts = [("as published", before, published), ("composed: the same result", after, collapsed)]
    for axes, (name, boxes, cost) in zip(figure.subplots(2, 1), parts, strict=True):
        axes.set_title(f"{name}, {_spaced(cost)} multiply-adds a position", loc="left", fontsize=10, color=INK)
        _chain(axes, boxes)
    return figure


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _chain(axes: Axes, boxes: Sequence[Box]) -> None:
    """Boxes from left to right; weights are blue, what is computed of images is pale."""
    from matplotlib.patches import Rectangle

    for name, shape, start, width in boxes:
        weight = name[0] in "WQAVP"
        fill = BLUE if weight else PALE
        axes.add_patch(Rectangle((start + 0.06, 0), width - 0.12, 1, facecolor=fill, edgecolor="none"))
        color = "white" if weight else INK
        axes.annotate(name, (start + width / 2, 0.62), ha="center", va="center", fontsize=8.2, color=color)
        axes.annotate(shape, (start + width / 2, 0.26), ha="center", va="center", fontsize=7.5, color=color)
    axes.set_xlim(0, 8)
    axes.set_ylim(-0.1, 1.1)
    axes.axis("off")


def sparse_gradient() -> Figure:
    """Responses (C, n) with the largest of each position marked, and the gradient: one entry a position."""
    rng = np.random.default_rng(0)
    channels, positions = 12, 32
    middles = np.linspace(1, positions - 2, channels)[rng.permutation(channels), None]
    heights = rng.integers(3, 9, (channels, 1))
    bumps = heights * np.exp(-((np.arange(positions) - middles) ** 2) / 12)
    responses = np.round(bumps).astype(int) - rng.integers(0, 3, bumps.shape)
    largest, places = responses.argmax(axis=0), np.arange(positions)
    alive = responses[largest, places] > 0
    gradient = np.zeros_like(responses)
    gradient[largest, places] = np.where(alive, rng.integers(2, 8, positions), 0)
    figure = new_figure(WIDTH, 4.4)
    above, below = figure.subplots(2, 1)
    _cells(above, responses, "Blues", "responses: C channels × n positions, the largest marked")
    above.scatter(places[alive], largest[alive], s=14, color=ORANGE, linewidths=0)
    _cells(below, gradient, "Oranges", f"gradient: {int((gradient > 0).sum())} of {gradient.size} entries are not zero")
    return figure


def _cells(axes: Axes, values: np.ndarray, colors: str, title: str) -> None:
    axes.imshow(values, cmap=colors, aspect="auto", interpolation="none")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def group_sums() -> Figure:
    """The similarity matrix of sampled and database items in order of class, and what the sums keep of it."""
    classes, each, bits = 5, 12, 16
    labels = np.repeat(np.arange(classes), each)
    sampled = labels[::2]
    similar = sampled[:, None] == labels[None, :]
    sums = np.random.default_rng(0).choice([-1, 1], (len(labels), bits)).reshape(classes, each, bits).sum(axis=1)
    figure = new_figure(WIDTH, 4.6)
    above, below = figure.subplots(2, 1, height_ratios=(3, 1.6))
    _cells(
        above, similar.astype(int), "Blues", f"S: {len(sampled)} sampled × {len(labels)} items, two values in blocks"
    )
    _cells(below, sums, "PuOr", f"Σ b of each class: {classes} × {bits} bits, whatever the number of items")
    return figure


def selection() -> Figure:
    """Items by distance from one query, and the limit that the engine would guess from a sample (csrc/hamming)."""
    items, k = 200_000, 100
    query, codes = np.split(np.random.default_rng(0).integers(0, 256, (items + 1, 8), dtype=np.uint8), [1])
    counts, sampled = (af.functional.hamming_histogram(query, part)[0] for part in (codes, codes[::64]))
    expected = k * sampled.sum() / items
    rank = int(expected + 3 * np.sqrt(expected) + 2)
    kth, limit = (int(np.searchsorted(np.cumsum(c), r)) for c, r in ((counts, k), (sampled, rank)))
    figure = new_figure(WIDTH, 3.2)
    axes = figure.subplots()
    distances = np.arange(len(counts))
    axes.bar(distances, counts, color=[BLUE if d <= kth else ORANGE if d <= limit else GRID for d in distances])
    axes.set_yscale("log")
    axes.set_xlim(0, 64)
    axes.set_ylim(0.7, 6e4)
    dress(axes, f"{_spaced(items)} items of 64 bits by distance from a query")
    for height, place, color, text in (
        (3e1, kth, BLUE, f"the {k}th: {kth} bits"),
        (4e3, limit, ORANGE, f"limit from a sample: {limit} bits"),
    ):
        line = {"arrowstyle": "-", "color": color}
        axes.annotate(text, (place, counts[place]), (1, height), fontsize=9, color=color, arrowprops=line)
    axes.set_xlabel("distance, bits", fontsize=9, color=MUTED)
    return figure


def ties() -> Figure:
    """mAP of the same codes under each rule for ties, by code length; the database lies in order of class."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 64))
    of_queries, of_items = np.repeat(np.arange(10), 10), np.repeat(np.arange(10), 60)
    queries, items = (centres[of] + 2.2 * rng.standard_normal((len(of), 64)) for of in (of_queries, of_items))
    lengths = (4, 8, 12, 16, 24, 32, 48, 64)
    figure = new_figure(WIDTH, 3.2)
    axes = figure.subplots()
    styles = {
        "optimistic": (VIOLET, "--"),
        "stable": (INK, ":"),
        "expected": (BLUE, "-"),
        "pessimistic": (ORANGE, "--"),
    }
    for rule, (color, line) in styles.items():
        scores = [
            af.metrics.retrieval(
                af.pack_codes(queries[:, :bits]), af.pack_codes(items[:, :bits]), of_queries, of_items, bits, rule
            ).map
            for bits in lengths
        ]
        axes.plot(lengths, scores, line, color=color, marker="o", markersize=3, label=rule)
    dress(axes, "mAP of the same codes by the rule for ties")
    axes.set_xlabel("bits", fontsize=9, color=MUTED)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


DRAWN: dict[str, Callable[[], Figure]] = {
    "collapse": collapse,
    "sparse-gradient": sparse_gradient,
    "group-sums": group_sums,
    "selection": selection,
    "ties": ties,
}


def main() -> int:
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        (PICTURES / f"{name}.svg").write_bytes(svg_bytes(draw()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
