"""Shards on GPUs: candidates by NCCL, a GPU for each rank, and by gloo through host memory, two ranks on one GPU."""

from __future__ import annotations

import lost_rank_cases
import pytest
import sharded_cases as cases
import torch
from ranks import ranks

pytestmark = pytest.mark.gpu

NCCL = {"device": "cuda", "backend": "cpu:gloo,cuda:nccl"}


@pytest.fixture(scope="module")
def two():
    with ranks(2) as started:
        yield started


@pytest.mark.parametrize("options", [{}, {"ids": True, "distinct": 3}], ids=["plain", "ties-and-ids"])
@pytest.mark.parametrize("bits", [12, 64])
def test_two_ranks_on_one_gpu(two, bits, options):
    two.run(cases.same_answers, 2, bits, 50, 1, options | {"device": "cuda"})


@pytest.mark.parametrize("size", [1, 2])
def test_a_gpu_for_each_rank(two, size):
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    two.run(lost_rank_cases.use_own_gpu)
    for bits in (12, 64):
        two.run(cases.same_answers, size, bits, 50, 1, NCCL)


def test_a_rank_that_dies_amid_a_transfer_by_nccl():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 GPUs")
    with ranks(2) as started:
        message, gone, seconds = started.run(lost_rank_cases.lose_a_gpu, answers=1)[0]
    assert gone == (1,)
    assert message.startswith("no answer from rank 1")
    assert seconds < 60
