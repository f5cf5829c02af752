"""The command line, `agmh-fast …`.

Exit codes: 0; 2 for a mistake that the user can mend, told in one line on stderr; 130 after Ctrl-C. Modules that
take long to import are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agmh_fast._version import __version__
from agmh_fast.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from agmh_fast.train import TrainConfig

PROGRAM = "agmh-fast"


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: its one-line summary, a working example, its options, and what it does."""

    summary: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (None: this process's own) and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parser(argv).parse_args(argv)
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


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def _read_npy(option: str, path: str, mmap: bool = False) -> np.ndarray:
    """A .npy file, nothing unpickled; InputError names the option."""
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{option}: cannot read {path!r} as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{option}: {path!r} is not a .npy file of one array")
    return array


# demo


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo-out", help="folder for the results (default: %(default)s)")
    parser.add_argument("--bits", type=int, default=24, help="code length, 1..4096 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of words, model and training (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few small images, two iterations: does it all run?")
    parser.add_argument("--resume", action="store_true", help="continue a demo that was stopped; same other options")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    _add_json(parser)


def _demo(args: argparse.Namespace) -> None:
    from agmh_fast import demo

    try:
        summary = demo.run(args.output, args.bits, args.seed, args.quick, args.resume, args.device)
    except KeyboardInterrupt as stop:
        again = [PROGRAM, "demo", "--output", args.output, "--bits", str(args.bits), "--seed", str(args.seed)]
        again += ["--quick"] if args.quick else []
        raise _interrupted(Path(args.output, demo.TRAINING), [*again, "--resume"]) from stop
    if args.json:
        _print_json(summary)
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


# train

_TRAIN_OUTPUT = "train-out"


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
    _add_json(parser)


def _train(args: argparse.Namespace) -> None:
    from agmh_fast import train

    config = _train_config({k: v for k, v in vars(args).items() if k not in ("command", "json")})
    try:
        result = train.fit(config)
    except KeyboardInterrupt as stop:
        again = [PROGRAM, "train", "--resume", "--output", str(config.output)]
        raise _interrupted(Path(str(config.output)), again) from stop
    if args.json:
        score = {"map": result.map, "best_map": result.best_map, "best_iteration": result.best_iteration}
        _print_json({**score, "seconds": result.seconds, "output": config.output})
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


# index, search


def _index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codes", help=".npy file of packed codes, (N, ceil(bits/8)) uint8 as numpy.packbits gives them")
    parser.add_argument("--bits", type=int, required=True, help="code length, 1..4096")
    parser.add_argument("--output", required=True, help="index file to write (safetensors)")
    _add_json(parser)


def _index(args: argparse.Namespace) -> None:
    from agmh_fast.search import HammingIndex

    codes = _read_npy("codes", args.codes, mmap=True)
    HammingIndex.save_codes(args.output, codes, args.bits)
    if args.json:
        _print_json({"items": len(codes), "bits": args.bits, "output": args.output})
    else:
        print(f"{len(codes)} codes of {args.bits} bits in {args.output}")


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", help="index file that `agmh-fast index` wrote")
    parser.add_argument("queries", help=".npy file of packed codes, (Q, ceil(bits/8)) uint8")
    parser.add_argument("-k", type=int, default=10, help="items to find for each query (default: %(default)s)")
    parser.add_argument("--max-distance", type=int, help="leave out items farther away than so many bits")
    _add_json(parser)


def _search(args: argparse.Namespace) -> None:
    from agmh_fast.search import HammingIndex

    index = HammingIndex.load(args.index)
    found = index.search(_read_npy("queries", args.queries), args.k, max_distance=args.max_distance)
    rows = [
        {"query": number, "ids": ids[ids >= 0].tolist(), "distances": distances[ids >= 0].tolist()}
        for number, (distances, ids) in enumerate(zip(*found, strict=True))
    ]
    if args.json:
        _print_json({"k": args.k, "bits": index.bits, "items": len(index), "results": rows})
        return
    for row in rows:
        pairs = zip(row["ids"], row["distances"], strict=True)
        print(f"query {row['query']}:", "  ".join(f"{item} ({distance} bits)" for item, distance in pairs) or "nothing")


# evaluate


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    for side, letter in (("query", "Q"), ("database", "N")):
        codes, labels = f"({letter}, ceil(bits/8)) uint8", f"({letter},) integers or ({letter}, classes) multi-hot"
        parser.add_argument(
            f"--{side}-codes", required=True, metavar="file", help=f".npy file of packed codes, {codes}"
        )
        parser.add_argument(f"--{side}-labels", required=True, metavar="file", help=f".npy file of labels, {labels}")
    parser.add_argument("--bits", type=int, help="code length (default: 8 · bytes)")
    parser.add_argument("-k", type=int, help="score only the first k items (default: the whole database)")
    _add_json(parser)


def _evaluate(args: argparse.Namespace) -> None:
    from agmh_fast import metrics
    from agmh_fast.metrics.result import TIE_RULES

    codes = _read_npy("--query-codes", args.query_codes), _read_npy("--database-codes", args.database_codes)
    labels = _read_npy("--query-labels", args.query_labels), _read_npy("--database-labels", args.database_labels)
    scores = {ties: metrics.retrieval(*codes, *labels, args.bits, ties, args.k) for ties in TIE_RULES}
    if args.json:
        _print_json({ties: score.as_dict() for ties, score in scores.items()})
        return
    first = scores["stable"]
    columns = ["mAP", *(f"P@{c}" for c in first.precision_at), *(f"R@{c}" for c in first.recall_at)]
    print("ties         " + "".join(f"{column:>9}" for column in columns))
    for ties, score in scores.items():
        values = [score.map, *score.precision_at.values(), *score.recall_at.values()]
        print(f"{ties:<13}" + "".join(f"{value:9.4f}" for value in values))
    print(f"precision within radius 2: {first.precision_radius2:.4f}")
    print(first.definition)


# info


def _info(args: argparse.Namespace) -> None:
    facts = _facts()
    if args.json:
        _print_json(facts)
        return
    for title, entries in facts.items():
        print(title)
        for name, value in entries.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            print(f"  {name:<30}{shown if shown != '' else 'none'}")


def _facts() -> dict[str, dict[str, Any]]:
    """Versions, devices, compiled modules and implementations, as `info` shows them."""
    import torch

    from agmh_fast import functional
    from agmh_fast.ops import compiled

    versions = {"agmh-fast": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", "triton", "safetensors", "matplotlib", "tensorboard", "faiss-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    try:
        native = importlib.import_module("agmh_fast._engine")
        engine = {**native.build_info(), **native.cpu_info()}
    except ImportError as error:
        engine = {"missing": str(error)}
    count = torch.cuda.device_count()
    return {
        "versions": versions,
        "devices": {
            "cpu": f"{platform.machine()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
            "cuda": [torch.cuda.get_device_name(number) for number in range(count)],
        },
        "search engine (agmh_fast._engine)": engine,
        "torch ops (agmh_fast._C)": {"state": compiled.missing() or "loaded"},
        "implementations, fastest first": {name: list(op.implementations) for name, op in functional.OPS.items()},
        "auto picks on cpu": _picks(torch.device("cpu")),
        **({"auto picks on cuda": _picks(torch.device("cuda"))} if count else {}),
    }


def _picks(device: Any) -> dict[str, str]:
    """What `impl="auto"` takes for small tensors on the device, and why nothing faster."""
    import torch

    from agmh_fast import functional
    from agmh_fast.modules import StepwiseExternalAttention

    codes = torch.zeros(1, 1, dtype=torch.uint8, device=device)
    labels, positions = torch.arange(2, device=device), torch.arange(1, device=device)
    state = functional.HashingState(labels, 8)
    attention = StepwiseExternalAttention(2, 4, memory_size=4).to(device)
    features, embedding = torch.zeros(1, 8, 2, 2, device=device), torch.zeros(1, 8, device=device)
    on_features: tuple[Any, ...] = (features, attention.params, True, 0.1, 1e-5)
    arguments: dict[str, tuple[Any, ...]] = {
        "asymmetric_hashing_loss": (embedding, positions, state),
        "update_database_codes": (state, embedding, positions),
    }
    picks = {}
    for name in functional.OPS:
        fitting = (codes, codes, 8) if name.startswith("hamming") else arguments.get(name, on_features)
        picks[name] = str(functional.explain(name, *fitting)).removeprefix(f"{name}: ")
    return picks


COMMANDS = {
    "demo": Command(
        "learn codes on pictures of words, index and search them, write a report",
        "agmh-fast demo --output demo-out",
        _demo_options,
        _demo,
    ),
    "train": Command(
        "train a model and the codes of a database",
        "agmh-fast train --dataset fonts --bits 24 --num-descriptors 4 --descriptor-dim 64 --lr 0.05 "
        "--max-iter 2 --max-epoch 1 --output runs/fonts",
        _train_options,
        _train,
    ),
    "index": Command(
        "write a search index of packed codes",
        "agmh-fast index codes.npy --bits 48 --output db.safetensors",
        _index_options,
        _index,
    ),
    "search": Command(
        "find the nearest codes of an index by Hamming distance",
        "agmh-fast search db.safetensors queries.npy -k 10 --json",
        _search_options,
        _search,
    ),
    "evaluate": Command(
        "score packed codes and labels: mAP, precision and recall under every rule for ties",
        "agmh-fast evaluate --query-codes q.npy --query-labels ql.npy --database-codes x.npy --database-labels xl.npy",
        _evaluate_options,
        _evaluate,
    ),
    "info": Command(
        "versions, devices, compiled modules, and the implementations that are used",
        "agmh-fast info --json",
        _add_json,
        _info,
    ),
}
