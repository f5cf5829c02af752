"""Settings: every bad field is one line that names it; JSON there and back; the learning rate of every step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agmh_fast import InputError
from agmh_fast.train import TrainConfig

BAD = {
    "dataset": ["", 3],
    "root": [3, ""],
    "cache": [3, ""],
    "bits": [0, 4097, 12.0, True, "48"],
    "backbone": ["resnet9", None],
    "weights": [1],
    "num_descriptors": [0],
    "descriptor_dim": [-1],
    "num_heads": [0],
    "memory_size": [0],
    "max_iter": [0],
    "max_epoch": [0],
    "num_samples": [0],
    "batch_size": [0, 1.5],
    "lr": [0, -1, math.nan, math.inf, "fast"],
    "momentum": [1, -0.1],
    "weight_decay": [-1e-4],
    "schedule": ["linear"],
    "warmup": [1.0, -0.5],
    "gamma": [-1],
    "dispersion_weight": [math.nan],
    "seed": [-1, 0.5],
    "workers": [-1],
    "device": ["tpu", "cuda:99", 7.5, "meta"],
    "precision": ["fp8"],
    "channels_last": [1],
    "compile": [1],
    "fused": [1],
    "cuda_graph": [1],
    "sync_bn": [1],
    "gpu_decode": [1],
    "cache_whole": [1, True],
    "rank_seconds": [0, math.inf],
    "select": ["train"],
    "validation_share": [0, 0.5],
    "output": [b"", 5],
    "resume": ["yes"],
    "skip_broken": ["yes"],
    "eval_every": [0],
    "ties": ["random"],
    "checkpoint_seconds": [-1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_field_is_one_line_that_names_it(name, value):
    with pytest.raises(InputError) as error:
        TrainConfig(**{name: value})
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_every_field_has_a_bad_value_above():
    assert set(BAD) == set(TrainConfig().to_mapping())


def test_defaults_are_the_published_ones():
    config = TrainConfig()
    assert (config.max_iter, config.max_epoch, config.num_samples, config.batch_size) == (40, 30, 2000, 32)
    assert (config.lr, config.momentum, config.weight_decay, config.schedule) == (1e-3, 0.9, 1e-4, "constant")
    assert (config.gamma, config.dispersion_weight) == (200.0, 0.5)
    assert (config.num_descriptors, config.descriptor_dim, config.num_heads, config.memory_size) == (6, 512, 4, 128)


def test_json_there_and_back():
    config = TrainConfig(bits=12, lr=0.1, output="x", schedule="cosine")
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["{", "[1]", '{"bitz": 12}', '{"bits": 0}'])
def test_bad_json_is_refused(text):
    with pytest.raises(InputError):
        TrainConfig.from_json(text)


def test_resume_needs_a_folder():
    with pytest.raises(InputError, match="output"):
        TrainConfig(resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_fp16_needs_a_gpu():
    with pytest.raises(InputError, match="precision"):
        TrainConfig(precision="fp16")


def test_a_run_may_go_on_longer_only_if_its_steps_stay_the_same():
    stored = TrainConfig(max_iter=4, output="x")
    assert stored.replace(max_iter=8, workers=2, eval_every=1).continuing(stored).max_iter == 8
    for changed in (stored.replace(max_iter=3), stored.replace(bits=12), stored.replace(seed=1), stored.replace(lr=1)):
        with pytest.raises(InputError):
            changed.continuing(stored)
    cosine = stored.replace(schedule="cosine")
    with pytest.raises(InputError, match="max_iter"):
        cosine.replace(max_iter=8).continuing(cosine)


@given(st.integers(1, 200), st.floats(0, 0.99), st.sampled_from(["constant", "cosine"]))
def test_learning_rate_rises_once_and_never_leaves_its_range(steps, warmup, schedule):
    config = TrainConfig(lr=0.5, warmup=warmup, schedule=schedule)
    rates = [config.learning_rate(step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)
    rising = sum(step < warmup * steps for step in range(steps))
    assert rates[:rising] == sorted(rates[:rising])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    if schedule == "constant":
        assert set(rates[rising:]) <= {0.5}
