"""`agmh-fast evaluate`: scores of codes in .npy files, or of the runs of `agmh-fast train`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from agmh_fast.cli.command import Command, add_device, add_json, print_json, read_npy
from agmh_fast.cli.images import add_model
from agmh_fast.cli.reports import check_report, score_figures, write_scores
from agmh_fast.errors import require

if TYPE_CHECKING:
    from agmh_fast.metrics import RetrievalMetrics

Scores = dict[str, "RetrievalMetrics"]
_FILES = ("query_codes", "query_labels", "database_codes", "database_labels")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", help="output folders of `agmh-fast train`, of one code length or several")
    add_model(parser)
    parser.add_argument("--root", help="for runs: their dataset's folder (default: where it was)")
    parser.add_argument("--workers", type=int, default=0, help="for runs: processes that load images")
    add_device(parser, "for runs, where images are encoded: ")
    for side, letter in (("query", "Q"), ("database", "N")):
        codes, labels = f"({letter}, ceil(bits/8)) uint8", f"({letter},) integers or ({letter}, classes) multi-hot"
        parser.add_argument(f"--{side}-codes", metavar="file", help=f".npy file of packed codes, {codes}")
        parser.add_argument(f"--{side}-labels", metavar="file", help=f".npy file of labels, {labels}")
    parser.add_argument("--bits", type=int, help="for files: code length (default: 8 · bytes)")
    parser.add_argument("-k", type=int, help="score only the first k items (default: the whole database)")
    parser.add_argument("--figures", metavar="folder", help="draw precision over recall, and mAP over several lengths")
    parser.add_argument("--report", metavar="html", help="write a page of scores and pictures, one file")
    add_json(parser)


def _run(args: argparse.Namespace) -> None:
    check_report(args.report)
    files = {f"--{name.replace('_', '-')}": getattr(args, name) for name in _FILES}
    missing = [option for option, path in files.items() if path is None]
    if args.runs:
        require(len(missing) == len(files), "give runs, or files of codes and labels, not both")
        _evaluate_runs(args)
    else:
        require(not missing, f"give {', '.join(missing)}, or the output folders of runs")
        _evaluate_files(args)


def _evaluate_files(args: argparse.Namespace) -> None:
    from agmh_fast import metrics
    from agmh_fast.metrics.result import TIE_RULES

    codes = read_npy("--query-codes", args.query_codes), read_npy("--database-codes", args.database_codes)
    labels = read_npy("--query-labels", args.query_labels), read_npy("--database-labels", args.database_labels)
    scores = {ties: metrics.retrieval(*codes, *labels, args.bits, ties, args.k) for ties in TIE_RULES}
    _draw(args, {args.query_codes: scores}, {})
    if args.json:
        print_json(_plain(scores))
    else:
        _print_scores(scores)


def _evaluate_runs(args: argparse.Namespace) -> None:
    from agmh_fast.train.runs import evaluate_runs, run_folders

    folders = [folder for top in args.runs for folder in run_folders(top)]
    results = evaluate_runs(folders, args.model, args.root, args.k, args.workers, args.device)
    about = {
        result.folder: f"{result.which} model, after iteration {result.iteration}, selected by {result.selected_by}"
        for result in results
    }
    _draw(args, {result.folder: result.scores for result in results}, about)
    if args.json:
        told = [
            {
                "run": result.folder,
                "bits": result.bits,
                "model": result.which,
                "selected_by": result.selected_by,
                "iteration": result.iteration,
                "scores": _plain(result.scores),
            }
            for result in results
        ]
        print_json({"runs": told})
        return
    for result in results:
        print(f"{result.folder}: {result.bits} bits, {about[result.folder]}")
        _print_scores(result.scores)
        print()
    print(f"{'mAP':<13}" + "".join(f"{f'{result.bits} bits':>11}" for result in results))
    for ties in results[0].scores:
        print(f"{ties:<13}" + "".join(f"{result.scores[ties].map:11.4f}" for result in results))


def _plain(scores: Scores) -> dict[str, Any]:
    return {ties: score.as_dict() for ties, score in scores.items()}


def _print_scores(scores: Scores) -> None:
    first = scores["stable"]
    columns = ["mAP", *(f"P@{c}" for c in first.precision_at), *(f"R@{c}" for c in first.recall_at)]
    print("ties         " + "".join(f"{column:>9}" for column in columns))
    for ties, score in scores.items():
        values = [score.map, *score.precision_at.values(), *score.recall_at.values()]
        print(f"{ties:<13}" + "".join(f"{value:9.4f}" for value in values))
    print(f"precision within radius 2: {first.precision_radius2:.4f}")
    print(first.definition)


def _draw(args: argparse.Namespace, scored: dict[str, Scores], about: dict[str, str]) -> None:
    """The pictures and the page that were asked for."""
    if args.figures is not None:
        from agmh_fast import viz
        from agmh_fast.files import output_folder

        place = output_folder(args.figures)
        for name, figure in score_figures(scored).items():
            viz.save_png(figure, place / f"{name}.png")
    if args.report is not None:
        write_scores(args.report, scored, about)


EVALUATE = Command(
    "score runs, or packed codes and labels: mAP, precision and recall under every rule for ties",
    "agmh-fast evaluate runs/cub --report scores.html",
    _options,
    _run,
)
