"""`agmh-fast data check`: is a dataset whole, and which split is it?"""

from __future__ import annotations

import argparse
from typing import Any

from agmh_fast.cli.command import Command, add_json, print_json
from agmh_fast.errors import InputError

# Of each kind of fault, in the table; JSON has all of them.
_SHOWN = 20


def _options(parser: argparse.ArgumentParser) -> None:
    from agmh_fast.data import DATASETS

    tasks = parser.add_subparsers(dest="task", required=True, metavar="task")
    text = "count images and classes, read every image, tell the splits' fingerprints"
    check = tasks.add_parser("check", help=text, description=text)
    names = sorted(name for name in DATASETS if name != "fonts")
    check.add_argument("--dataset", required=True, metavar="name", help=f"one of {', '.join(names)}")
    check.add_argument("--root", required=True, help="the dataset's folder, or the one its archive was unpacked in")
    add_json(check)


def _run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from agmh_fast import data
    from agmh_fast.data.check import check

    loaded = data.load(args.dataset, root=args.root)
    total = len(loaded.database) + len(loaded.query)
    with tqdm(total=total, unit="image", desc="reading", dynamic_ncols=True, disable=None) as bar:
        report = check(loaded, bar.update)
    if args.json:
        print_json(report)
    else:
        _print(report)
    faults = sum(len(split["missing"]) + len(split["broken"]) for split in report["splits"].values())
    if faults:
        raise InputError(f"root: {faults} of {total} images are missing or broken: mend them, or use skip_broken")


def _print(report: dict[str, Any]) -> None:
    official = report["official"]

    def beside(name: str) -> str:
        return f" (officially {official[name]})" if official is not None else ""

    print(f"{report['dataset']} in {report['folder']}")
    print(f"{report['classes']} classes{beside('classes')}")
    for name, split in report["splits"].items():
        sizes = f"{split['classes']} classes of {split['smallest_class']} to {split['largest_class']} images"
        print(f"{name}: {split['images']} images{beside(name)}, {sizes}")
        print(f"  SHA-256 {split['fingerprint']}")
        faults = [("missing", path, "") for path in split["missing"]]
        faults += [("broken", fault["path"], f": {fault['reason']}") for fault in split["broken"]]
        for kind, path, reason in faults[:_SHOWN]:
            print(f"  {kind} {path}{reason}")
        if len(faults) > _SHOWN:
            print(f"  and {len(faults) - _SHOWN} more, all of them in --json")


DATA = Command(
    "check a dataset's files",
    "agmh-fast data check --dataset cub --root CUB_200_2011",
    _options,
    _run,
)
