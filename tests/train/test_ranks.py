"""Two ranks train as one process does; only the first one writes; a rank that is lost is an error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import distributed_cases as cases
import miniatures
import pytest
import torch
from command_line import finished
from ranks import CommandRanks, command_ranks, ranks
from torch.nn import BatchNorm2d

from agmh_fast import InputError
from agmh_fast.train.ranks import Ranks, started


@pytest.fixture
def make_config(make_config):
    """The settings of `conftest`, but an epoch's last batch has an image a rank."""
    return lambda **changes: make_config(**({"num_samples": 14} | changes))


@pytest.fixture(scope="module")
def two():
    with ranks(2) as group:
        yield group


@pytest.mark.parametrize("select", ["test", "validation"])
def test_two_ranks_are_one_process(two, make_config, select):
    """In float64, with uneven parts: the two round a dozen layers in twelve steps, and decide nothing near zero."""
    config = make_config(select=select, validation_share=0.2, batch_size=5)
    expected = cases.trained(0, config, torch.float64)
    for found in two.run(cases.trained, config, torch.float64):
        for row, wanted in zip(found["history"], expected["history"], strict=True):
            assert row == pytest.approx(wanted, rel=1e-8)
        assert found["maps"] == expected["maps"]
        assert torch.equal(found["codes"], expected["codes"])
        for name, value in found["model"].items():
            wanted = expected["model"][name].double()
            assert (value - wanted).double().norm() <= 1e-8 * (1 + wanted.norm()), name


def test_statistics_of_each_rank_alone_are_a_choice(two, make_config):
    found = two.run(cases.trained, make_config(sync_bn=False), torch.float64)
    assert found[0]["history"] == found[1]["history"]
    assert torch.equal(found[0]["codes"], found[1]["codes"])
    assert found[0]["history"] != two.run(cases.trained, make_config(), torch.float64)[0]["history"]


def test_a_stopped_run_of_two_ranks_goes_on_bit_for_bit(two, make_config, tmp_path):
    whole = two.run(cases.trained, make_config(output=tmp_path / "whole"), torch.float32)[0]
    config = make_config(output=tmp_path / "parts")
    assert two.run(cases.trained, config, torch.float32, 6) == [None, None]
    parts = two.run(cases.trained, config.replace(resume=True), torch.float32)[0]
    assert parts["history"] == whole["history"]
    assert torch.equal(parts["codes"], whole["codes"])
    for name, value in parts["model"].items():
        assert torch.equal(value, whole["model"][name]), name


def test_what_is_all_reduced_is_what_the_docs_say(two, make_config):
    """The table of docs/training.md, for 2 outer iterations of 2 epochs of 4 steps."""
    m, n, queries, bits, groups, row = 14, 18, 6, 12, 3, 2
    descriptors, channels, slots = 2, 8, 4
    norms = [module.num_features for module in cases.made(torch.float32).modules() if isinstance(module, BatchNorm2d)]
    a_step = sum(4 * (2 * c + 1) + 8 * c for c in norms)
    a_step += 8 * (descriptors * slots**2 + descriptors * slots + 1) + 4 * descriptors * channels * (slots + 1)
    an_iteration = 8 * bits * (groups + bits) + 4 * m * bits + n * row
    expected = 16 * a_step + 4 * 24 + 2 * an_iteration + 2 * queries * row
    assert two.run(cases.all_reduced, make_config()) == [expected, expected]


def test_only_the_first_rank_writes(two, make_config, tmp_path):
    two.run(cases.trained_in, make_config(max_iter=1), str(tmp_path))
    assert os.listdir(tmp_path) == ["0"]
    assert {"checkpoint.pt", "scalars.csv", "result.json", "best.safetensors"} <= set(os.listdir(tmp_path / "0"))


def test_a_mistake_is_one_on_every_rank(two, make_config, tmp_path):
    (tmp_path / "checkpoint.pt").write_text("")
    first, second = two.run(cases.failed, make_config(output=tmp_path))
    assert "already holds a run" in first
    assert second == f"rank 0: {first}"
    # 13 items in batches of 4: one is left for the last batch.
    assert all(
        "batch_size: an epoch's last batch has 1" in text for text in two.run(cases.failed, make_config(num_samples=13))
    )


def test_a_rank_has_its_share():
    assert (Ranks().share(5), Ranks(1, 2).share(5)) == (slice(0, 5), slice(3, 5))


def test_half_a_start_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="MASTER_ADDR is not: start the ranks by torchrun"), started("cpu", 1):
        pass


COMMAND = (
    "train --dataset listing --root . --backbone small --num-descriptors 2 --descriptor-dim 4 --memory-size 2 "
    "--batch-size 4 --max-epoch 1 --select test --bits 8 --device cpu --checkpoint-seconds 0"
)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A listing of eight images as the current folder."""
    monkeypatch.chdir(tmp_path)
    miniatures.put(tmp_path, [f"{number}.jpg" for number in range(10)])
    miniatures.write(tmp_path / "train.txt", [f"{number}.jpg {number % 3}" for number in range(8)])
    miniatures.write(tmp_path / "test.txt", [f"{number}.jpg {number % 3}" for number in range(8, 10)])


def _ranks(*options: str) -> contextlib.AbstractContextManager[CommandRanks]:
    return command_ranks(2, [*COMMAND.split(), *options])


def _require_an_end(ranks: CommandRanks) -> None:
    """The first rank must end soon, with a line that says why."""
    code, _, err = ranks.finished(0, timeout=600)
    assert code == 2, ranks.said()
    assert err.splitlines()[-1].startswith("agmh-fast: ranks: another rank is gone"), ranks.said()
    assert "Traceback" not in err


def _trains() -> bool:
    log = Path("run/scalars.csv")
    return log.exists() and len(log.read_text().splitlines()) >= 5


def test_a_dead_rank_is_an_error_and_the_run_goes_on_after(images):
    with _ranks("--output", "run", "--max-iter", "25", "--rank-seconds", "300") as started:
        started.wait_until(_trains, timeout=600)
        started[1].send_signal(signal.SIGKILL)
        _require_an_end(started)
    with _ranks("--output", "run", "--resume", "--rank-seconds", "300") as again:
        code, out, _ = again.finished(0, timeout=600)
        assert code == 0, again.said()
        assert "mAP" in out
        assert again.finished(1, timeout=600) == (0, "", ""), again.said()


def test_a_silent_rank_is_an_error(images):
    with _ranks("--output", "run", "--max-iter", "2500", "--rank-seconds", "20") as started:
        started.wait_until(_trains, timeout=600)
        started[1].send_signal(signal.SIGSTOP)
        _require_an_end(started)


def test_torchrun_starts_the_ranks(images):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "agmh_fast"]
    line = [*run, *COMMAND.split(), "--output", "run", "--max-iter", "1", "--json"]
    found = finished(line, timeout=600)
    assert found.returncode == 0, found.stderr
    assert '"bits": 8' in found.stdout
