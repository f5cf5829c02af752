"""Tables and pictures of recorded runs, and what changed from one to another.

    python bench/report.py bench/results/cpu-hamming.json --output bench/out
    python bench/report.py NEW.json --against OLD.json

Writes report.md, report.html, and as PNG and SVG the speed-ups, the shares of what is possible, rooflines, peak memory,
how search scales in queries and items, and the parts of a step of training, each where the run has it. --against
compares speed-ups where both runs have them, as those do not depend on how fast the machine is, and times elsewhere; a
row is worse where it lost more than both runs' spread and a tenth. Exit status 1: some are; 2: a run could not be read,
which the report of the others leaves out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))

import plot_hamming
import plot_items
import plot_roofline
import plot_training_step
import rows as reading
from rows import Row

from agmh_fast.errors import InputError
from agmh_fast.files import output_folder
from agmh_fast.recorded import cores, duration, number
from agmh_fast.viz import Picture, Section, Table, bar_chart, write_report
from agmh_fast.viz.figure import png_bytes, svg_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Below this a loss is taken for noise whatever the runs' own spread says: it is that of one run, not of two.
NOISE = 0.1


def machine(run: Mapping[str, Any]) -> str:
    """Where and of what a run was made, in a sentence; one without a GPU says so, and one that others gave way to."""
    where = f"{run['gpu']}, " if run.get("gpu") else ""
    only = "" if run.get("gpu") else " No GPU: nothing here was measured on one."
    return (
        f"{where}{run['cpu']}, {cores(run)}, torch {run['torch']}, Python {run['python']}, "
        f"{run['datetime'][:10]}, commit {run['commit'][:10]}.{only}"
    )


HEADER = ("row", "time", "faster than", "of the limit", "rate", "memory", "misses")


def _beside(row: Row) -> str:
    """What a row is compared with: its baseline, else random order or other instruction sets, where it has those."""
    if row.speedup is not None:
        return f"{number(row.speedup)}× {row.against}"
    if "slowdown" in row.facts:
        return f"slowdown {number(row.facts['slowdown'])}"
    shares = {name.removesuffix("_of_best"): value for name, value in row.facts.items() if name.endswith("_of_best")}
    return ", ".join(f"{name} {share:.0%} of best" for name, share in shares.items())


def _groups(found: Sequence[Row]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """The rows of each group as cells: time, speed-up, share of the limit, rate, memory, and the targets missed."""
    for group, members in itertools.groupby(found, key=lambda row: row.group):
        cells = []
        for row in members:
            share = f"{row.share:.0%} of {row.limit}" if row.share is not None else ""
            memory = ", ".join(f"{name} {peak / 1e6:.4g} MB" for name, peak in row.peaks.items())
            missed = ", ".join(row.missed)
            cells.append((row.name, duration(row.seconds), _beside(row), share, row.rate or "", memory, missed))
        yield group, cells


def _absent(found: Sequence[Row]) -> str:
    """Who did not take part, and why; nothing where all did."""
    missing = {f"{name} ({reason})": None for row in found for name, reason in row.absent.items()}
    return f"Not measured: {'; '.join(missing)}." if missing else ""


def table(found: Sequence[Row]) -> str:
    """Markdown, a part for each group."""
    parts = []
    for group, rows in _groups(found):
        lines = [f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *rows)]
        parts.append("\n".join([f"### {group}", "", *lines]))
    return "\n\n".join([*parts, *([_absent(found)] if _absent(found) else [])])


def speedups(found: Sequence[Row]) -> Figure | None:
    """A bar for each speed-up, on a logarithmic scale from 1, which is as fast as the other."""
    bars = [(f"{_short(row)}, against {row.against}", row.speedup) for row in found if row.speedup is not None]
    return bar_chart(bars, "times faster", lambda value: f"{number(value)}×", log=True) if bars else None


def shares(found: Sequence[Row]) -> Figure | None:
    """A bar for each share of what is possible; a search may beat the loop that computes every distance."""
    bars = [(f"{_short(row)}, {row.limit}", row.share) for row in found if row.share is not None]
    return bar_chart(bars, "beside the limit", lambda value: f"{value:.0%}", log=True) if bars else None


def memory(found: Sequence[Row]) -> Figure | None:
    """A bar for each contestant's peak beyond what was held before."""
    bars = [(f"{_short(row)}: {name}", peak / 1e6) for row in found for name, peak in row.peaks.items()]
    return bar_chart(bars, "peak memory, MB", number) if bars else None


