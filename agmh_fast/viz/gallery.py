"""Queries beside the items found for them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agmh_fast.errors import require
from agmh_fast.viz.figure import BLUE, INK, MUTED, RIGHT, WRONG, as_array, as_pictures, new_figure, show_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL = 1.15


def retrieval_gallery(
    queries: Any,
    query_names: Sequence[str],
    neighbours: Any,
    neighbour_names: Sequence[Sequence[str]],
    distances: Any,
    correct: Any = None,
) -> Figure:
    """One row a query: the query, then its nearest items in order, each with its class name and distance.

    queries (Q, H, W, 3) uint8 and neighbours (Q, k, H, W, 3) uint8 are pictures, query_names (Q) and neighbour_names
    (Q of k) their classes, distances (Q, k) in bits, correct (Q, k) bool. A correct item has a green solid frame and a
    tick, a wrong one a red dashed frame and a cross, so that colour is not needed to tell them apart; without `correct`
    frames are grey. A negative distance leaves the place empty. Raises InputError if shapes do not fit.
    """
    queries, neighbours = as_pictures("queries", queries, 4), as_pictures("neighbours", neighbours, 5)
    distances = as_array("distances", distances, 2)
    hits = None if correct is None else as_array("correct", correct, 2)
    rows, columns = neighbours.shape[:2]
    require(len(queries) == rows, f"queries and neighbours must be as many, got {len(queries)} and {rows}")
    require(
        distances.shape == (rows, columns) and (hits is None or hits.shape == (rows, columns)),
        f"distances and correct must have shape {(rows, columns)}, got {distances.shape}"
        + ("" if hits is None else f" and {hits.shape}"),
    )
    require(len(query_names) == rows, f"query_names must hold {rows} names, got {len(query_names)}")
    require(
        len(neighbour_names) == rows and all(len(names) == columns for names in neighbour_names),
        f"neighbour_names must hold {rows} lists of {columns} names",
    )
    figure = new_figure(_PANEL * (columns + 1), (_PANEL + 0.62) * rows)
    panels = figure.subplots(rows, columns + 1, squeeze=False)
    for row in range(rows):
        show_picture(panels[row, 0], queries[row], BLUE, width=2)
        _label(panels[row, 0], "query", BLUE, query_names[row])
        for column in range(columns):
            axes, distance = panels[row, column + 1], distances[row, column]
            if distance < 0:
                axes.set_axis_off()
                continue
            colour, style, mark = _frame(None if hits is None else bool(hits[row, column]))
            show_picture(axes, neighbours[row, column], colour, style, 2)
            _label(axes, f"{mark} {distance}".strip(), colour, neighbour_names[row][column])
    return figure


def _frame(hit: bool | None) -> tuple[str, Any, str]:
    """Colour, line and mark of an item that is right, wrong or not known to be either."""
    if hit is None:
        return MUTED, "-", ""
    return (RIGHT, "-", "\N{CHECK MARK}") if hit else (WRONG, (0, (3, 2)), "\N{BALLOT X}")


def _label(axes: Axes, mark: str, colour: str, name: str) -> None:
    """The mark above the picture, the class name below it on at most three lines."""
    axes.set_title(mark, fontsize=9, color=colour, fontweight="bold", pad=3)
    lines = textwrap.wrap(name, 14, max_lines=3, placeholder="…") or [""]
    axes.set_xlabel("\n".join(lines), fontsize=8, color=INK if colour == BLUE else MUTED, labelpad=3)
