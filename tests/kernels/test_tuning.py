"""Measuring tuning data: what is tried, what is kept, and when nothing is measured. A dictionary stands in for time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from agmh_fast.kernels.common import tuning
from agmh_fast.kernels.common.tuning import around, fastest, variants
from agmh_fast.kernels.peak_response import config
from triton.runtime.errors import OutOfResources


@dataclass(frozen=True)
class Tile:
    rows: int
    warps: int


@dataclass(frozen=True)
class Config:
    splits: int
    tile: Tile


DEFAULT = Config(4, Tile(64, 8))


def alternatives(default):
    return {"tile": variants(default.tile, rows=(32, 64, 128), warps=(4,)), "splits": (4, 8, 400)}


class Launcher:
    """Asks for its configuration as launchers do; `seconds` of a configuration replace the time it takes."""

    def __init__(self, seconds, shape=(196, 128)):
        self.seconds, self.shape, self.tried = seconds, shape, []
        self.tensor = torch.empty(2)

    def __call__(self, default=DEFAULT):
        with mock.patch.object(tuning, "milliseconds", self.timer):
            return fastest("kernel", self.shape, self.tensor, default, alternatives, self)

    def timer(self, run):
        self.tried.append(run())
        seconds = self.seconds(self.tried[-1])
        if seconds is None:
            raise OutOfResources(300, 227, "shared memory")
        if isinstance(seconds, Exception):
            raise seconds
        return seconds


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.setattr(tuning, "MODE", "1")
    monkeypatch.setattr(tuning, "_measurable", lambda tensor: True)
    monkeypatch.setattr(tuning, "_chosen", {})


@pytest.mark.usefixtures("measuring")
def test_fields_are_improved_one_after_the_other():
    launcher = Launcher(lambda c: abs(c.tile.rows - 128) + c.tile.warps + abs(c.splits - 8))
    assert launcher() == Config(8, Tile(128, 8))
    # The default first, tiles around the default's, then splits with the best tile; the default's own value not again.
    assert launcher.tried == [
        DEFAULT,
        Config(4, Tile(32, 8)),
        Config(4, Tile(128, 8)),
        Config(4, Tile(64, 4)),
        Config(8, Tile(128, 8)),
        Config(400, Tile(128, 8)),
    ]


@pytest.mark.usefixtures("measuring")
def test_a_choice_is_kept_for_its_shape_dtype_and_default():
    launcher = Launcher(lambda c: c.tile.rows)
    first, count = launcher(), len(launcher.tried)
    assert launcher() == first
    assert len(launcher.tried) == count
    for change in ("shape", "dtype", "default"):
        other = Launcher(lambda c: c.tile.rows, (49, 128) if change == "shape" else launcher.shape)
        other.tensor = launcher.tensor.half() if change == "dtype" else launcher.tensor
        other(Config(2, DEFAULT.tile) if change == "default" else DEFAULT)
        assert other.tried, change


@pytest.mark.usefixtures("measuring")
def test_a_choice_is_kept_for_its_layout_and_a_power_of_two_of_images():
    def measures(*size, last=False):
        launcher = Launcher(lambda c: c.tile.rows)
        launcher.tensor = torch.empty(size).transpose(1, 2) if last else torch.empty(size)
        launcher()
        return bool(launcher.tried)

    assert measures(5, 3, 3)
    assert not measures(8, 3, 3)
    assert measures(9, 3, 3)
    assert measures(8, 3, 4)
    assert measures(8, 3, 3, last=True)
    assert measures(0, 3, 3)


@pytest.mark.usefixtures("measuring")
def test_a_choice_holds_where_nothing_may_be_measured(monkeypatch):
    """In a graph's capture, say: what was chosen before it."""
    launcher = Launcher(lambda c: c.tile.rows)
    chosen = launcher()
    monkeypatch.setattr(tuning, "_measurable", lambda tensor: False)
    assert launcher() == chosen != DEFAULT
    launcher.shape = "another"
    assert launcher() == DEFAULT


@pytest.mark.usefixtures("measuring")
def test_a_pass_of_the_compiler_may_fail():
    launcher = Launcher(lambda c: 1.0 if c == DEFAULT else RuntimeError("PassManager::run failed"))
    assert launcher() == DEFAULT
    assert len(launcher.tried) > 1


