"""A disk that is or becomes full: one line, and a run that goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import shutil
from types import SimpleNamespace

import pytest
import torch
from interruptions import files_of_at_most

from agmh_fast import InputError, train
from agmh_fast.train import fit, silent


class FullAt:
    """A progress from whose batch number `step` on no file may grow beyond `size` bytes."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size, self.stack = step, size, contextlib.ExitStack()

    def __call__(self, event: train.Event) -> None:
        if event.kind == "batch" and event.step == self.step:
            self.stack.enter_context(files_of_at_most(self.size))


# With 0 bytes the scalars fail first, with 10 000 the models do.
@pytest.mark.parametrize("size", [0, 10_000])
@pytest.mark.parametrize("step", [3, 8, 16])
def test_a_run_goes_on_after_a_full_disk_bit_for_bit(data, make_config, tmp_path, step, size):
    whole = fit(make_config(output=tmp_path / "whole"), data, progress=silent)
    config = make_config(output=tmp_path / "full")
    full = FullAt(step, size)
    with full.stack, pytest.raises(InputError, match=r"^output: cannot write in .*full': .*; make room") as error:
        fit(config, data, progress=full)
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "full").iterdir() if path.name.startswith(".")]
    resumed = fit(config.replace(resume=True), data, progress=silent)
    assert torch.equal(whole.state.codes, resumed.state.codes)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for which in ("best", "final"):
        assert torch.equal(train.load_codes(tmp_path / "full", which), train.load_codes(tmp_path / "whole", which))


def test_too_little_room_is_told_before_the_run(data, make_config, tmp_path, monkeypatch):
    fit(make_config(output=tmp_path / "run", max_iter=1), data, progress=silent)
    files = [tmp_path / "run" / name for name in ("checkpoint.pt", "best.safetensors", "final.safetensors")]
    written = sum(file.stat().st_size for file in files) + files[0].stat().st_size
    # Headers and the history come on top of what is asked for.
    needed = round(0.9 * written)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed))
    with pytest.raises(InputError, match=r"^output: .* has [\d.]+ [kMG]B free, a run of this size needs .* [kMG]B$"):
        fit(make_config(output=tmp_path / "other", max_iter=1), data, progress=silent)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=written))
    fit(make_config(output=tmp_path / "other", max_iter=1), data, progress=silent)
