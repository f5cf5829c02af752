"""Pictures of a run: curves, retrieval galleries, attention maps, and the report that holds them."""

from __future__ import annotations

from agmh_fast.viz.attention import attention_gallery, overlay
from agmh_fast.viz.bars import bar_chart
from agmh_fast.viz.codes import code_scatter, neighbour_embedding, principal_components
from agmh_fast.viz.curves import loss_curves, map_curve
from agmh_fast.viz.figure import png_bytes, save_png
from agmh_fast.viz.gallery import retrieval_gallery
from agmh_fast.viz.report import Picture, Section, Table, write_report
from agmh_fast.viz.scores import map_by_bits, precision_recall_curves

__all__ = [
    "Picture",
    "Section",
    "Table",
    "attention_gallery",
    "bar_chart",
    "code_scatter",
    "loss_curves",
    "map_by_bits",
    "map_curve",
    "neighbour_embedding",
    "overlay",
    "png_bytes",
    "precision_recall_curves",
    "principal_components",
    "retrieval_gallery",
    "save_png",
    "write_report",
]
