"""What the tests of the kernels can catch: a right kernel passes, and each planted bug is found."""

from __future__ import annotations

import pytest
from emulated import HERE, link, objects, run, sanitizer, thread_sanitizer
from sanitized import ADDRESS

CODES = "200"  # a last block with room to spare


def _planted(folder, bug, flags=()):
    return link(folder / f"planted{bug}", objects(folder, [HERE / "planted.cu"], f"-DBUG={bug}", *flags), *flags)


@pytest.mark.parametrize("backward", [False, True])
def test_a_right_kernel_passes(tmp_path, backward):
    said = run(_planted(tmp_path, 0, sanitizer(tmp_path, ADDRESS)), CODES, backward=backward)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize(
    ("bug", "report"),
    [(2, "index 64 out of bounds"), (3, "heap-buffer-overflow"), (5, "__syncthreads, line 20")],
    ids=["past shared memory", "past global memory", "divergent barrier"],
)
def test_wrong_accesses_and_barriers_are_reported(tmp_path, bug, report):
    said = run(_planted(tmp_path, bug, sanitizer(tmp_path, ADDRESS)), CODES)
    assert said.returncode != 0
    assert report in said.stderr


def test_a_missing_barrier_gives_a_wrong_answer_in_one_order_of_threads(tmp_path):
    program = _planted(tmp_path, 1)
    assert any(run(program, CODES, backward=backward).returncode != 0 for backward in (False, True))


def test_the_thread_sanitizer_accepts_a_right_kernel(tmp_path):
    said = run(_planted(tmp_path, 0, thread_sanitizer(tmp_path)), CODES)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("bug", [1, 4], ids=["missing barrier", "addition without atomics"])
def test_races_are_reported(tmp_path, bug):
    said = run(_planted(tmp_path, bug, thread_sanitizer(tmp_path)), CODES)
    assert said.returncode != 0
    assert "data race" in said.stderr
    assert "planted.cu" in said.stderr
