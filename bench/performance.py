"""docs/performance.md's tables: every row of every recorded run, between the page's two marks.

python bench/performance.py            # make readme: write them
python bench/performance.py --check    # exit status 1: they are not those of the recorded runs
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import readme
from report import machine, table
from rows import rows

from agmh_fast import recorded

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def measured() -> str:
    """A part for each recorded run, latest first, with its machine; at the end what no run has."""
    parts = []
    for name in reversed(recorded.names()):
        run = recorded.load(name)
        parts += [f"### {name}", machine(run), table(rows(run)).replace("### ", "#### ")]
    return "\n\n".join([*parts, readme.on_gpus()]) + "\n"


if __name__ == "__main__":
    sys.exit(readme.main(sys.argv[1:], PAGE, measured))
