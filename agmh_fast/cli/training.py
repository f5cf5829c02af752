"""`agmh-fast demo` and `agmh-fast train`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agmh_fast.cli.command import PROGRAM, Command, add_json, print_json

if TYPE_CHECKING:
    from agmh_fast.train import TrainConfig

_TRAIN_OUTPUT = "train-out"


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo-out", help="folder for the results (default: %(default)s)")
    parser.add_argument("--bits", type=int, default=24, help="code length, 1..4096 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of words, model and training (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few small images, two iterations: does it all run?")
    parser.add_argument("--resume", action="store_true", help="continue a demo that was stopped; same other options")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    add_json(parser)


def _demo(args: argparse.Namespace) -> None:
    from agmh_fast import demo

    try:
        summary = demo.run(args.output, args.bits, args.seed, args.quick, args.resume, args.device)
    except KeyboardInterrupt as stop:
        again = [PROGRAM, "demo", "--output", args.output, "--bits", str(args.bits), "--seed", str(args.seed)]
        again += ["--quick"] if args.quick else []
        raise _interrupted(Path(args.output, demo.TRAINING), [*again, "--resume"]) from stop
    if args.json:
        print_json(summary)
        return
    print(
        f"mAP {summary['map']:.3f} at {summary['bits']} bits (untrained {summary['map_untrained']:.3f}), "
        f"{summary['num_queries']} unseen words against {summary['num_database']}; "
        f"training {summary['seconds_train']:.0f} s, search {summary['search_ms_per_query']:.4f} ms a query"
    )
    print(f"report: {Path(args.output, demo.REPORT)}")


def _interrupted(folder: Path, again: list[str]) -> KeyboardInterrupt:
    """Ctrl-C with a line that says how to go on, where there is a checkpoint to go on from."""
    from agmh_fast.train import checkpoint

    if not (folder / checkpoint.FILE).is_file():
        return KeyboardInterrupt("interrupted before the first checkpoint")
    return KeyboardInterrupt(f"interrupted; continue with: {shlex.join(again)}")


def _train_options(parser: argparse.ArgumentParser) -> None:
    from agmh_fast.train import TrainConfig

    kinds, defaults = typing.get_type_hints(TrainConfig), TrainConfig(output=_TRAIN_OUTPUT)
    for setting in dataclasses.fields(TrainConfig):
        name, kind, text = setting.name, kinds[setting.name], setting.metadata["help"]
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            kind = kind if kind in (int, float) else str
            text = f"{text} (default: {str(getattr(defaults, name)).lower()})"
            parser.add_argument(option, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__, help=text)
    add_json(parser)


def _train(args: argparse.Namespace) -> None:
    from agmh_fast import train

    config = _train_config({k: v for k, v in vars(args).items() if k not in ("command", "json")})
    data = train.load_data(config)
    for split, fingerprint in data.fingerprints.items():
        print(f"{data.name}, {split}: {len(getattr(data, split))} images, SHA-256 {fingerprint}", file=sys.stderr)
    try:
        result = train.fit(config, data)
    except KeyboardInterrupt as stop:
        again = [PROGRAM, "train", "--resume", "--output", str(config.output)]
        raise _interrupted(Path(str(config.output)), again) from stop
    if args.json:
        score = {"map": result.map, "best_map": result.best_map, "best_iteration": result.best_iteration}
        print_json({**score, "seconds": result.seconds, "output": config.output})
        return
    print(
        f"mAP {result.map:.4f}, best {result.best_map:.4f} after iteration {result.best_iteration}, "
        f"{result.seconds:.0f} s; models in {config.output}"
    )


def _train_config(given: dict[str, Any]) -> TrainConfig:
    """Settings from the options given, on top of the stored ones of a run that is resumed."""
    from agmh_fast.train import TrainConfig, checkpoint

    given = {"output": _TRAIN_OUTPUT} | given
    stored = checkpoint.stored_settings(Path(given["output"])) if given.get("resume") else {}
    return TrainConfig.from_mapping(stored | given)


DEMO = Command(
    "learn codes on pictures of words, index and search them, write a report",
    "agmh-fast demo --output demo-out",
    _demo_options,
    _demo,
)
TRAIN = Command(
    "train a model and the codes of a database",
    "agmh-fast train --dataset fonts --bits 24 --num-descriptors 4 --descriptor-dim 64 --lr 0.05 "
    "--max-iter 2 --max-epoch 1 --output runs/fonts",
    _train_options,
    _train,
)