def test_sizes_around_another():
    assert [around(size) for size in (64, 16, 0)] == [[32, 128], [32], []]


@pytest.mark.usefixtures("measuring")
def test_what_does_not_fit_is_passed_over():
    assert Launcher(lambda c: None if c.tile.rows == 32 else c.tile.rows + c.splits)() == DEFAULT
    with pytest.raises(OutOfResources):
        Launcher(lambda c: None, "the heuristic's own choice must fit")()


@pytest.mark.usefixtures("measuring")
def test_an_error_is_no_slow_configuration_and_leaves_nothing_behind():
    def seconds(candidate):
        if candidate.splits == 400:
            raise RuntimeError("an illegal memory access was encountered")
        return 1.0

    launcher = Launcher(seconds)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        launcher()
    launcher.seconds = lambda c: -c.splits
    assert launcher().splits == 400


@pytest.mark.usefixtures("measuring")
def test_what_is_printed_is_a_literal(monkeypatch, capsys):
    monkeypatch.setattr(tuning, "MODE", "print")
    best = Launcher(lambda c: c.tile.rows)()
    literal = capsys.readouterr().err.split(": ", 1)[1]
    assert eval(literal, {"Config": Config, "Tile": Tile}) == best == Config(4, Tile(32, 8))


def test_without_the_switch_the_heuristic_stands():
    launcher = Launcher(lambda c: c.tile.rows)
    assert tuning.MODE == "0"
    assert launcher() is DEFAULT
    assert not launcher.tried


def test_on_cpu_tensors_the_heuristic_stands(monkeypatch):
    monkeypatch.setattr(tuning, "MODE", "1")
    launcher = Launcher(lambda c: c.tile.rows)
    assert launcher() is DEFAULT
    assert not launcher.tried


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (torch.cuda, "is_current_stream_capturing", lambda: True),
        (torch, "are_deterministic_algorithms_enabled", lambda: True),
        (tuning.os, "environ", {"TRITON_INTERPRET": "1"}),
    ],
    ids=["capturing", "deterministic", "interpreter"],
)
def test_when_it_is_not_measured(monkeypatch, owner, name, value):
    class OnGPU:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    assert tuning._measurable(OnGPU())
    monkeypatch.setattr(owner, name, value)
    assert not tuning._measurable(OnGPU())


def test_the_switch_is_read_from_the_environment():
    command = "from agmh_fast.kernels.common import tuning; print(tuning.MODE)"
    for given, mode in (("", "0"), ("1", "1"), ("print", "print")):
        environment = {**tuning.os.environ, "AGMH_FAST_AUTOTUNE": given}
        run = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)
        assert run.stdout.strip() == mode, run.stderr


def test_a_run_is_compiled_before_it_is_captured_and_only_replays_count(monkeypatch):
    """By a GPU that is not there: its clock moves by 3 ms a call when calls are made, captured ones when replayed."""
    now, capturing, captured = 0.0, False, 0

    def run():
        nonlocal now, captured
        now, captured = (now, captured + 1) if capturing else (now + 3, captured)

    class Event:
        def __init__(self, enable_timing):
            self.at = None

        def record(self):
            self.at = now

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    class Graph:
        def replay(self):
            nonlocal now
            now += 3 * captured

    @contextlib.contextmanager
    def graph(graph, stream, capture_error_mode):
        nonlocal capturing
        assert now > 0, "what is captured first would be compiled in the capture"
        capturing = True
        yield
        capturing = False

    for name, fake in {"Event": Event, "CUDAGraph": Graph, "graph": graph, "Stream": object}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert tuning.milliseconds(run) == pytest.approx(3)


@pytest.mark.gpu
def test_gpu_measures_a_kernel(monkeypatch):
    monkeypatch.setattr(tuning, "MODE", "1")
    monkeypatch.setattr(tuning, "_chosen", {})
    torch.use_deterministic_algorithms(False)
    features = torch.randn(8, 64, 7, 7, device="cuda", dtype=torch.bfloat16)
    tile = config.choose(features, 16).attend

    def run():
        chosen = fastest("tiles", (7,), features, tile, lambda t: {"warps": (4, 8)}, run)
        return features.sum() * chosen.warps

    run()
    (chosen,) = tuning._chosen.values()
    assert chosen.warps in (tile.warps, 4, 8)
