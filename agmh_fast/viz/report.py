"""One HTML file that holds a whole report: words, numbers and pictures, with nothing to fetch."""

from __future__ import annotations

import base64
import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from agmh_fast.errors import require
from agmh_fast.files import atomic_write
from agmh_fast.viz.figure import FIGURE_DPI, png_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A cell of more letters is read as words, and broken into lines.
_LONG = 24
_PNG_START = b"\x89PNG\r\n\x1a\n"

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --muted: #59636e; --line: #d8dee4; --band: #f6f8fa;
  --accent: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1318; --ink: #e6edf3; --muted: #9aa5b1; --line: #2d353f;
  --band: #171d24; --accent: #6cb0f5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.3rem); line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.5rem;
  text-wrap: balance; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 0.5rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); }
p { max-width: 44rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
.lead { color: var(--muted); font-size: 1.05rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 1px; margin: 1.75rem 0;
  background: var(--band); border: 1px solid var(--line); border-radius: 0.6rem; overflow: hidden; }
dl div { box-shadow: 0 0 0 1px var(--line); padding: 0.8rem 1rem; }
dt { color: var(--muted); font-size: 0.82rem; }
dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; }
figure.data { margin: 1.5rem 0; max-width: 44rem; }
section figure.data { max-width: none; }
.table { overflow-x: auto; margin-top: 0.4rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0.75rem; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th { text-align: left; font-weight: 400; color: var(--muted); }
td { text-align: right; font-weight: 600; }
td.words { min-width: 12rem; font-weight: 400; }
thead th { text-align: right; vertical-align: bottom; border-bottom-width: 2px; white-space: nowrap; }
thead th:first-child { text-align: left; }
tbody th { width: 40%; }
thead ~ tbody th { width: auto; min-width: 9rem; }
thead ~ tbody td:not(.words) { white-space: nowrap; }
tbody tr:nth-child(odd) { background: var(--band); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.25rem;
  align-items: start; margin: 1.25rem 0; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
.sheet { background: #fff; border: 1px solid var(--line); border-radius: 0.6rem; padding: 0.6rem; overflow-x: auto; }
.sheet:focus-visible, .table:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
img { display: block; width: 100%; height: auto; }
figure:not(.wide) img { max-width: 34rem; margin: 0 auto; }
.wide img { margin: 0 auto; }
figcaption { color: var(--muted); font-size: 0.9rem; line-height: 1.45; margin-top: 0.5rem; max-width: 44rem;
  overflow-wrap: anywhere; }
@media (max-width: 30rem) { main { padding: 1.5rem 1rem 3rem; } h2 { margin-top: 2.25rem; } }
@media print { .sheet { break-inside: avoid; overflow: visible; } .wide img { min-width: 0 !important; } }
"""


@dataclass(frozen=True)
class Picture:
    """A figure (or the bytes of a PNG file) with the text that stands in for it and a caption.

    A wide one takes the whole width and scrolls sideways on a narrow screen instead of becoming unreadably small.
    """

    image: Figure | bytes
    alt: str
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, numbers or text, under a caption and a header; the first cell of a row names it.

    A table that is wider than the screen scrolls by itself.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Section:
    """A heading, a text (an empty line starts a new paragraph), pictures and tables."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def write_report(
    path: str | os.PathLike[str],
    title: str,
    summary: Mapping[str, object],
    sections: Sequence[Section],
    lead: str = "",
    highlights: Mapping[str, object] | None = None,
    caption: str = "What was measured",
) -> None:
    """Write one self-contained HTML page to `path`, whole or not at all.

    `lead` is the text under the title, `highlights` the few numbers to see first, `summary` the table under `caption`
    (label -> number or text; None reads "not measured"). All text is escaped; pictures are embedded; the page has no
    script and fetches nothing. Raises InputError if a picture lacks its alt text, a row of a table has not as many
    cells as its header, or `path` cannot be written.
    """
    body = [f"<h1>{escape(title)}</h1>", _paragraphs(lead, ' class="lead"')]
    if highlights:
        cells = (f"<div><dt>{escape(k)}</dt><dd>{escape(_text(v))}</dd></div>" for k, v in highlights.items())
        body.append(f"<dl>{''.join(cells)}</dl>")
    if summary:
        body.append(_boxed(caption, "", summary.items()))
    body += [_section(section) for section in sections]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _section(section: Section) -> str:
    pictures = "\n".join(_picture(picture) for picture in section.pictures)
    return (
        f"<section>\n<h2>{escape(section.title)}</h2>\n{_paragraphs(section.text)}\n"
        + (f'<div class="pictures">\n{pictures}\n</div>\n' if pictures else "")
        + "".join(f"{_table(table)}\n" for table in section.tables)
        + "</section>"
    )


def _table(table: Table) -> str:
    width = len(table.header)
    require(all(len(row) == width for row in table.rows), f"every row of {table.caption!r} must have {width} cells")
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    return _boxed(table.caption, f"<thead><tr>{cells}</tr></thead>", table.rows)


def _boxed(caption: str, head: str, rows: Iterable[Sequence[object]]) -> str:
    """A table in a box that scrolls where it must, and is then reached by keyboard."""
    lines = (
        f'<tr><th scope="row">{escape(str(name))}</th>' + "".join(_cell(_text(value)) for value in values) + "</tr>"
        for name, *values in rows
    )
    return (
        f'<figure class="data"><figcaption>{escape(caption)}</figcaption><div class="table" tabindex="0">'
        f"<table>{head}<tbody>{''.join(lines)}</tbody></table></div></figure>"
    )


def _cell(text: str) -> str:
    kind = ' class="words"' if len(text) > _LONG else ""
    return f"<td{kind}>{escape(text)}</td>"


def _paragraphs(text: str, attributes: str = "") -> str:
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n".join(f"<p{attributes}>{escape(part)}</p>" for part in parts if part)


def _picture(picture: Picture) -> str:
    require(bool(picture.alt.strip()), "a picture of a report needs an alt text that says what it shows")
    data = picture.image if isinstance(picture.image, bytes) else png_bytes(picture.image)
    require(data.startswith(_PNG_START), f"the picture {picture.alt!r} is not a PNG file")
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    width, height = struct.unpack(">II", data[16:24])
    kind = focus = size = ""
    if picture.wide:
        # A box that scrolls must be reachable by keyboard.
        kind, focus = ' class="wide"', ' tabindex="0"'
        inches = width / FIGURE_DPI
        size = f' style="min-width: {5 * inches:.1f}rem; max-width: {9 * inches:.1f}rem"'
    source = base64.b64encode(data).decode("ascii")
    return (
        f'<figure{kind}><div class="sheet"{focus}><img alt="{escape(picture.alt)}" width="{width}" height="{height}"'
        f'{size} src="data:image/png;base64,{source}"></div>{caption}</figure>'
    )


def _text(value: object) -> str:
    """Numbers as a reader wants them: 1,680 and 0.7412; None is "not measured"."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "not measured"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
