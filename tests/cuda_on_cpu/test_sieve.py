"""Products on tensor cores and the sieves made of them: emulated and, where there is a GPU, on it."""

from __future__ import annotations

import os
import subprocess

import pytest
from emulated import HERE, link, objects, run, sanitizer, thread_sanitizer
from machine_code import toolkit
from sanitized import ADDRESS, ROOT

CHECK = HERE / "sieve_check.cu"
SIEVE = ROOT / "csrc/hamming/cuda/sieve.cuh"
# What is right, what is wrong. All but the first let more through than they should, which no search would show.
MISTAKES = {
    "limit one too low": ("starts[query] + counted", "starts[query] + counted + 1"),
    "limit one too high": ("starts[query] + counted", "starts[query] + counted - 1"),
    "limits of other rows": ("8 * half + group_of_lane();", "8 * half + place_in_group();"),
    "complement of short codes": ("place_in_group() / S::kStep == 1", "place_in_group() > 99"),
    "complement of long codes": ("a[half + 2] = ~word", "a[half + 2] = word & 0"),
    "other rows of the tile": ("row[(16 * tile + 8 * half) * pitch", "row[(16 * tile + 4 * half) * pitch"),
    "unused half of a product": ("if (place_in_group() >= 2 * kWords) a[half] = 0;", ""),
    "words past the end": ("(exists ? ~0u : 0)", "(exists ? ~0u : ~0u)"),
    "signs of other bits": ("2 * place_in_group() >> which", "2 * place_in_group() >> 0 * which"),
    "queries of another lane": ("8 * half + group_of_lane());", "8 * half + place_in_group());"),
}


def _build(folder, flags):
    return link(folder / "sieve", objects(folder, [CHECK], f"-iquote{folder}", *flags), *flags)


def _compile(target, architecture, *flags):
    """With nvcc, for this compute capability."""
    command = [toolkit() / "bin/nvcc", "-std=c++20", "-O2", f"-I{ROOT / 'csrc'}", f"-arch=sm_{architecture}", *flags]
    said = subprocess.run([*command, CHECK, "-o", target], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sieve")
    return _build(folder, sanitizer(folder, ADDRESS))


@pytest.mark.parametrize("backward", [False, True])
def test_emulated(built, backward):
    said = run(built, backward=backward)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "all as expected" in said.stdout


def test_emulated_without_races(tmp_path):
    said = run(_build(tmp_path, thread_sanitizer(tmp_path)))
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(tmp_path, mistake):
    if mistake != "limit one too low" and not os.environ.get("AGMH_FAST_SANITIZE"):
        pytest.skip("takes minutes: make sanitize")
    right, wrong = MISTAKES[mistake]
    text = SIEVE.read_text()
    assert text.count(right) == 1
    mistaken = tmp_path / "hamming/cuda/sieve.cuh"
    mistaken.parent.mkdir(parents=True)
    mistaken.write_text(text.replace(right, wrong))
    assert run(_build(tmp_path, sanitizer(tmp_path, ADDRESS))).returncode != 0


@pytest.mark.parametrize("architecture", [90, 100])
def test_it_compiles_for_a_gpu(tmp_path, architecture):
    _compile(tmp_path / "sieve.cubin", architecture, "-cubin")


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    import torch

    major, minor = torch.cuda.get_device_capability()
    _compile(tmp_path / "sieve", 10 * major + minor)
    command = [tmp_path / "sieve", *(["signs"] if (major, minor) > (9, 0) else [])]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "all as expected" in said.stdout
