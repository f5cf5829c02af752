"""A run of the benches as a file to keep: machine, versions, commit, and every row's median and what it says beside it.

    python -m pytest bench/ --benchmark-json=RUN.json
    python bench/record.py RUN.json bench/results/cpu.json

Rounds one by one are left out. A run of a changed working tree is refused: nobody could repeat it. --commit names the
commit of a run outside of a git repository.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def load(path: Path) -> dict[str, Any]:
    """A run as `--benchmark-json` wrote it, or recorded; ValueError if it is neither."""
    run = json.loads(path.read_text())
    benches = run.get("benchmarks") if isinstance(run, dict) else None
    if not isinstance(benches, list) or not benches:
        raise ValueError("it has no benchmarks")
    if not all(isinstance(bench, dict) and isinstance(bench.get("name"), str) for bench in benches):
        raise ValueError("it has benchmarks without a name")
    return run


def recorded(run: dict[str, Any], commit: str | None = None) -> dict[str, Any]:
    """What is kept of pytest-benchmark's JSON; ValueError says why nothing is."""
    kept, made = described(run), run["commit_info"]
    if made.get("dirty"):
        raise ValueError("the run was made of uncommitted changes: commit them and run the bench again")
    commit = commit or made["id"]
    if not commit or commit == "unversioned":
        raise ValueError("the run does not say of which commit it is: give it with --commit")
    return kept | {"commit": commit}


def described(run: dict[str, Any]) -> dict[str, Any]:
    """pytest-benchmark's JSON in the form of a recorded run, whatever it was made of; ValueError: of other benches."""
    with of_these_benches():
        machine = run["machine_info"]
        return {
            "datetime": run["datetime"],
            "commit": run["commit_info"]["id"],
            "cpu": machine["cpu"].get("brand_raw"),
            "python": machine["python_version"],
            **machine["agmh_fast"],
            "benchmarks": [_row(bench) for bench in run["benchmarks"]],
        }


@contextlib.contextmanager
def of_these_benches() -> Iterator[None]:
    """What a run lacks, or has of another type, as ValueError."""
    try:
        yield
    except KeyError as missing:
        raise ValueError(f"it is no run of these benches: it has no {missing}") from missing
    except (AttributeError, TypeError) as error:
        raise ValueError(f"it is no run of these benches: {error}") from error


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
        kept = recorded(load(options.run), options.commit)
    except (OSError, ValueError) as error:
        print(f"agmh-fast: {options.run}: {error}", file=sys.stderr)
        return 2
    options.result.write_text(json.dumps(kept, indent=1) + "\n")
    for row in kept["benchmarks"]:
        speedup = f", {row['speedup']:.3g}x" if "speedup" in row else ""
        print(f"{row['name']}: {row['median_s'] * 1e3:.3g} ms{speedup}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
