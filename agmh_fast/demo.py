"""`agmh-fast demo`: learn codes that tell typefaces apart, index the database, search it with unseen words, and report.

Every number in the report is measured in the run that writes it. The training has a fixed number of steps, so that
on one machine the same seed gives the same codes, however long it takes.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agmh_fast import metrics, train, viz
from agmh_fast._version import __version__
from agmh_fast.data import RetrievalData, fonts
from agmh_fast.files import atomic_write, output_folder
from agmh_fast.machine import device_name
from agmh_fast.metrics.result import TIE_RULES
from agmh_fast.ops.codes import pack_codes
from agmh_fast.search import HammingIndex, SearchResult
from agmh_fast.train import TrainConfig, TrainResult, checkpoint, encode_set, scalars
from agmh_fast.train.models import build_model
from agmh_fast.train.progress import Progress

SUMMARY, INDEX, REPORT, TRAINING = "summary.json", "index.safetensors", "report.html", "training"
NEIGHBOURS, GALLERY_QUERIES, ATTENTION_QUERIES = 8, 7, 4
_TIMED_SEARCHES = 20


@dataclass(frozen=True)
class Finding:
    """What a demo has made, for the report."""

    data: RetrievalData
    result: TrainResult
    neighbours: SearchResult
    summary: dict[str, Any]


def run(
    output: str | os.PathLike[str] = "demo-out",
    bits: int = 24,
    seed: int = 0,
    quick: bool = False,
    resume: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the demo into the folder `output` and return its summary, which summary.json holds too.

    bits: code length, 1..4096. seed: of the words, the model and the training. quick: a few small images and two
    iterations, to see that everything works; its mAP means nothing. resume: continue a demo that was stopped.
    device: None takes CUDA where there is one. progress: see `agmh_fast.train.fit`. Raises InputError for bad
    settings and an unwritable folder.
    """
    begun = time.monotonic()
    config = settings(output, bits, seed, quick, resume, device)
    folder = output_folder(output)
    data = make_data(seed, quick)
    if not resume:
        _clear(folder)
    untrained = build_model(config, len(data.mean)).to(config.torch_device)
    map_untrained = _score(encode_set(untrained, data.query), encode_set(untrained, data.database), data, bits).map
    result = train.fit(config, data, progress=progress)

    query_codes, database_codes = encode_set(result.model, data.query).cpu(), pack_codes(result.state.codes).cpu()
    index = HammingIndex(bits)
    index.add(database_codes)
    index.save(folder / INDEX)
    neighbours, milliseconds = _timed_search(index, query_codes)
    scores = {ties: _score(query_codes, database_codes, data, bits, ties) for ties in TIE_RULES}
    encoded = _score(query_codes, encode_set(result.model, data.database).cpu(), data, bits)
    summary = {
        "bits": bits,
        "map_untrained": map_untrained,
        "map": scores["stable"].map,
        "seconds_train": result.seconds,
        "num_database": len(data.database),
        "num_queries": len(data.query),
        "search_ms_per_query": milliseconds,
        "map_by_ties": {ties: score.map for ties, score in scores.items()},
        "map_database_encoded": encoded.map,
        "precision_at_10": scores["stable"].precision_at[10],
        "definition": scores["stable"].definition,
        "seed": seed,
        "quick": quick,
        "num_classes": data.num_classes,
        "steps": result.history[-1]["step"],
        "device": device_name(config.torch_device),
        "threads": torch.get_num_threads(),
        "versions": {
            "agmh_fast": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "files": {"model": f"{TRAINING}/final.safetensors", "index": INDEX, "report": REPORT},
    }
    summary["files"] |= _write_report(folder, Finding(data, result, neighbours, summary))
    summary["seconds_total"] = time.monotonic() - begun
    with atomic_write(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def settings(
    output: str | os.PathLike[str], bits: int, seed: int, quick: bool, resume: bool, device: str | None
) -> TrainConfig:
    """The training of the demo: from scratch, sized for two CPU cores."""
    config = TrainConfig(
        dataset="fonts",
        bits=bits,
        backbone="small",
        num_descriptors=4,
        descriptor_dim=64,
        memory_size=32,
        max_iter=60,
        max_epoch=1,
        num_samples=840,
        batch_size=32,
        lr=0.05,
        schedule="cosine",
        gamma=50,
        seed=seed,
        device=device,
        output=os.path.join(output, TRAINING),
        resume=resume,
        eval_every=10,
        select="last",
        checkpoint_seconds=10,
    )
    return config.replace(descriptor_dim=16, memory_size=8, max_iter=2, eval_every=1) if quick else config


def make_data(seed: int, quick: bool = False) -> RetrievalData:
    """The demo's words: 80 a face in the database and 25 others a face as queries; a handful of small ones if quick."""
    return fonts(seed, size=32, words_per_class=4, queries_per_class=2) if quick else fonts(seed)


def _clear(folder: Path) -> None:
    """Remove an earlier demo's run and results, so that nothing of them can be taken for this one's."""
    training = folder / TRAINING
    learned = [*training.glob("*.safetensors"), *(training / scalars.EVENTS).glob("events.out.tfevents.*")]
    for path in (training / checkpoint.FILE, *learned, folder / SUMMARY, folder / INDEX, folder / REPORT):
        path.unlink(missing_ok=True)


def _score(
    query: Tensor, database: Tensor, data: RetrievalData, bits: int, ties: str = "stable"
) -> metrics.RetrievalMetrics:
    return metrics.retrieval(query, database, data.query.labels, data.database.labels, bits=bits, ties=ties)


def _timed_search(index: HammingIndex, queries: Tensor) -> tuple[SearchResult, float]:
    """The nearest items of all queries, and the median milliseconds a query of searching them in one call."""
    times = []
    for _ in range(_TIMED_SEARCHES):
        begun = time.perf_counter()
        found = index.search(queries, NEIGHBOURS)
        times.append(time.perf_counter() - begun)
    return found, statistics.median(times) / len(queries) * 1000


def _write_report(folder: Path, finding: Finding) -> dict[str, str]:
    """Write the PNGs and the report; the files' names by picture."""
    figures = {
        "losses": viz.loss_curves(finding.result.history),
        "map": viz.map_curve([{"seconds": 0.0, "map": finding.summary["map_untrained"]}, *finding.result.history]),
        "gallery": _gallery(finding),
        "attention": _attention(finding),
    }
    png = {name: viz.png_bytes(figure) for name, figure in figures.items()}
    for name, data in png.items():
        with atomic_write(folder / f"{name}.png") as temporary:
            temporary.write_bytes(data)
    summary = finding.summary
    viz.write_report(
        folder / REPORT,
        "Telling typefaces apart by binary codes",
        _measured(summary),
        _sections(finding, png),
        lead=(
            f"A network learned, from scratch in {summary['seconds_train']:.0f} seconds, to turn the picture of a word "
            f"into {summary['bits']} bits, so that words in the same of {summary['num_classes']} typefaces lie close "
            "in Hamming distance. The queries are words that it never saw."
        ),
        highlights={
            "mAP, unseen words": round(summary["map"], 3),
            "mAP, untrained": round(summary["map_untrained"], 3),
            "training, s": round(summary["seconds_train"]),
            "search, ms a query": round(summary["search_ms_per_query"], 4),
        },
    )
    return {name: f"{name}.png" for name in png}


def _measured(summary: dict[str, Any]) -> dict[str, object]:
    """The table of the report."""
    return {
        "bits of a code": summary["bits"],
        "database items": summary["num_database"],
        "queries": summary["num_queries"],
        "mAP of unseen words": summary["map"],
        **{f"mAP, {ties} order of ties": score for ties, score in summary["map_by_ties"].items() if ties != "stable"},
        "mAP where the database is encoded too": summary["map_database_encoded"],
        "mAP of the untrained network": summary["map_untrained"],
        "precision of the first 10": summary["precision_at_10"],
        "training, seconds": summary["seconds_train"],
        "steps of training": summary["steps"],
        f"search for {NEIGHBOURS} items, ms a query": summary["search_ms_per_query"],
        "seed": summary["seed"],
        "device": summary["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
        "definition": summary["definition"],
    }


_LEARNING = """
Each outer iteration trains the network against the database's codes, then improves those codes bit by bit. As in the
published protocol the database's codes are the learned ones, while queries are encoded by the network. The untrained
network, which has no learned codes yet, encodes both.
"""
_SEARCHING = """
{queries} queries, taken at even steps through the typefaces, and the {neighbours} nearest of {items:,} items. Above
each is its distance in bits; ties are in the order of the database.
"""
_LOOKING = """
Where each descriptor looks: the map that the attention dispersion loss pushes apart, computed for these pictures only.
No attention is computed to encode an image.
"""


def _sections(finding: Finding, png: dict[str, bytes]) -> list[viz.Section]:
    """The report's text and pictures."""
    score, items = finding.summary["map"], finding.summary["num_database"]
    curves = [
        viz.Picture(png["losses"], "Pairwise, quantization and attention dispersion loss over training time"),
        viz.Picture(png["map"], f"mAP of the queries over training time, at the end {score:.3f}"),
    ]
    gallery = viz.Picture(png["gallery"], "Queries, each beside its nearest items with a tick or a cross", wide=True)
    maps = viz.Picture(png["attention"], "Queries, each beside the attention map of every descriptor", wide=True)
    searching = _SEARCHING.format(queries=GALLERY_QUERIES, neighbours=NEIGHBOURS, items=items)
    return [
        viz.Section("Learning", _LEARNING, curves),
        viz.Section("Searching", searching, [gallery]),
        viz.Section("Looking", _LOOKING, [maps]),
    ]


def _spread(data: RetrievalData, number: int) -> Tensor:
    """Positions of queries whose classes are spread evenly, whatever was found for them."""
    number = min(number, data.num_classes)
    chosen = []
    for place, name in enumerate(torch.arange(number) * data.num_classes // number):
        members = (data.query.labels == name).nonzero()[:, 0]
        chosen.append(members[place % len(members)])
    return torch.stack(chosen)


def _gallery(finding: Finding) -> Any:
    data, names = finding.data, finding.data.class_names
    queries = _spread(data, GALLERY_QUERIES)
    found, distances = finding.neighbours.ids[queries], finding.neighbours.distances[queries]
    labels, found_labels = data.query.labels[queries], data.database.labels[found]
    pictures = data.pictures(data.database.load(found.flatten(), None))
    return viz.retrieval_gallery(
        data.pictures(data.query.load(queries, None)),
        [names[label] for label in labels.tolist()],
        pictures.reshape(*found.shape, *pictures.shape[1:]),
        [[names[label] for label in row] for row in found_labels.tolist()],
        distances,
        found_labels == labels[:, None],
    )


def _attention(finding: Finding) -> Any:
    data, model = finding.data, finding.result.model
    queries = _spread(data, ATTENTION_QUERIES)
    images = data.query.load(queries, None)
    maps = model.attention_maps(images.to(model.hash_weight.device)).cpu()
    return viz.attention_gallery(
        data.pictures(images), maps, [data.class_names[label] for label in data.query.labels[queries].tolist()]
    )
