"""The alternating optimisation, end to end and interrupted."""

from __future__ import annotations

import csv
import math
import pickle
import re

import numpy as np
import pytest
import torch
from interruptions import Stopper
from torch import nn

import agmh_fast as af
from agmh_fast import InputError, train
from agmh_fast.data import RetrievalData
from agmh_fast.modules.small import SmallResNet
from agmh_fast.train import ConsoleProgress, Event, fit, silent
from agmh_fast.train.randomness import EpochOrders, epoch_order, sample_items

TIMES = ("seconds", "images_per_second")


def _untimed(history):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


def _scalars(folder):
    with (folder / "scalars.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(row["step"], row["tag"], row["value"]) for row in rows if "images_per_second" not in row["tag"]]


def _require_same(a: train.TrainResult, b: train.TrainResult) -> None:
    assert _untimed(a.history) == _untimed(b.history)
    assert torch.equal(a.state.codes, b.state.codes)
    theirs = b.model.state_dict()
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert (a.map, a.best_map, a.best_iteration) == (b.map, b.best_map, b.best_iteration)


def test_a_run_leaves_a_model_codes_and_scalars_that_agree(data, make_config, tmp_path):
    config = make_config(output=tmp_path / "run", max_iter=3)
    before = torch.get_rng_state()
    result = fit(config, data, progress=silent)
    assert torch.equal(torch.get_rng_state(), before)

    assert not result.model.training
    assert set(result.state.codes.unique().tolist()) <= {-1.0, 1.0}
    # 13 items in batches of 4 are 4 steps an epoch; 3 iterations of 2 epochs.
    assert [row["step"] for row in result.history] == [4, 8, 12, 16, 20, 24]
    assert [(row["iteration"], row["epoch"]) for row in result.history] == [(i, e) for i in (1, 2, 3) for e in (1, 2)]
    assert ["map" in row for row in result.history] == [False, True] * 3
    assert result.best_map == max(row["map"] for row in result.history if "map" in row)

    model = train.load_run(config.output, "final")
    codes = train.load_codes(config.output, "final")
    assert torch.equal(af.unpack_codes(codes, 12).float(), result.state.codes)
    queries = train.encode_set(model, data.query)
    expected = np.mean(
        [
            reference_ap(query, codes, data.database.labels == label)
            for query, label in zip(queries, data.query.labels, strict=True)
        ]
    )
    # Sums of at most 18 fractions in float64.
    assert result.map == pytest.approx(expected, abs=1e-12)
    assert train.load_meta(config.output)["map"] == result.best_map
    assert train.load_meta(config.output)["iteration"] == result.best_iteration

    scalars = _scalars(tmp_path / "run")
    assert [float(value) for _, tag, value in scalars if tag == "loss/pairwise"] == [
        r["pairwise"] for r in result.history
    ]
    assert [int(step) for step, tag, _ in scalars if tag == "retrieval/map"] == [8, 16, 24]
    assert list((tmp_path / "run" / "events").glob("events.out.tfevents.*"))


def reference_ap(query, codes, relevant):
    """Average precision of one query, by sorting positions by (distance, position)."""
    distance = np.unpackbits(query.numpy()[None] ^ codes.numpy(), axis=1).sum(1)
    hits = relevant.numpy()[np.argsort(distance, kind="stable")]
    return (np.cumsum(hits)[hits] / (np.flatnonzero(hits) + 1)).mean()


def test_training_lowers_the_losses_and_finds_the_classes(data, make_config):
    result = fit(make_config(max_iter=8, max_epoch=3, num_samples=18, eval_every=8), data, progress=silent)
    first, last = result.history[0], result.history[-1]
    assert last["pairwise"] < 0.5 * first["pairwise"]
    # The patterns are far apart: a network that learned anything tells them apart; by chance mAP is near 0.4.
    assert result.map > 0.9


def test_the_same_seed_gives_the_same_run_and_another_seed_another(data, make_config):
    runs = [fit(make_config(seed=seed), data, progress=silent) for seed in (0, 0, 1)]
    _require_same(runs[0], runs[1])
    assert not torch.equal(runs[0].model.hash_weight, runs[2].model.hash_weight)


def test_workers_do_not_change_a_run(data, make_config):
    _require_same(*(fit(make_config(max_iter=1, workers=workers), data, progress=silent) for workers in (0, 1)))


# Steps 1 to 16: 3 lies in the first epoch, 6 in the second epoch of an iteration, 8 ends the first iteration, 13 lies
# in the last epoch. With 1000 s between checkpoints only the first one is there.
@pytest.mark.parametrize("seconds", [0, 1000])
@pytest.mark.parametrize("steps", [[3], [6], [8], [13], [2, 6, 7, 14]])
def test_a_resumed_run_is_bit_identical(data, make_config, tmp_path, steps, seconds):
    whole = fit(make_config(output=tmp_path / "whole"), data, progress=silent)
    config = make_config(output=tmp_path / "parts", checkpoint_seconds=seconds)
    for step in steps:
        with pytest.raises(KeyboardInterrupt):
            fit(config, data, progress=Stopper(step))
        config = config.replace(resume=True)
    parts = fit(config, data, progress=silent)
    _require_same(whole, parts)
    assert _scalars(tmp_path / "parts") == _scalars(tmp_path / "whole")
    for name in ("best", "final"):
        assert torch.equal(train.load_codes(tmp_path / "parts", name), train.load_codes(tmp_path / "whole", name))


class Dropout(nn.Module):
    """A backbone that draws from torch's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = SmallResNet(1, (4, 4, 8, 8))
        self.out_channels = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.net(x), 0.5, self.training)


def test_a_resumed_run_of_a_model_with_dropout_is_bit_identical(data, make_config, tmp_path):
    def run(step=None, **changes):
        torch.manual_seed(5)
        model = af.AGMH(12, Dropout(), num_descriptors=2, descriptor_dim=8, num_heads=2, memory_size=4)
        torch.manual_seed(torch.seed())  # a run must not depend on what was drawn before it
        return fit(make_config(**changes), data, model, Stopper(step) if step else silent)

    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(6, output=tmp_path / "run")
    _require_same(whole, run(output=tmp_path / "run", resume=True))
    with pytest.raises(InputError, match="own making"):
        train.load_run(tmp_path / "run")


def test_a_finished_run_can_be_resumed_and_extended(data, make_config, tmp_path):
    whole = fit(make_config(schedule="constant", max_iter=3), data, progress=silent)
    config = make_config(schedule="constant", output=tmp_path / "run")
    short = fit(config, data, progress=silent)
    _require_same(short, fit(config.replace(resume=True), data, progress=silent))
    _require_same(whole, fit(config.replace(resume=True, max_iter=3), data, progress=silent))


def test_a_run_is_not_overwritten(data, make_config, tmp_path):
    config = make_config(max_iter=1, output=tmp_path / "run")
    fit(config, data, progress=silent)
    with pytest.raises(InputError, match=r"output: .* already holds a run"):
        fit(config, data, progress=silent)


@pytest.mark.parametrize("changes", [{"bits": 8}, {"seed": 3}, {"lr": 0.1}, {"max_epoch": 1}, {"backbone": "small"}])
def test_resuming_with_other_settings_names_the_field(data, make_config, tmp_path, changes):
    config = make_config(max_iter=1, output=tmp_path / "run")
    fit(config, data, progress=silent)
    with pytest.raises(InputError, match=next(iter(changes))):
        fit(config.replace(resume=True, **changes), data, progress=silent)


def test_resuming_with_other_data_names_the_dataset(data, make_config, tmp_path):
    config = make_config(max_iter=1, output=tmp_path / "run")
    fit(config, data, progress=silent)
    swapped = RetrievalData("patterns", data.class_names, data.query, data.database, data.mean, data.std)
    with pytest.raises(InputError, match="dataset"):
        fit(config.replace(resume=True), swapped, progress=silent)


def test_a_loss_that_is_not_finite_names_the_place_and_leaves_the_checkpoint(data, make_config, tmp_path):
    config = make_config(output=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit(config, data, progress=Stopper(10))
    kept = (tmp_path / "run" / "checkpoint.pt").read_bytes()

    class Poisoned:
        labels = data.database.labels

        def __len__(self) -> int:
            return len(self.labels)

        def load(self, items, generator):
            return torch.full((len(items), 1, 16, 16), math.inf)

    broken = RetrievalData("patterns", data.class_names, Poisoned(), data.query, data.mean, data.std)
    with pytest.raises(InputError, match=r"^lr: .* epoch 1 of iteration 2: lower the learning rate \(now 0.005\)$"):
        fit(config.replace(resume=True), broken, progress=silent)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == kept


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": True}, {"momentum": 0}, {"warmup": 0.3}])
def test_options_of_the_optimisation_run(data, make_config, changes):
    result = fit(make_config(max_iter=1, **changes), data, progress=silent)
    assert all(math.isfinite(row["pairwise"]) for row in result.history)


def test_a_resnet_refuses_grey_images(data, make_config):
    with pytest.raises(InputError, match="backbone resnet18 takes images of 3 channels, patterns has 1"):
        fit(make_config(backbone="resnet18"), data, progress=silent)


def test_a_model_of_other_bits_is_refused(data, make_config):
    model = af.AGMH(8, SmallResNet(1), num_descriptors=2, descriptor_dim=8, num_heads=2, memory_size=4)
    with pytest.raises(InputError, match="bits is 12, but the model has 8"):
        fit(make_config(), data, model, silent)


def test_what_loads_an_epoch_orders_it_as_the_run_does():
    items = torch.tensor([3, 5, 7, 9, 11])
    orders = pickle.loads(pickle.dumps(EpochOrders(items, 4, epochs=3, seed=2)))
    for number in (0, 1, 2, 3, 7, 2):
        iteration, epoch = divmod(number, 3)
        order = epoch_order(4, 2, iteration, epoch)
        assert torch.equal(orders[number], items[sample_items(5, 4, 2, iteration)][order])


def test_an_unknown_dataset_is_refused(make_config):
    with pytest.raises(InputError, match="dataset 'patterns' is not known"):
        fit(make_config())


def test_an_output_that_is_a_file_is_refused(data, make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output folder"):
        fit(make_config(output=tmp_path / "file"), data, progress=silent)


def test_events_come_in_order(data, make_config):
    seen = []
    fit(make_config(), data, progress=seen.append)
    batches = ["batch"] * 4
    one = [*batches, "epoch", *batches, "iteration"]
    assert [event.kind for event in seen] == ["start", *one, *one, "end"]
    assert seen[-1].step == seen[-1].steps == 16


def test_without_a_terminal_progress_is_a_line_an_iteration(data, make_config, capsys):
    fit(make_config(), data)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("iteration 1/2  pairwise ")
    assert "  mAP 0." in first
    assert "images/s" in first
    assert second.endswith("ETA 0:00:00")


def test_on_a_terminal_progress_is_a_bar(data, make_config, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    fit(make_config(), data)
    shown = capsys.readouterr().err
    assert "16/16" in shown
    assert re.search(r"pairwise [\d.]+, [^\r]*\d+ images/s", shown)


def test_the_bar_has_images_a_second_from_the_first_batch_on(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = ConsoleProgress(2)
    progress(Event("start", 0, 0, 0, 16, {}))
    progress(Event("batch", 0, 0, 1, 16, {}, images=4))
    assert re.fullmatch(r"\d+ images/s", progress._bar.postfix)
    progress(Event("end", 0, 0, 1, 16, {}))
