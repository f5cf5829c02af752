"""`agmh-fast bench`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from agmh_fast.cli.command import Command, add_json, print_json
from agmh_fast.cli.reports import QUICK, check_report, origin, times, write_bench
from agmh_fast.recorded import duration


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="small sizes: does it all run? its numbers mean nothing")
    parser.add_argument("--report", metavar="html", help="write a page of the measurements, one file")
    add_json(parser)


def _run(args: argparse.Namespace) -> None:
    from agmh_fast import selfbench

    check_report(args.report)
    found = selfbench.run(args.quick, lambda what: print(f"measuring: {what}", file=sys.stderr))
    if args.report is not None:
        write_bench(args.report, found)
    if args.json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    rows = found["rows"]
    width = max(len(row["what"]) for row in rows)
    print(f"{'':<{width}}  {'here':>20}  {'recorded':>20}  against")
    for row in rows:
        here, past = _cell(row["seconds"], row["speedup"]), _cell(row["recorded_seconds"], row["recorded_speedup"])
        print(f"{row['what']:<{width}}  {here:>20}  {past:>20}  {row['against']}")
    print(f"here: {found['machine']['cpu']}, {found['machine']['threads']} threads")
    for run in found["recorded"]:
        print(f"recorded in {run['name']}: {origin(run)}")
    if found["quick"]:
        print(QUICK)
    print(
        "Medians; both sides were shown to give the same before they were timed, in turns. Everything ran on the CPU."
    )


def _cell(seconds: float | None, speedup: float | None) -> str:
    """A time and a ratio, e.g. "194 ms, 6.03×"."""
    if seconds is None:
        return "not recorded"
    return duration(seconds) + ("" if speedup is None else f", {times(speedup)}")


BENCH = Command(
    "measure this machine for a minute, and hold it against the recorded results",
    "agmh-fast bench --report bench.html",
    _options,
    _run,
)
