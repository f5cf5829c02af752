"""Runs of the demo as a file to keep: what each found and took, with its day and the commit it was made of.

    for seed in 0 1 2; do agmh-fast demo --seed $seed --output demo-out/$seed; done
    python bench/record_demo.py bench/results/cpu-demo.json demo-out/0 demo-out/1 demo-out/2

A changed working tree is refused: nobody could repeat its runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agmh_fast.demo import SUMMARY


def recorded(folder: Path, commit: str) -> dict[str, Any]:
    """A run's summary with its commit, and the day on which it was written."""
    file = folder / SUMMARY
    day = time.strftime("%Y-%m-%d", time.gmtime(file.stat().st_mtime))
    return json.loads(file.read_text()) | {"date": day, "commit": commit}


def clean_commit() -> str:
    """The commit that is checked out; ValueError where files differ from it."""
    if _git("status", "--porcelain", "--untracked-files=no"):
        raise ValueError("the working tree has changes: commit them and run the demo again")
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="the file to write, under bench/results/")
    parser.add_argument("runs", type=Path, nargs="+", help="folders that the demo wrote")
    options = parser.parse_args(arguments)
    try:
        commit = clean_commit()
        runs = [recorded(folder, commit) for folder in options.runs]
    except (OSError, ValueError) as error:
        print(f"agmh-fast: {error}", file=sys.stderr)
        return 2
    options.result.write_text(json.dumps(runs, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
