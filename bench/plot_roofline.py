"""Rooflines of a run by device: rates of products, and of bits compared, by the operations for a byte that moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agmh_fast.viz.figure import INK, MUTED, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is counted, as its axes call it.
KINDS = {"flop": "floating-point operations", "pair": "bits compared"}
DEVICES = {"cpu": "processor", "cuda": "GPU"}


@dataclass(frozen=True)
class Roofline:
    """Points (operations a byte, operations a second) by series, under a copy's bytes and most operations a second."""

    points: Mapping[str, Sequence[tuple[float, float]]]
    bytes_per_s: float
    most: float


def roofline(benches: Sequence[Mapping[str, Any]], kind: str, device: str = "cpu") -> Roofline | None:
    """Of the rows on that device that count such operations; None where a run has not both roofs.

    The upper roof is the rate of products or, of bits, the fastest loop that computes distances and keeps none, on a
    GPU that of counting bits. Rows that do not say their device are a processor's.
    """
    chosen = [row for row in benches if row.get("operation") == kind and row.get("device", "cpu") == device]
    chosen = [row for row in chosen if row.get("bytes") and row.get("copy_gb_per_s")]
    chosen = [row for row in chosen if row.get("scale", 1) == 1]
    roofs = [most for row in chosen if (most := _most(row, kind)) is not None]
    if not roofs:
        return None
    points: dict[str, list[tuple[float, float]]] = {}
    for row in chosen:
        each = row.get("bits", 1) if kind == "pair" else 1
        series = f"{row['bits']} bits" if kind == "pair" else row["name"].removeprefix("test_").partition("[")[0]
        rate = row[f"g{kind}{'s' if kind == 'pair' else ''}_per_s"] * 1e9 * each
        points.setdefault(series.replace("_", " "), []).append((row["operations"] * each / row["bytes"], rate))
    return Roofline(
        dict(sorted(points.items(), key=_order)), max(row["copy_gb_per_s"] for row in chosen) * 1e9, max(roofs)
    )


def _most(row: Mapping[str, Any], kind: str) -> float | None:
    """Operations a second that this row's machine was seen to do at most."""
    if kind == "flop":
        return row["product_gflop_per_s"] * 1e9 if "product_gflop_per_s" in row else None
    if "popcounts_per_s" in row:
        return 32 * row["popcounts_per_s"]
    if row.get("limit") != "distance loop":
        return None
    return row["gpairs_per_s"] / row["of_limit"] * 1e9 * row["bits"]


def _order(series: tuple[str, Any]) -> tuple[int, str]:
    """Widths by their number, names by the alphabet."""
    number = series[0].partition(" ")[0]
    return (int(number) if number.isdigit() else 0, series[0])


def draw(found: Roofline, kind: str, device: str = "cpu") -> Figure:
    """The picture: a dot a row, a colour a series, under the two roofs."""
    import matplotlib

    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    colors = matplotlib.colormaps["viridis"]
    for i, (name, points) in enumerate(found.points.items()):
        color = colors(0.9 * i / max(1, len(found.points) - 1))
        axes.plot(
            *zip(*points, strict=True), color=color, marker="osD^v<>P"[i % 8], markersize=5, linestyle="", label=name
        )
    reached = [x for points in found.points.values() for x, _ in points]
    ridge = found.most / found.bytes_per_s
    left, right = min(*reached, ridge) / 2, max(*reached, ridge) * 2
    axes.plot([left, ridge, right], [left * found.bytes_per_s, found.most, found.most], color=INK, linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xlabel(f"{KINDS[kind]}, for a byte that must move", fontsize=9, color=MUTED)
    axes.set_ylabel("a second", fontsize=9, color=MUTED)
    dress(axes, f"{KINDS[kind].capitalize()} a second, under what this {DEVICES[device]} gives")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
