"""Damaged, foreign and hostile files are one clear line, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from agmh_fast import InputError, train
from agmh_fast.train import checkpoint, fit, silent


@pytest.fixture
def folder(data, make_config, tmp_path) -> Path:
    fit(make_config(max_iter=1, max_epoch=1, output=tmp_path), data, progress=silent)
    return tmp_path


def _resume(folder, data, make_config):
    return fit(make_config(max_iter=1, max_epoch=1, output=folder, resume=True), data, progress=silent)


def _require_refused(folder, data, make_config, text):
    with pytest.raises(InputError, match=text) as error:
        _resume(folder, data, make_config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_checkpoint_is_refused(folder, data, make_config, kept):
    path = folder / checkpoint.FILE
    path.write_bytes(path.read_bytes()[:kept])
    _require_refused(folder, data, make_config, "cannot read .*checkpoint.pt")


def test_a_checkpoint_without_a_field_is_refused(folder, data, make_config):
    path = folder / checkpoint.FILE
    values = torch.load(path, weights_only=True)
    del values["codes"]
    torch.save(values, path)
    _require_refused(folder, data, make_config, "cannot read .*codes")


def test_a_checkpoint_of_another_model_is_refused(folder, data, make_config):
    path = folder / checkpoint.FILE
    values = torch.load(path, weights_only=True)
    values["model"]["hash_weight"] = torch.zeros(3, 3)
    torch.save(values, path)
    _require_refused(folder, data, make_config, "model: it does not fit")


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-code-has-run",)


def test_code_in_a_checkpoint_is_not_run(folder, data, make_config, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / checkpoint.FILE).write_bytes(pickle.dumps(_Hostile(), protocol=2))
    _require_refused(folder, data, make_config, "cannot read .*checkpoint.pt")
    torch.save({"config": _Hostile()}, folder / checkpoint.FILE)
    _require_refused(folder, data, make_config, "cannot read .*checkpoint.pt")
    assert not (folder / "hostile-code-has-run").exists()


def test_there_must_be_a_checkpoint_to_resume(data, make_config, tmp_path):
    _require_refused(tmp_path, data, make_config, "there is no checkpoint.pt")


def test_a_checkpoint_goes_on_where_its_device_is_missing(folder, data, make_config):
    path = folder / checkpoint.FILE
    values = torch.load(path, weights_only=True)
    assert '"device": null' in values["config"]
    assert _resume(folder, data, make_config).history == values["history"]


def test_nothing_temporary_is_left(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "checkpoint.pt",
        "events",
        "final.safetensors",
        "result.json",
        "scalars.csv",
    ]


@pytest.mark.parametrize("load", [train.load_run, train.load_codes, train.load_meta])
def test_a_damaged_or_missing_model_is_refused(folder, load):
    with pytest.raises(InputError, match="which must be best or final"):
        load(folder, "last")
    with pytest.raises(InputError, match=r"there is no best\.safetensors"):
        load(folder / "nowhere")
    path = folder / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged"):
        load(folder)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not the model of a run"):
        load(folder)
