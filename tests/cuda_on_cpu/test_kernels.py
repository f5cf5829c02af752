"""The CUDA kernels of the Hamming engine, run on the CPU, against the CPU engine."""

from __future__ import annotations

import os

import pytest
from emulated import HERE, link, objects, run, sanitizer, thread_sanitizer
from sanitized import ADDRESS, ROOT

CUDA = ROOT / "csrc/hamming/cuda"
KERNELS = sorted(CUDA.glob("*.cu"))
CHECKS = sorted(HERE.glob("*_check.cpp"))
# Those that take queries in batches, and so use all of plan.h.
BATCHED = [CUDA / "range.cu", CUDA / "topk.cu"]
# Mistakes that are easily made: (part of the check that finds it, file, what is right, what is wrong).
MISTAKES = {
    "bound one too low": ("topk", "append.cu", "key < bound &&", "key + 1 < bound &&"),
    "ties of the bound left out": (
        "topk",
        "append.cu",
        "(bound[thread]) - 1 : 0",
        "(bound[thread]) : 0",
    ),
    "overflow unnoticed": ("topk", "append.cu", "found.full[query] = 1", "found.full[query] = 0"),
    "items past the end": ("topk", "append.cu", "item < task.item_count &&", ""),
    "no barrier in the sort": ("topk", "append.cu", "      __syncthreads();\n    }\n}", "    }\n}"),
    "ties out of order": ("range", "count.cu", "peers & lanes_before()", "peers & ~lanes_before()"),
    "one result too many": ("topk", "count.cu", "(at) < results.end", "(at) <= results.end"),
    "tiles overlap": ("range", "count.cu", "__syncthreads();  // the tile", "// the tile"),
    "a sieve's limit one too low": ("sifted", "sieve.cuh", "starts[query] + counted", "starts[query] + counted + 1"),
    "a chunk sifted too soon": ("topk", "plan.h", "plan.sift_from = 2 * k", "plan.sift_from = 0"),
    "masks of the batch before": ("topk", "plan.h", "task.mask += first * task.mask_stride", "task.mask += 0"),
    "ranks of equal items out of order": (
        "ranking",
        "ranking.cu",
        "__popc(peers & lanes_before()) + 1",
        "__popc(peers) + 0",
    ),
    "hits of the query before": ("ranking", "ranking.cu", "memory.hits[c] = 0", "memory.hits[c] += 0"),
    "labels of another query": ("histogram", "histogram.cu", "relevant(labels, first_query + q", "relevant(labels, q"),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The CPU engine without sanitizers: its own tests have them."""
    return objects(tmp_path_factory.mktemp("engine"), sorted((ROOT / "csrc/hamming").glob("*.cpp")))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the objects, and the flags that they were built with."""
    folder = tmp_path_factory.mktemp("kernels")
    flags = sanitizer(folder, ADDRESS)
    objects(folder, [*KERNELS, *CHECKS], *flags)
    return folder, flags


@pytest.mark.parametrize("backward", [False, True])
def test_kernels_equal_the_cpu_engine(engine, built, backward):
    folder, flags = built
    program = link(folder / "kernels", [*engine, *folder.glob("*.o")], *flags)
    said = run(program, *(["brief"] if backward else []), backward=backward)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "all as expected" in said.stdout


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(engine, built, tmp_path, mistake):
    if mistake != "bound one too low" and not os.environ.get("AGMH_FAST_SANITIZE"):
        pytest.skip("takes minutes: make sanitize")
    part, name, right, wrong = MISTAKES[mistake]
    text = (CUDA / name).read_text()
    assert text.count(right) == 1
    folder, flags = built
    # Includes are looked for there first.
    mistaken = tmp_path / "hamming/cuda" / name
    mistaken.parent.mkdir(parents=True)
    mistaken.write_text(text.replace(right, wrong))
    sources = {".cu": [mistaken], ".cuh": [CUDA / "append.cu"], ".h": BATCHED}[mistaken.suffix]
    replaced = objects(tmp_path, sources, f"-iquote{tmp_path}", *flags)
    others = [path for path in folder.glob("*.o") if path.name not in {f"{source.name}.o" for source in sources}]
    # Of an inline function that several objects have, the linker takes the first.
    program = link(tmp_path / "wrong", [*replaced, *engine, *others], *flags)
    assert any(run(program, part, backward=backward).returncode != 0 for backward in (False, True))


def test_kernels_do_not_race(engine, tmp_path):
    flags = thread_sanitizer(tmp_path)
    program = link(tmp_path / "kernels", [*engine, *objects(tmp_path, [*KERNELS, *CHECKS], *flags)], *flags)
    said = run(program, "brief")
    assert said.returncode == 0, said.stdout + said.stderr