def _pictures(run: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Those that the run has something to show in, by name."""
    found = reading.rows(run)
    for name, draw in {"speedups": speedups, "shares": shares, "memory": memory}.items():
        figure = draw(found)
        if figure is not None:
            yield name, figure
    for kind, device in itertools.product(plot_roofline.KINDS, plot_roofline.DEVICES):
        roofline = plot_roofline.roofline(run["benchmarks"], kind, device)
        if roofline is not None:
            yield f"roofline-{kind}s-{device}", plot_roofline.draw(roofline, kind, device)
    with contextlib.suppress(ValueError):
        yield "queries", plot_hamming.draw(plot_hamming.shares(run))
    with contextlib.suppress(ValueError):
        yield "step", plot_training_step.draw(plot_training_step.parts_of(run))
    if items := plot_items.times(run["benchmarks"]):
        yield "items", plot_items.draw(items)


def _short(row: Row) -> str:
    return row.name.removeprefix("test_").replace("_", " ").replace("[", " [")


def compared(new: Sequence[Row], old: Sequence[Row]) -> tuple[str, list[str]]:
    """Markdown of rows in both runs, and the names of those that became worse."""
    before = {row.name: row for row in old}
    lines, worse = ["| row | before | now | change | |", "|---|---|---|---|---|"], []
    for row in new:
        if row.name not in before:
            lines.append(f"| {row.name} | | {duration(row.seconds)} | | new |")
            continue
        past = before.pop(row.name)
        ratios = row.speedup is not None and past.speedup is not None
        # Above 1: better than before.
        change = row.speedup / past.speedup if ratios else past.seconds / row.seconds
        noise = max(NOISE, row.spread + past.spread)
        verdict = "WORSE" if change < 1 - noise else "better" if change > 1 + noise else "within noise"
        worse += [row.name] if verdict == "WORSE" else []
        shown = [f"{each.speedup:.3g}×" if ratios else duration(each.seconds) for each in (past, row)]
        lines.append(f"| {row.name} | {shown[0]} | {shown[1]} | {change - 1:+.0%} (noise {noise:.0%}) | {verdict} |")
    lines += [f"| {name} | {duration(past.seconds)} | | | gone |" for name, past in before.items()]
    return "\n".join(lines), worse


# What the pictures show, for those who do not see them.
ALT = {
    "speedups": "Bars of how many times faster each row is than its baseline",
    "shares": "Bars of the share of its limit that each row reaches",
    "memory": "Bars of the peak memory of each contestant",
    "roofline-flops-cpu": "Roofline of products: a point a row under copy bandwidth and the rate of products",
    "roofline-pairs-cpu": "Roofline of bits compared: a point a row under copy bandwidth and the loop of distances",
    "roofline-flops-cuda": "Roofline of products on the GPU: a point a row under copy bandwidth and rate of products",
    "roofline-pairs-cuda": "Roofline of bits compared on the GPU: a point a row under copy bandwidth and bits counted",
    "queries": "Share of the loop of distances by queries at once, a line for each width of codes",
    "step": "A step of training as stacked bars of its parts, the published step beside ours",
    "items": "Time of a query by the number of items, a line for each number of queries",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="what --benchmark-json or bench/record.py wrote")
    parser.add_argument("--output", type=Path, help="folder for report.md and the pictures")
    parser.add_argument("--against", type=Path, help="an earlier run to compare a single one with")
    options = parser.parse_args(arguments)
    try:
        if options.against is not None and len(options.runs) != 1:
            raise ValueError("--against compares one run with one")
        runs, unread = _read(options.runs)
        worse = _report(runs, options.output, options.against) if runs else []
    except (OSError, ValueError, InputError) as error:
        print(f"agmh-fast: {error}", file=sys.stderr)
        return 2
    for line in unread:
        print(f"agmh-fast: {line}", file=sys.stderr)
    if worse:
        print(f"agmh-fast: worse than before: {', '.join(worse)}", file=sys.stderr)
    return 2 if unread else 1 if worse else 0


def _read(paths: Sequence[Path]) -> tuple[dict[str, Any], list[str]]:
    """Runs by a name of their own, and for each that cannot be read a line that says why."""
    paths = list(dict.fromkeys(paths))
    stems = Counter(path.stem for path in paths)
    runs, unread = {}, []
    for path in paths:
        name = path.stem if stems[path.stem] == 1 else f"{path.resolve().parent.name}-{path.stem}"
        if name in runs:
            raise ValueError(f"{path}: another run has the name {name}: rename one of them")
        try:
            runs[name] = reading.read(path)
        except (OSError, ValueError) as error:
            unread.append(str(error))
    return runs, unread


def _report(runs: Mapping[str, Any], output: Path | None, against: Path | None) -> list[str]:
    """Print the report, or write it with its pictures; the names of rows that became worse."""
    parts, sections, worse = [], [], []
    folder = output_folder(output) if output is not None else None
    for name, run in runs.items():
        found = reading.rows(run)
        parts.append(f"## {name}\n\n{machine(run)}")
        if against is not None:
            text, worse = compared(found, reading.rows(reading.read(against)))
            parts += [f"Against {against.name}:", text]
        parts.append(table(found))
        if folder is not None:
            pictures = dict(_pictures(run))
            for picture, figure in pictures.items():
                for kind, data in {"png": png_bytes(figure), "svg": svg_bytes(figure)}.items():
                    (folder / f"{name}-{picture}.{kind}").write_bytes(data)
            parts += [f"![{picture} of {name}]({name}-{picture}.svg)" for picture in pictures]
            sections.append(_section(name, run, found, pictures))
    text = "\n\n".join(parts) + "\n"
    if folder is None:
        print(text)
    else:
        (folder / "report.md").write_text(text)
        write_report(folder / "report.html", "Benchmarks of agmh_fast", {}, sections, lead=_LEAD)
        print(f"report: {folder / 'report.md'}, {folder / 'report.html'}")
    return worse


_LEAD = """
Medians; all sides of a row were shown to compute the same before they were timed, in turns, in one run.
"""


def _section(name: str, run: Mapping[str, Any], found: Sequence[Row], pictures: Mapping[str, Figure]) -> Section:
    """A run's part of the page."""
    shown = [
        Picture(figure, f"{ALT[picture]}, of {name}; its numbers are below", wide=True)
        for picture, figure in pictures.items()
    ]
    tables = []
    for group, cells in _groups(found):
        used = [i for i, column in enumerate(zip(*cells, strict=True)) if any(column)]
        tables.append(Table(group, [HEADER[i] for i in used], [[row[i] for i in used] for row in cells]))
    return Section(name, f"{machine(run)}\n\n{_absent(found)}", shown, tables)


if __name__ == "__main__":
    sys.exit(main())
