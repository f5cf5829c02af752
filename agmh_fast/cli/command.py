"""What a subcommand of the command line is, and what several of them do."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from agmh_fast.errors import InputError

if TYPE_CHECKING:
    import numpy as np

PROGRAM = "agmh-fast"


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: its one-line summary, a working example, its options, and what it does."""

    summary: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def print_json(value: object) -> None:
    """Plain numbers, strings, lists and dicts, as a program reads them."""
    print(json.dumps(value, indent=2))


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give a command the option --json."""
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def add_device(parser: argparse.ArgumentParser, what: str = "") -> None:
    """Give a command the option --device; `what` says what is done there, if not all of it."""
    parser.add_argument("--device", help=f"{what}cpu, cuda or cuda:N (default: cuda where there is one)")


def read_npy(option: str, path: str, mmap: bool = False) -> np.ndarray:
    """A .npy file, nothing unpickled; InputError names the option."""
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{option}: cannot read {path!r} as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{option}: {path!r} is not a .npy file of one array")
    return array
