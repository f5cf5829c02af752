"""`agmh-fast index` and `search`: on packed codes in .npy files, or on encoded images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from agmh_fast.cli.command import Command, add_json, print_json, read_npy
from agmh_fast.cli.images import index_paths, search_images
from agmh_fast.errors import InputError, require

if TYPE_CHECKING:
    from agmh_fast.train.encoded import Encoded


def _index_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("codes", help="folder that `agmh-fast encode` wrote, or .npy file of packed codes")
    parser.add_argument("--bits", type=int, help="code length, 1..4096; a .npy file, (N, ceil(bits/8)) uint8, needs it")
    parser.add_argument("--output", required=True, help="index file to write (safetensors)")
    add_json(parser)


def _index(args: argparse.Namespace) -> None:
    from agmh_fast.search import HammingIndex
    from agmh_fast.train.disk import write_text, writing

    encoded = _encoded(args.codes) if Path(args.codes).is_dir() else None
    bits = args.bits if encoded is None else encoded.bits
    require(bits is not None, f"bits: give --bits, as {args.codes!r} does not say how long its codes are")
    require(args.bits in (None, bits), f"bits is {args.bits}, but {args.codes!r} holds codes of {bits}")
    path = args.codes if encoded is None else str(Path(args.codes, "codes.npy"))
    codes = read_npy("codes", path, mmap=True)
    names = index_paths(args.output)
    with writing(names.parent):
        earlier = names.read_text(encoding="utf-8") if names.is_file() else None
        # Those of an earlier index of this name go first: they are not this one's.
        names.unlink(missing_ok=True)
        try:
            HammingIndex.save_codes(args.output, codes, bits)
        except InputError:
            if earlier is not None:
                write_text(names, earlier)
            raise
        if encoded is not None:
            write_text(names, encoded.to_json())
    if args.json:
        print_json({"items": len(codes), "bits": bits, "output": args.output})
    else:
        print(f"{len(codes)} codes of {bits} bits in {args.output}")


def _encoded(folder: str) -> Encoded:
    from agmh_fast.train.encoded import ABOUT, Encoded

    whole = Path(folder, ABOUT).is_file()
    require(whole, f"codes: {folder!r} holds no finished codes: run agmh-fast encode, again if it was interrupted")
    return Encoded.read(Path(folder, ABOUT))


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", help="index file that `agmh-fast index` wrote")
    parser.add_argument("queries", nargs="+", help="images, or one .npy file of packed codes, (Q, ceil(bits/8)) uint8")
    parser.add_argument("-k", type=int, default=10, help="items to find for each query (default: %(default)s)")
    parser.add_argument("--max-distance", type=int, help="leave out items farther away than so many bits")
    parser.add_argument("--run", help="for images: the run whose model encodes them (default: the index's own)")
    parser.add_argument("--model", help="for images: best or final (default: as the index's)")
    parser.add_argument(
        "--device",
        help="cpu, cuda or cuda:N (default: cpu for the index, for the model cuda where there is one)",
    )
    parser.add_argument("--sheet", metavar="png", help="for images: a picture of queries and what was found")
    add_json(parser)


def _search(args: argparse.Namespace) -> None:
    from agmh_fast.data import is_image
    from agmh_fast.search import HammingIndex

    index = HammingIndex.load(args.index, device=args.device or "cpu")
    images = [is_image(path) for path in args.queries]
    if all(images):
        search_images(args, index)
        return
    one = len(args.queries) == 1
    require(one, "queries: give images alone, or one .npy file of codes")
    for option in ("run", "model", "sheet"):
        require(getattr(args, option) is None, f"{option}: goes with images, not with codes")
    found = index.search(read_npy("queries", args.queries[0]), args.k, max_distance=args.max_distance)
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


INDEX = Command(
    "write a search index of packed codes",
    "agmh-fast index encoded --output db.safetensors",
    _index_options,
    _index,
)
SEARCH = Command(
    "find the nearest items of an index by Hamming distance, for codes or for images",
    "agmh-fast search db.safetensors photo.jpg -k 10 --sheet found.png",
    _search_options,
    _search,
)
