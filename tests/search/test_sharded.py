"""Shards over gloo ranks give the answers of one index, bit for bit; a lost rank and a mistake reach every rank."""

from __future__ import annotations

import lost_rank_cases
import numpy as np
import pytest
import shard_mistake_cases as mistakes
import sharded_cases as cases
import torch
from ranks import ranks

import agmh_fast as af
from agmh_fast.search.peers import wait_on_device

SIZES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def four():
    with ranks(4) as started:
        yield started


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("bits", "rows", "options"),
    [
        pytest.param(48, 40, {}, id="plain"),
        pytest.param(7, 60, {"distinct": 3}, id="ties"),
        pytest.param(64, 30, {"ids": True}, id="custom-ids"),
        pytest.param(16, 1, {}, id="nearly-empty"),
        pytest.param(100, 0, {}, id="empty"),
    ],
)
def test_answers_are_those_of_one_index(four, size, bits, rows, options):
    four.run(cases.same_answers, size, bits, rows, size, options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("bits", "rows", "options"),
    [
        pytest.param(48, 40, {}, id="plain"),
        pytest.param(7, 60, {"distinct": 3, "ids": True}, id="ties-and-ids"),
        pytest.param(16, 1, {}, id="nearly-empty"),
    ],
)
def test_shards_of_tensors_give_them_too(four, size, bits, rows, options):
    """What a GPU's shard does, on the CPU."""
    four.run(cases.same_answers, size, bits, rows, size, options | {"device": "tensors"})


def test_saved_by_some_ranks_loaded_by_others(four, tmp_path):
    four.run(cases.save_everywhere, SIZES, str(tmp_path))


def test_shards_that_do_not_fit_are_streamed(four, tmp_path):
    four.run(cases.load_streamed, str(tmp_path))


@pytest.mark.parametrize("size", SIZES)
def test_a_plain_index_becomes_shards(four, size, tmp_path):
    plain = af.HammingIndex(33)
    plain.add(cases.codes_of(np.random.default_rng(1), 20, 33))
    plain.save(tmp_path / "plain")
    four.run(cases.shard_a_plain_index, size, str(tmp_path / "plain"))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_traffic_is_what_the_cost_model_says(four, size):
    four.run(cases.count_traffic, size)


@pytest.fixture
def three():
    with ranks(3) as started:
        yield started


def test_a_mistake_on_one_rank_is_an_error_on_all(three):
    for bad in range(3):
        three.run(mistakes.bad_arguments, bad)
    three.run(mistakes.bad_arguments, 1, "tensors")
    three.run(cases.batched_transfers)


def test_nothing_is_stored_before_all_ranks_have_checked(three):
    for bad, device in ((0, "host"), (2, "tensors")):
        three.run(mistakes.check_before_storing, bad, device)


def test_going_back_needs_no_memory(three):
    three.run(mistakes.go_back_without_memory)


@pytest.mark.parametrize(
    ("lost", "how", "reason", "limit"),
    [
        (0, "dies", "its connection is closed", 20),
        (2, "dies", "its connection is closed", 20),
        (0, "dies before it sends its candidates", "its connection is closed", 20),
        (1, "dies before it sends its candidates, in a batch", "its connection is closed", 20),
        (1, "stops", "waited 5 s", 20),
    ],
)
def test_a_lost_rank_is_named_in_time(three, lost, how, reason, limit):
    told = three.run(lost_rank_cases.lose_a_rank, lost, how, 5.0 if how == "stops" else 60.0, answers=2)
    for rank, answer in enumerate(told):
        if rank != lost:
            message, gone, seconds = answer
            assert gone == (lost,)
            assert message.startswith(f"no answer from rank {lost}: {reason}; start the ranks anew")
            assert seconds < limit


class Work:
    """A transfer of NCCL's that is done after so many looks at it."""

    def __init__(self, looks):
        self.looks, self.waited = looks, False

    def is_completed(self):
        self.looks -= 1
        return self.looks < 0

    def wait(self, *timeout):
        assert not timeout  # with which NCCL would end the process
        self.waited = True


def test_transfers_between_gpus_are_waited_for_by_looking():
    done, stuck, gpu = Work(3), Work(10**9), torch.device("cuda", 0)
    wait_on_device([done], gpu, 60)
    assert done.waited
    with pytest.raises(RuntimeError, match=r"waited 0\.05 s"):
        wait_on_device([Work(0), stuck], gpu, 0.05)
    assert not stuck.waited


def test_an_interrupted_rank_does_not_go_on_out_of_step(three):
    three.run(lost_rank_cases.interrupt_a_rank)


def test_a_rank_that_fails_between_transfers_sends_no_more(three):
    three.run(lost_rank_cases.fail_between_transfers)


def test_a_shard_file_written_to_is_an_error_on_all(three, tmp_path):
    three.run(mistakes.write_to_a_shard_file, str(tmp_path / "saved"))
