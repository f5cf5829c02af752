"""README's tables of what was measured, made of the recorded runs between its two marks.

python bench/readme.py            # make readme: write them
python bench/readme.py --check    # exit status 1: they are not those of the recorded runs
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from report import machine, number

from agmh_fast import recorded
from agmh_fast.recorded import duration

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- measured: written by `make readme` -->\n", "<!-- /measured -->\n"

TRAINING = {
    "SIEA + ADL, forward and backward, B=32, D=6, C=512, 14×14": "test_attention_dispersion[functional-float32-both]",
    "the same through `agmh_fast.official`": "test_attention_dispersion[official-float32-both]",
    "discrete step, N=5 994, m=2000, 48 bits": "test_discrete_step[5994]",
    "discrete step, N=75 750, m=2000, 48 bits": "test_discrete_step[75750]",
    "hashing loss and backward, batch 32, 48 bits, N=75 750": "test_hashing_loss[both]",
}
AGAINST = {f"test_discrete_step[{count}]": "the published form, S given" for count in (5_994, 75_750)}
AGAINST["test_hashing_loss[both]"] = "dense S and F Bᵀ"
SIZES = (5_994, 75_750, 1_000_000)
PIPELINE = {
    "a step of training, batch 32, float32": ("test_training_step[32]", "ours, fp32"),
    "the same in bfloat16 (autocast)": ("test_training_step[32]", "ours, bf16"),
    "encoding, 8 images, float32": ("test_encoding[8]", "for_encoding, float32"),
    "the same in bfloat16": ("test_encoding[8]", "for_encoding, bfloat16"),
    "encoding, one image, float32": ("test_encoding[1]", "for_encoding, float32"),
    "loading an image from its file": ("test_loading[files]", "files, no workers"),
    "the same from the cache": ("test_loading[cache]", "cache, no workers"),
}
SEARCHES = [(64, 16, 100), (64, 256, 100), (64, 1000, 100), (64, 1000, 1000), (24, 1000, 100), (32, 1000, 100)]
SEARCHES += [(48, 1000, 100), (128, 256, 100), (256, 256, 100), (512, 256, 100), (1024, 256, 100)]
METRICS = {
    "mAP, 5 794 × 5 994, 48 bits": "test_mean_average_precision[cub-stable]",
    "mAP, 116 931 × 29 200, 48 bits": "test_mean_average_precision[vegfru-stable]",
}


def measured() -> str:
    """Everything between the marks. Raises KeyError naming a row that no recorded run has; but discrete steps, of which
    one is enough.
    """
    rows = recorded.rows(*recorded.names("cpu"))
    demo = json.loads((recorded.folder() / "cpu-demo.json").read_text())
    training, step, search = (
        rows[name] for name in (next(iter(TRAINING.values())), "test_training_step[32]", _topk(*SEARCHES[0]))
    )
    about = f"{_SEARCH.format(threads=search['threads'])} {machine(search['run'])}"
    picture = "[Picture](bench/results/cpu-hamming.png) by queries at once."
    missed = " ".join((_padded(rows), _slower(rows), _missed(rows), picture, on_gpus()))
    parts = [
        _HOW,
        f"{_TRAINING} {machine(training['run'])}",
        _training(rows, demo),
        f"{_STEPS} {machine(step['run'])}",
        _pipeline(rows),
        f"{_limited(rows['test_encoding[8]'])} [Picture](bench/results/cpu-training-step.png) of a step's parts.",
        about,
        _searches(rows),
        missed,
    ]
    return "\n\n".join(part if part.startswith("|") else _filled(part) for part in parts) + "\n"


_HOW = """
Medians; both sides in one run, after a check that they compute the same. The machines were not free of other work:
ratios vary by some tens of per cent from run to run, and the hashing loss, a fraction of a millisecond in all, by more.
"""
_TRAINING = """
**Training**, float32. SIEA is the attention, ADL its dispersion loss, S the matrix of similarities between sampled and
database items: [docs/math.md](docs/math.md).
"""
_STEPS = """
**From JPEG files to codes**: ResNet-50 at 224×224, 48 bits, N = 5 994, against the published step, forward pass and
loader.
"""
_SEARCH = """
**Exact search** of a million random codes by `HammingIndex`, {threads} threads, against the better of faiss-cpu's two
ways (`IndexBinaryFlat`, heap or counting, the better batch size). Of the loop: beside a loop that computes every
distance and keeps none.
"""


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 130, break_long_words=False, break_on_hyphens=False)


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines))


def _training(rows: Mapping[str, Any], demo: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for what, name in TRAINING.items():
        if name.startswith("test_discrete_step") and name not in rows:
            continue
        row = rows[name]
        against = AGAINST.get(name, "the published modules")
        lines.append((what, duration(row["median_s"]), f"{number(row['speedup'])}×", against))
    alone = [duration(rows[f"test_hashing_loss_does_not_grow[{count}]"]["median_s"]) for count in SIZES]
    lines.append(("the same alone, N=5 994, 75 750, 1 000 000", ", ".join(alone), "", "independent of N"))
    runs = sorted(demo, key=lambda run: run["seed"])
    scores = ", ".join(f"{run['map']:.3f}" for run in runs)
    before = [run["map_untrained"] for run in runs]
    took = ", ".join(f"{run['seconds_train']:.0f}" for run in runs)
    seeds = ", ".join(str(run["seed"]) for run in runs)
    made = f"{runs[0]['date']}, commit {runs[0]['commit'][:10]}"
    what = f"demo: {runs[0]['bits']} bits, {runs[0]['steps']} steps, seeds {seeds} (runs of its own, {made})"
    lines.append((what, f"{took} s", f"mAP {scores}", f"untrained {min(before):.2f} to {max(before):.2f}"))
    return _table(("what", "measured", "", "against"), lines)


def _pipeline(rows: Mapping[str, Any]) -> str:
    lines = []
    for what, (name, side) in PIPELINE.items():
        ours, published = (rows[name]["contestants"][each]["p50_s"] for each in (side, "published"))
        lines.append((what, duration(ours), f"{number(published / ours)}×"))
    return _table(("what", "measured", "faster than published"), lines)


def _limited(row: Mapping[str, Any]) -> str:
    """How near encoding is to what the processor computes."""
    rate = f"{row['gflop_per_s']:.0f} GFLOP/s, {row['of_limit']:.0%} of what one large product reaches in the same run"
    return f"Encoding 8 images in float32 computes at {rate}."


def _searches(rows: Mapping[str, Any]) -> str:
    threads = rows[_topk(*SEARCHES[0])]["threads"]

    def alone(row: Mapping[str, Any]) -> str:
        count = row["threads"]
        return "" if count == threads else f", {count} thread{'s' * (count > 1)}"

    lines = [
        (f"{queries} queries, {bits} bits, k = {k}", *_search(rows[_topk(bits, queries, k)]))
        for bits, queries, k in SEARCHES
    ]
    latency = rows["test_latency[numpy-8.0]"]
    lines.append((f"one query, 10 000 items, 64 bits, k = 10, from Python{alone(latency)}", *_search(latency)))
    lines.append(
        ("1000 queries, 10 million items, 16 bits, k = 10", *_search(rows["test_short_codes[10000000-1.0]"])[:2], "")
    )
    for what, name in METRICS.items():
        row = rows[name]
        took, times = f"{duration(row['seconds'])} in all", f"{number(row['speedup'])}× a loop of argsorts"
        lines.append((what + alone(row), took, times, ""))
    return _table(("search", "a query", "faster than faiss", "of the loop"), lines)


def _topk(bits: int, queries: int, k: int) -> str:
    return f"test_topk[{bits}-{queries}-{k}]"


def _search(row: Mapping[str, Any]) -> tuple[str, str, str]:
    times = f"{number(row['speedup'])}×" if "speedup" in row else ""
    return duration(recorded.seconds(dict(row))), times, f"{row['of_limit']:.0%}" if "of_limit" in row else ""


def _padded(rows: Mapping[str, Any]) -> str:
    """What faiss takes for codes of widths that it has no loop for, once they are padded; nothing if no run says it."""
    found = [
        f"{number(side['times_ours'])} times ours at {row['bits']} bits"
        for row in (rows[_topk(*search)] for search in SEARCHES)
        if (side := row["contestants"].get("faiss, padded with zeros"))
    ]
    told = "faiss has no loop for rows of 3 or 6 bytes: padded with zeros to 4 and 8 by the caller it takes"
    return f"{told} {' and '.join(found)}." if found else ""


def _slower(rows: Mapping[str, Any]) -> str:
    """Where another is faster, in a sentence; nothing where none is."""
    groups: dict[str, list[str]] = {}
    for row in rows.values():
        if row.get("speedup", 1) < 1:
            groups.setdefault(row["group"], []).append(f"{number(row['speedup'])}×")
    found = "; ".join(f"{group} ({', '.join(times)})" for group, times in groups.items())
    return f"Not faster than others: {found}." if found else ""


def _missed(rows: Mapping[str, Any]) -> str:
    judged = [row for row in rows.values() if "targets_met" in row]
    met = sum(row["targets_met"] for row in judged)
    return f"Of the {len(judged)} recorded rows with a target, {met} meet it; all of them are in `bench/results/`."


def on_gpus() -> str:
    names = [name for name in recorded.names() if recorded.load(name).get("gpu")]
    runs = ", ".join(f"{recorded.load(name)['gpu']} (bench/results/{name}.json)" for name in names)
    return f"Runs on GPUs: {runs}." if names else "No run on a GPU is recorded: every speed on one is not yet measured."


def written(text: str, made: Callable[[], str] = measured) -> str:
    """A page with what `made` makes between its marks; ValueError if it has not both."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page must have the lines {BEGIN.strip()} and {END.strip()} once each")
    before, rest = text.split(BEGIN)
    return before + BEGIN + made() + END + rest.split(END)[1]


def main(arguments: Sequence[str], page: Path = README, made: Callable[[], str] = measured) -> int:
    """Write a page's tables, or with --check look whether they are those of the recorded runs."""
    now = page.read_text()
    new = written(now, made)
    if "--check" in arguments:
        if new != now:
            print(f"agmh-fast: {page.name} is not in step with bench/results: make readme", file=sys.stderr)
        return int(new != now)
    page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
