"""`agmh-fast encode` and `visualize`, and the search for images: from image files to codes and to pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agmh_fast.cli.command import Command, add_device, add_json, print_json
from agmh_fast.errors import require

if TYPE_CHECKING:
    from agmh_fast.data import ImageFiles, RetrievalData
    from agmh_fast.search import HammingIndex
    from agmh_fast.train.encoded import Encoded

_SHOWN = 4


def add_model(parser: argparse.ArgumentParser) -> None:
    """Give a command the option --model."""
    parser.add_argument("--model", default="best", help="best, as it was selected, or final (default: %(default)s)")


def _encode_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="output folder of `agmh-fast train`, of one code length")
    parser.add_argument("images", help="folder of images at any depth, or a list file of one path a line")
    parser.add_argument("--output", required=True, help="folder for codes.npy, paths.txt and encoded.json")
    add_model(parser)
    parser.add_argument("--batch-size", type=int, default=256, help="images encoded at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: %(default)s)")
    add_device(parser)
    parser.add_argument(
        "--precision",
        default="fp32",
        help="fp32, bf16 (fast on GPUs, and CPUs with AMX or AVX-512 BF16) or fp16 (on GPUs) (default: %(default)s)",
    )
    parser.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be read")
    add_json(parser)


def _encode(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from agmh_fast.data import unlabelled
    from agmh_fast.train.encoded import Encoder, encode_files

    encoder = Encoder.load(args.run, args.model, args.device, args.precision)
    images = unlabelled(args.images, skip_broken=args.skip_broken)
    with tqdm(total=len(images), unit="image", desc="encoding", dynamic_ncols=True, disable=None) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        try:
            encode_files(encoder, images, args.output, args.batch_size, args.workers, advance)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt("interrupted; the same command goes on from here") from stop
    if args.json:
        print_json({"images": len(images), "bits": encoder.bits, "output": args.output})
    else:
        print(f"{len(images)} codes of {encoder.bits} bits in {args.output}")


def search_images(args: argparse.Namespace, index: HammingIndex) -> None:
    """The nearest images of an index that was made of encoded ones, to each image file in `args.queries`."""
    from agmh_fast.data import unlabelled
    from agmh_fast.train import encode_set
    from agmh_fast.train.encoded import Encoded, Encoder

    stored = index_paths(args.index)
    require(stored.is_file(), f"index: {args.index!r} was not made of encoded images: give a .npy file of codes")
    items = Encoded.read(stored)
    encoder = Encoder.load(args.run or items.run, args.model or items.which, args.device, items.precision)
    fits = encoder.bits == index.bits
    require(fits, f"run: the index has codes of {index.bits} bits, the model gives {encoder.bits} ({encoder.run!r})")
    items.require_same_model(encoder)
    known = len(index) == 0 or int(index.ids[-1]) < len(items.paths)
    require(known, f"index: {args.index!r} has items that {str(stored)!r} does not name: write it anew")
    queries = unlabelled(args.queries)
    codes = encode_set(encoder.model, queries).cpu().numpy()
    found = index.search(codes, args.k, max_distance=args.max_distance)
    rows: list[dict[str, Any]] = []
    for path, distances, ids in zip(queries.paths, found.distances, found.ids, strict=True):
        pairs = [(int(item), int(distance)) for item, distance in zip(ids, distances, strict=True) if item >= 0]
        near = [{"id": item, "path": items.paths[item], "distance": distance} for item, distance in pairs]
        rows.append({"query": path, "found": near})
    if args.sheet is not None:
        _write_sheet(args.sheet, queries, items, rows)
    if args.json:
        print_json({"k": args.k, "bits": index.bits, "items": len(index), "images": items.images, "results": rows})
        return
    for row in rows:
        print(f"{row['query']}:" if row["found"] else f"{row['query']}: nothing")
        for rank, item in enumerate(row["found"], 1):
            print(f"{rank:>5}{item['distance']:>6} bits  {item['path']}")


def index_paths(index: str) -> Path:
    """The file beside an index that says which images its codes are of."""
    return Path(f"{index}.images.json")


def _write_sheet(path: str, queries: ImageFiles, items: Encoded, rows: list[dict[str, Any]]) -> None:
    """A contact sheet: each query beside the images found."""
    import numpy as np
    import torch

    from agmh_fast import viz
    from agmh_fast.data import ImageFiles

    columns = max(1, max(len(row["found"]) for row in rows))
    database = ImageFiles(Path(items.images), items.paths, torch.zeros(len(items.paths), dtype=torch.int64))
    shown = _pictures(queries, range(len(queries)))
    neighbours = np.full((len(rows), columns, *shown.shape[1:]), 255, np.uint8)
    distances = np.full((len(rows), columns), -1)
    names = [[""] * columns for _ in rows]
    for number, row in enumerate(rows):
        found = row["found"]
        if found:
            neighbours[number, : len(found)] = _pictures(database, [item["id"] for item in found])
        distances[number, : len(found)] = [item["distance"] for item in found]
        names[number][: len(found)] = [Path(item["path"]).name for item in found]
    figure = viz.retrieval_gallery(shown, [Path(name).name for name in queries.paths], neighbours, names, distances)
    viz.save_png(figure, path)


def _pictures(images: ImageFiles, items: Any) -> Any:
    """Images in the deterministic view as uint8 (n, size, size, 3)."""
    import torch

    return _as_data(images).pictures(images.load(torch.tensor(list(items)), None))


def _as_data(images: ImageFiles) -> RetrievalData:
    from agmh_fast.data import RetrievalData
    from agmh_fast.data.images import MEAN, STD

    return RetrievalData("images", ("",), images, images, MEAN, STD)


def _visualize_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="output folder of `agmh-fast train`, of one code length")
    parser.add_argument("images", nargs="*", help="image files (default: queries of the run's dataset, and its codes)")
    parser.add_argument("--output", required=True, help="folder for attention.png and, without images, codes.png")
    parser.add_argument("--root", help="the dataset's folder (default: where it was)")
    parser.add_argument("--projection", help="of the codes: pca, or tsne, which needs scikit-learn (default: pca)")
    add_model(parser)
    add_device(parser)
    add_json(parser)


def _visualize(args: argparse.Namespace) -> None:
    from agmh_fast import viz
    from agmh_fast.files import output_folder
    from agmh_fast.train.encoded import Encoder
    from agmh_fast.viz.codes import check_projection

    require(not (args.images and args.projection), "projection: goes with the codes of a run, not with images")
    if args.projection:
        check_projection(args.projection)
    folder = output_folder(args.output)
    if args.images:
        from agmh_fast.data import unlabelled

        images = unlabelled(args.images)
        model, data, items = Encoder.load(args.run, args.model, args.device).model, _as_data(images), range(len(images))
        figures = {"attention": _attention(model, data, items, [Path(path).name for path in images.paths])}
    else:
        figures = _of_dataset(args)
    written = {name: str(folder / f"{name}.png") for name in figures}
    for name, figure in figures.items():
        viz.save_png(figure, written[name])
    if args.json:
        print_json(written)
    else:
        print("\n".join(written.values()))


def _of_dataset(args: argparse.Namespace) -> dict[str, Any]:
    """Attention for the first query of some classes, and the learned codes of the database."""
    from agmh_fast import train, unpack_codes, viz
    from agmh_fast.train.runs import data_of, first_labels

    data, model = data_of(args.run, args.model, args.root), train.load_run(args.run, args.model, args.device)
    labels = first_labels(data.query.labels)
    items = [int((labels == label).nonzero()[0]) for label in labels.unique()[:_SHOWN]]
    codes = unpack_codes(train.load_codes(args.run, args.model), model.bits)
    names = [data.class_names[label] for label in labels[items].tolist()]
    return {
        "attention": _attention(model, data, items, names),
        "codes": viz.code_scatter(
            codes, first_labels(data.database.labels), data.class_names, args.projection or "pca"
        ),
    }


def _attention(model: Any, data: RetrievalData, items: Any, names: list[str]) -> Any:
    import torch

    from agmh_fast import viz

    images = data.query.load(torch.tensor(list(items)), None)
    return viz.attention_gallery(
        data.pictures(images), model.attention_maps(images.to(model.hash_weight.device)).cpu(), names
    )


ENCODE = Command(
    "encode a folder or a list of images by a trained model",
    "agmh-fast encode runs/cub/48bits photos --output encoded",
    _encode_options,
    _encode,
)
VISUALIZE = Command(
    "draw where each descriptor looks, and a run's codes by their principal components or t-SNE",
    "agmh-fast visualize runs/cub/48bits --output pictures",
    _visualize_options,
    _visualize,
)
