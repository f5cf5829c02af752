"""A command that draws one picture of a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import load

from agmh_fast.errors import InputError
from agmh_fast.viz.figure import save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(about: str | None, draw: Callable[[Mapping[str, Any]], Figure], arguments: Sequence[str] | None) -> int:
    """Exit status of RUN.json OUT.png; draw(run) raises ValueError where a run has nothing to draw."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="what --benchmark-json wrote, or bench/record.py made of it")
    parser.add_argument("picture", type=Path, help="the PNG file to write")
    options = parser.parse_args(arguments)
    try:
        save_png(draw(load(options.run)), options.picture)
    except (OSError, ValueError, InputError) as error:
        print(f"agmh-fast: {options.run}: {error}", file=sys.stderr)
        return 2
    return 0
