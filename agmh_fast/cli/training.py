"""`agmh-fast demo` and `agmh-fast train`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agmh_fast.cli.command import PROGRAM, Command, add_device, add_json, print_json

if TYPE_CHECKING:
    from agmh_fast.train import Plan
    from agmh_fast.train.ranks import Ranks

_TRAIN_OUTPUT = "train-out"


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo-out", help="folder for the results (default: %(default)s)")
    parser.add_argument("--bits", type=int, default=24, help="code length, 1..4096 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of words, model and training (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few small images, two iterations: does it all run?")
    parser.add_argument("--resume", action="store_true", help="continue a demo that was stopped; same other options")
    add_device(parser)
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

    parser.add_argument("--config", metavar="file", help=".toml, .yaml or .json file of settings; options go before it")
    kinds = typing.get_type_hints(TrainConfig)
    for setting in dataclasses.fields(TrainConfig):
        name, kind, text = setting.name, kinds[setting.name], setting.metadata["help"]
        option: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{text} ({_default(name)})"}
        if kind is bool:
            option |= {"action": argparse.BooleanOptionalAction, "help": text}
        elif name == "bits":
            option |= {"metavar": "int,int", "help": f"code lengths, 1..4096, a run each ({_default(name)})"}
        elif kind in (int, float):
            option |= {"type": kind, "metavar": kind.__name__}
        else:
            option |= {"type": str if kind is str else _text_or_none, "metavar": "str"}
        parser.add_argument(f"--{name.replace('_', '-')}", **option)
    add_json(parser)


def _default(name: str) -> str:
    """The default of a setting and, where they differ, the published ones of datasets, for the help."""
    from agmh_fast.train import PUBLISHED, TrainConfig

    default = getattr(TrainConfig(output=_TRAIN_OUTPUT), name)
    others: dict[str, list[str]] = {}
    for dataset, values in PUBLISHED.items():
        if values.get(name, default) != default:
            others.setdefault(str(values[name]), []).append(dataset)
    shown = [f"default: {str(default).lower()}", *(f"{value} for {', '.join(sets)}" for value, sets in others.items())]
    return "; ".join(shown)


def _text_or_none(text: str) -> str | None:
    return None if text == "none" else text


def _train(args: argparse.Namespace) -> None:
    from agmh_fast import train
    from agmh_fast.train.ranks import started

    given = {name: value for name, value in vars(args).items() if name not in ("command", "json", "config")}
    plan = train.plan(given, args.config, output=_TRAIN_OUTPUT)
    with started(plan.config.device, plan.config.rank_seconds) as ranks:
        results = _train_plan(plan, ranks)
    if not ranks.writes:
        return
    if args.json:
        print_json(results[0] if len(results) == 1 else {"output": str(plan.folder), "runs": results})
        return
    for result in results:
        _print_result(result)


def _train_plan(plan: Plan, ranks: Ranks) -> list[dict[str, Any]]:
    """Every run of the plan, and what its result.json says."""
    from agmh_fast import train

    def tell(line: str) -> None:
        if ranks.writes:
            print(line, file=sys.stderr)

    # Before what may take long.
    ranks.first(plan.check)
    # Alone at first: it may write a cache that the others then find.
    data = ranks.first_then_all(lambda: train.load_data(plan.config))
    for split, fingerprint in data.fingerprints.items():
        tell(f"{data.name}, {split}: {len(getattr(data, split))} images, SHA-256 {fingerprint}")
    if len(plan.lengths) > 1 and plan.config.cache is None and plan.config.dataset != "fonts":
        tell("each length decodes the images anew: --cache keeps them, with --cache-whole every pixel")
    ranks.first(plan.claim)
    results = []
    try:
        for config in ranks.first(plan.runs):
            if len(plan.lengths) > 1:
                tell(f"{config.bits} bits, in {config.output}")
            results.append({**train.fit(config, data).as_dict(), "output": config.output})
    except KeyboardInterrupt as stop:
        again = shlex.join([PROGRAM, "train", "--resume", "--output", str(plan.folder)])
        raise KeyboardInterrupt(f"interrupted; continue with: {again}") from stop
    return results


def _print_result(result: dict[str, Any]) -> None:
    chosen = {
        "validation": f"selected by validation (validation mAP {result.get('best_validation_map', 0):.4f})",
        "test": "selected by the test queries",
        "last": "the last, without a selection",
    }
    print(
        f"{result['bits']} bits: mAP {result['map']:.4f} at the end, {result['best_map']:.4f} after iteration "
        f"{result['best_iteration']}, {chosen[result['selected_by']]}; {result['seconds']:.0f} s; "
        f"models in {result['output']}"
    )


DEMO = Command(
    "learn codes on pictures of words, index and search them, write a report",
    "agmh-fast demo --output demo-out",
    _demo_options,
    _demo,
)
TRAIN = Command(
    "train a model and the codes of a database, for one code length or several",
    "agmh-fast train --dataset fonts --bits 12,24 --num-descriptors 4 --descriptor-dim 64 --lr 0.05 "
    "--max-iter 2 --max-epoch 1 --output runs/fonts",
    _train_options,
    _train,
)
