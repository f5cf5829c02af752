"""The command line, `agmh-fast …`.

Exit codes: 0; 2 for a mistake that the user can mend, told in one line on stderr; 130 after Ctrl-C. Modules that
take long to import are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from agmh_fast._version import __version__
from agmh_fast.cli import bench, codes, datasets, evaluation, images, info, training
from agmh_fast.cli.command import PROGRAM, Command
from agmh_fast.errors import InputError

COMMANDS: dict[str, Command] = {
    "demo": training.DEMO,
    "data": datasets.DATA,
    "train": training.TRAIN,
    "encode": images.ENCODE,
    "index": codes.INDEX,
    "search": codes.SEARCH,
    "evaluate": evaluation.EVALUATE,
    "visualize": images.VISUALIZE,
    "bench": bench.BENCH,
    "info": info.INFO,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (None: this process's own) and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parse(argv)
        COMMANDS[args.command].run(args)
        sys.stdout.flush()
    except InputError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "interrupted", 130)
    except BrokenPipeError:
        # The reader has left (`| head`); Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(_complain(f"{message} (see {self.prog} --help)", 2))


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    args, unknown = _parser(argv).parse_known_args(argv)
    if unknown:
        # Told by its parser they would be no arguments of the program, whose help knows none of a command's.
        raise InputError(f"unrecognized arguments: {shlex.join(unknown)} (see {PROGRAM} {args.command} --help)")
    return args


def _complain(message: str, code: int) -> int:
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the command that is asked for gets its options, as they may need imports."""
    parser = _Parser(prog=PROGRAM, description="AGMH fine-grained hashing and exact Hamming search.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    asked = next((word for word in argv if word in COMMANDS), None)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == asked:
            command.add_options(subparser)
    return parser
