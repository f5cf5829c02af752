"""A run of the benches as a file to keep: machine, versions, commit, and every row's median and what it says beside it.

    python -m pytest bench/ --benchmark-json=RUN.json
    python bench/record.py RUN.json bench/results/cpu.json

Rounds one by one are left out. A run of a changed working tree is refused: nobody could repeat it. --commit names the
commit of a run outside of a git repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def recorded(run: dict[str, Any], commit: str | None = None) -> dict[str, Any]:
    """What is kept of pytest-benchmark's JSON; ValueError says why nothing is."""
    made = run["commit_info"]
    if made.get("dirty"):
        raise ValueError("the run was made of uncommitted changes: commit them and run the bench again")
    commit = commit or made["id"]
    if not commit or commit == "unversioned":
        raise ValueError("the run does not say of which commit it is: give it with --commit")
    if not run["benchmarks"]:
        raise ValueError("the run has no benchmarks")
    return described(run) | {"commit": commit}


def described(run: dict[str, Any]) -> dict[str, Any]:
    """pytest-benchmark's JSON in the form of a recorded run, whatever it was made of."""
    machine = run["machine_info"]
    return {
        "datetime": run["datetime"],
        "commit": run["commit_info"]["id"],
        "cpu": machine["cpu"].get("brand_raw"),
        "python": machine["python_version"],
        **machine["agmh_fast"],
        "benchmarks": [_row(bench) for bench in run["benchmarks"]],
    }


def _row(bench: dict[str, Any]) -> dict[str, Any]:
    """Name, group, median and spread in seconds, and what the bench itself notes."""
    stats = bench["stats"]
    measured = {"median_s": stats["median"], "iqr_s": stats["iqr"], "rounds": stats["rounds"]}
    return {"name": bench["name"], "group": bench["group"], **measured, **bench["extra_info"]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("result", type=Path, help="the file to write, under bench/results/")
    parser.add_argument("--commit", help="of a run outside of a git repository")
    options = parser.parse_args(arguments)
    try:
        kept = recorded(json.loads(options.run.read_text()), options.commit)
    except ValueError as error:
        print(f"agmh-fast: {options.run}: {error}", file=sys.stderr)
        return 2
    options.result.write_text(json.dumps(kept, indent=1) + "\n")
    for row in kept["benchmarks"]:
        speedup = f", {row['speedup']:.3g}x" if "speedup" in row else ""
        print(f"{row['name']}: {row['median_s'] * 1e3:.3g} ms{speedup}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
