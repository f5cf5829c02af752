"""`agmh-fast index`, `search` and `evaluate`: on packed codes in .npy files."""

from __future__ import annotations

import argparse

from agmh_fast.cli.command import Command, add_json, print_json, read_npy


def _index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codes", help=".npy file of packed codes, (N, ceil(bits/8)) uint8 as numpy.packbits gives them")
    parser.add_argument("--bits", type=int, required=True, help="code length, 1..4096")
    parser.add_argument("--output", required=True, help="index file to write (safetensors)")
    add_json(parser)


def _index(args: argparse.Namespace) -> None:
    from agmh_fast.search import HammingIndex

    codes = read_npy("codes", args.codes, mmap=True)
    HammingIndex.save_codes(args.output, codes, args.bits)
    if args.json:
        print_json({"items": len(codes), "bits": args.bits, "output": args.output})
    else:
        print(f"{len(codes)} codes of {args.bits} bits in {args.output}")


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", help="index file that `agmh-fast index` wrote")
    parser.add_argument("queries", help=".npy file of packed codes, (Q, ceil(bits/8)) uint8")
    parser.add_argument("-k", type=int, default=10, help="items to find for each query (default: %(default)s)")
    parser.add_argument("--max-distance", type=int, help="leave out items farther away than so many bits")
    add_json(parser)


def _search(args: argparse.Namespace) -> None:
    from agmh_fast.search import HammingIndex

    index = HammingIndex.load(args.index)
    found = index.search(read_npy("queries", args.queries), args.k, max_distance=args.max_distance)
    rows = [
        {"query": number, "ids": ids[ids >= 0].tolist(), "distances": distances[ids >= 0].tolist()}
        for number, (distances, ids) in enumerate(zip(*found, strict=True))
    ]
    if args.json:
        print_json({"k": args.k, "bits": index.bits, "items": len(index), "results": rows})
        return
    for row in rows:
        pairs = zip(row["ids"], row["distances"], strict=True)
        print(f"query {row['query']}:", "  ".join(f"{item} ({distance} bits)" for item, distance in pairs) or "nothing")


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    for side, letter in (("query", "Q"), ("database", "N")):
        codes, labels = f"({letter}, ceil(bits/8)) uint8", f"({letter},) integers or ({letter}, classes) multi-hot"
        parser.add_argument(
            f"--{side}-codes", required=True, metavar="file", help=f".npy file of packed codes, {codes}"
        )
        parser.add_argument(f"--{side}-labels", required=True, metavar="file", help=f".npy file of labels, {labels}")
    parser.add_argument("--bits", type=int, help="code length (default: 8 · bytes)")
    parser.add_argument("-k", type=int, help="score only the first k items (default: the whole database)")
    add_json(parser)


def _evaluate(args: argparse.Namespace) -> None:
    from agmh_fast import metrics
    from agmh_fast.metrics.result import TIE_RULES

    codes = read_npy("--query-codes", args.query_codes), read_npy("--database-codes", args.database_codes)
    labels = read_npy("--query-labels", args.query_labels), read_npy("--database-labels", args.database_labels)
    scores = {ties: metrics.retrieval(*codes, *labels, args.bits, ties, args.k) for ties in TIE_RULES}
    if args.json:
        print_json({ties: score.as_dict() for ties, score in scores.items()})
        return
    first = scores["stable"]
    columns = ["mAP", *(f"P@{c}" for c in first.precision_at), *(f"R@{c}" for c in first.recall_at)]
    print("ties         " + "".join(f"{column:>9}" for column in columns))
    for ties, score in scores.items():
        values = [score.map, *score.precision_at.values(), *score.recall_at.values()]
        print(f"{ties:<13}" + "".join(f"{value:9.4f}" for value in values))
    print(f"precision within radius 2: {first.precision_radius2:.4f}")
    print(first.definition)


INDEX = Command(
    "write a search index of packed codes",
    "agmh-fast index codes.npy --bits 48 --output db.safetensors",
    _index_options,
    _index,
)
SEARCH = Command(
    "find the nearest codes of an index by Hamming distance",
    "agmh-fast search db.safetensors queries.npy -k 10 --json",
    _search_options,
    _search,
)
EVALUATE = Command(
    "score packed codes and labels: mAP, precision and recall under every rule for ties",
    "agmh-fast evaluate --query-codes q.npy --query-labels ql.npy --database-codes x.npy --database-labels xl.npy",
    _evaluate_options,
    _evaluate,
)
