"""What nvcc makes of the CUDA kernels: no spills, no calls, as many population counts and products of bits as were
written, the occupancy that the folder's README tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from machine_code import ARCHITECTURES, blocks, compile_all, release
from sanitized import ROOT

CUDA = ROOT / "csrc/hamming/cuda"
SOURCES = sorted(CUDA.glob("*.cu"))
# Population counts of a pair, and items of a lane, by the words of a code.
COUNTS = {1: (1, 4), 2: (2, 4), 4: (3, 2), 8: (4, 1)}
# Products that a sieve's code has, four for every 8 items under way, by whether they are of signs and the words of a
# code (0: any number): their instruction, and how many. Short codes of bits have those of a unit, others are in loops.
BITS, SIGNS = r"BMMA\.168(?:128|256)\.AND\.POPC", r"IMMA\.16832\.S8\.S8"
PRODUCTS = {
    (0, 1): (BITS, 64), (0, 2): (BITS, 64), (0, 4): (BITS, 16), (0, 8): (BITS, 32), (0, 0): (BITS, 16),
    (1, 1): (SIGNS, 32), (1, 2): (SIGNS, 16), (1, 4): (SIGNS, 16), (1, 8): (SIGNS, 16), (1, 0): (SIGNS, 16),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compile_all(tmp_path_factory.mktemp("machine_code"), SOURCES)


@pytest.mark.parametrize("name", [source.stem for source in SOURCES if source.stem != "device"])
def test_no_kernel_spills_or_calls(compiled, name):
    code = compiled[name]
    assert {arch for arch, *_ in code.usage} == set(ARCHITECTURES)
    assert [kernel for kernel, usage in code.usage.items() if usage.spilled] == []
    for arch, subroutines in code.subroutines.items():
        # Quotients of doubles call for help where they are not normal numbers, which ratios of ranks always are.
        known = ["sm20_div_rn_f64_full"] if name == "ranking" else []
        # Before sm_90, lanes that are out of step meet in subroutines; those that are in step pass them by.
        known += [r"sm70_(vote|shfl|match|warp)sync\w*", r"reduxsync_b32_or"] if arch < 90 else []
        allowed = rf"\$__internal_\d+_\$__cuda_({'|'.join(known)})"
        assert [each for each in subroutines if not known or re.fullmatch(allowed, each) is None] == []


def test_population_counts_are_as_many_as_were_written(compiled):
    seen = 0
    for (_, kernel, arguments), instructions in compiled["append"].instructions().items():
        form = re.fullmatch(r"Li(\d)ELi(\d)E", arguments)
        if kernel != "append_kernel" or int(form[1]) not in COUNTS:
            continue
        of_pair, items = COUNTS[int(form[1])]
        # Each pair, and two for each vote on what to append.
        expected = int(form[2]) * items * (of_pair + 2)
        assert len(re.findall(r"\bPOPC\b", instructions)) == expected, arguments
        seen += 1
    assert seen == 2 * len(COUNTS) * len(ARCHITECTURES)


def test_products_are_as_many_as_were_written_where_there_are_any(compiled):
    seen = 0
    for (arch, kernel, arguments), instructions in compiled["append"].instructions().items():
        products = re.findall(r"\b[BI]MMA\b[\w.]*", instructions)
        if kernel != "sift_kernel":
            assert products == []
            continue
        form = re.fullmatch(r"Lb([01])ELi(\d)E", arguments)
        instruction, count = PRODUCTS[int(form[1]), int(form[2])]
        there = arch <= 90 or instruction == SIGNS
        assert len(products) == (count if there else 0), (arch, arguments)
        assert all(re.fullmatch(instruction, product) for product in products)
        # Without products there is nothing.
        assert there or "LDG" not in instructions
        seen += 1
    assert seen == len(PRODUCTS) * len(ARCHITECTURES)


@dataclass(frozen=True)
class Launch:
    """A kernel as it is launched for codes of so many bits: threads of a block, and its dynamic shared memory."""

    source: str
    kernel: str
    arguments: str
    bits: int | None
    dynamic: int
    threads: int = 256


def _launches() -> list[Launch]:
    """What the table of README.md has, in its order; sizes as in the functions that launch."""
    found = []
    for bits, words in ((32, 1), (64, 2), (128, 4), (256, 8), (1024, 32)):
        form, of_query = words if words <= 8 else 0, 4 * words
        found.append(Launch("append", "append_kernel", f"Li{form}ELi4E", bits, 32 * of_query))
        found += [
            Launch("append", "sift_kernel", f"Lb{signs}ELi{form}E", bits, 64 * (of_query + 16)) for signs in (0, 1)
        ]
        for kernel, entry in (("count_kernel", 4), ("emit_kernel", 8)):
            counters = entry * 8 * 8 * (bits + 1)
            near = 8 * of_query + counters <= 72 << 10
            found.append(
                Launch("count", kernel, f"Li{form}ELb{int(near)}E", bits, 8 * of_query + (counters if near else 0))
            )
        counters = 4 * 8 * (bits + 1) * 2
        found.append(Launch("histogram", "histogram_kernel", f"Li{form}ELb1ELb1E", bits, 8 * of_query + counters))
        if bits <= 256:  # eight warps, four cutoffs
            memory = 8 * (8 * (2 * (bits + 1) + 4) + 4 * (words + words % 2))
            found.append(Launch("ranking", "ranking_kernel", f"Li{form}E", bits, memory))
    found.append(Launch("append", "keep_nearest_kernel", "", None, 8 * 4096, 512))
    found.append(Launch("distance", "distance_kernel", "h", None, 0, 128))
    return found


def test_occupancy_is_what_the_readme_says(compiled, tmp_path):
    text = (CUDA / "README.md").read_text()
    version = re.search(r"as nvcc (\d+\.\d+) compiles", text)[1]
    if release() != version:
        pytest.skip(f"the table is of nvcc {version}, here is {release()}")
    launches = sorted(
        _launches(), key=lambda launch: (launch.kernel, launch.arguments[:3] if launch.kernel == "sift_kernel" else "")
    )
    usages = {(a, n): compiled[n.source].usage[a, n.kernel, n.arguments] for n in launches for a in ARCHITECTURES}
    asked = [(arch, usage, launch.dynamic, launch.threads) for (arch, launch), usage in usages.items()]
    fit = dict(zip(usages, blocks(tmp_path, asked), strict=True))
    head = ["kernel", "bits", "shared", *(f"sm_{arch}" for arch in ARCHITECTURES)]
    table = [head, ["---"] * len(head)]
    for launch in launches:
        bits_only = launch.kernel == "sift_kernel" and launch.arguments.startswith("Lb0")
        there = [arch for arch in ARCHITECTURES if not bits_only or arch <= 90]
        shared = {usages[arch, launch].shared + launch.dynamic for arch in there}
        cells = [
            f"{usages[arch, launch].registers} · {fit[arch, launch]} · {fit[arch, launch] * launch.threads // 32}"
            if arch in there
            else "–"
            for arch in ARCHITECTURES
        ]
        name, bits = launch.kernel.removesuffix("_kernel"), str(launch.bits or "any")
        name += {"Lb0": " of bits", "Lb1": " of signs"}[launch.arguments[:3]] if name == "sift" else ""
        table.append([f"`{name}`", bits, "–".join(map(str, sorted(shared))), *cells])
    expected = "\n".join(f"| {' | '.join(row)} |" for row in table)
    assert expected in text, f"the table of README.md should be\n{expected}"
