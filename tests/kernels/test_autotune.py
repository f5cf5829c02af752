"""Launchers that measure their tuning data, without a GPU: they launch what was chosen, choose nothing unless asked to,
and trying leaves nothing behind. A sum over the tuning data stands in for time.
"""

from __future__ import annotations

import pytest
import torch
from agmh_fast.kernels.common import tuning
from agmh_fast.kernels.descriptor import encode, fwd
from attention_cases import relative_error
from descriptor_cases import encode_inputs, narrowed, norm_inputs, normalised
from peak_cases import case, kernels_on_cpu, matmul_precision, peaks_and_gradients
from peak_cases import narrowed as narrowed_peaks
from published_launches import FOLDERS
from triton_compile import recording
from triton_interpreter import interpreting

import agmh_fast.functional as af
from agmh_fast.ops import descriptor

# What only the real call may write.
STATE = ("running_mean", "running_var", "ticket")
TUNED = ("peak_response", "descriptor")


@pytest.fixture
def measuring(monkeypatch):
    """measuring(timer): measure wherever the tensors are, by `timer`, which is given a run and its configuration."""

    def start(timer):
        def milliseconds(run):
            (candidate,) = tuning._trial.__dict__.values()
            return timer(run, candidate)

        monkeypatch.setattr(tuning, "MODE", "1")
        monkeypatch.setattr(tuning, "_measurable", lambda tensor: True)
        monkeypatch.setattr(tuning, "_chosen", {})
        monkeypatch.setattr(tuning, "milliseconds", milliseconds)

    return start


def _warps(config):
    """Warps of all tiles of a configuration."""
    tiles = [value for value in vars(config).values() if hasattr(value, "warps")] or [config]
    return sum(tile.warps for tile in tiles)


def _really(launches):
    """What was launched: names, grids and everything that is tuned."""
    chosen = [{k: v for k, v in x.arguments.items() if k.startswith(("BLOCK", "STAGES"))} for x in launches]
    return [(x.name, x.grid, values, x.options) for x, values in zip(launches, chosen, strict=True)]


@pytest.mark.parametrize("folder", TUNED)
def test_what_is_chosen_is_launched_and_trying_leaves_nothing_behind(measuring, folder):
    with recording() as launches:
        FOLDERS[folder](torch.bfloat16)
    plain = list(launches)
    tried = []

    def few_warps(run, candidate):
        start = len(launches)
        run()
        tried.extend(launches[start:])
        del launches[start:]
        return _warps(candidate)

    measuring(few_warps)
    with recording() as launches:
        FOLDERS[folder](torch.bfloat16)
    assert [x.name for x in launches] == [x.name for x in plain]
    assert {x.name for x in launches if x.options.get("num_warps", 4) > 4} <= {"covariance"}
    assert len([x for x in plain if x.options.get("num_warps", 4) > 4]) >= 5
    assert any(x.arguments.get("running_mean") is not None for x in launches)
    assert not [(x.name, name) for x in tried for name in STATE if x.arguments.get(name) is not None]
    with recording() as again:
        FOLDERS[folder](torch.bfloat16)
    assert _really(again) == _really(launches)


@pytest.mark.parametrize("folder", TUNED)
def test_splits_that_are_chosen_are_launched(measuring, folder):
    """A sum over positions in half as many parts: fewer programs, and every other kernel as before."""
    with recording() as launches:
        FOLDERS[folder](torch.bfloat16)
    plain = list(launches)

    def few_parts(run, candidate):
        return getattr(candidate, "splits", 0)

    measuring(few_parts)
    with recording() as launches:
        FOLDERS[folder](torch.bfloat16)
    fewer = {a.name for a, b in zip(launches, plain, strict=True) if a.grid != b.grid}
    sums = {"peak_response": {"gram", "channel_sums", "weight_gradient"}, "descriptor": {"statistics", "gradient_sums"}}
    assert fewer == sums[folder]
    assert [(x.name, x.options) for x in launches] == [(x.name, x.options) for x in plain]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("mode", ["0", "1"])
def test_the_heuristic_is_launched_unless_it_is_beaten(monkeypatch, measuring, folder, mode):
    """Off, nothing is timed; on, what is no faster is not taken."""
    with recording() as launches:
        FOLDERS[folder](torch.bfloat16)
    plain, timed = _really(launches), []
    measuring(lambda run, candidate: timed.append(candidate) or 1.0)
    monkeypatch.setattr(tuning, "MODE", mode)
    with recording() as launches:
        FOLDERS[folder](torch.bfloat16)
    assert _really(launches) == plain
    assert bool(timed) == (mode == "1" and folder in TUNED)


def _agreeing(band):
    """A timer that runs every configuration and holds its results to the first one's."""
    results = {}

    def timer(run, candidate):
        found = [x for x in run() if x.is_floating_point() and x.numel()]
        (key,) = tuning._trial.__dict__
        for x, expected in zip(found, results.setdefault(key, found), strict=True):
            assert relative_error(x, expected) < band, candidate
        return 1.0

    return timer, results


# Sums in another order, and what they round to in tf32 then and again: ten bits of mantissa.
BAND = 2.0**-10


def test_all_that_is_tried_is_right_and_running_statistics_move_once(measuring):
    features, params = narrowed_peaks(*case((1, 40, 24, 2, 2, 7, 7), torch.float32, True), torch.float32)
    with kernels_on_cpu(), matmul_precision("high"):
        expected = peaks_and_gradients(features, params, "triton")
        timer, tried = _agreeing(BAND)
        measuring(timer)
        actual = peaks_and_gradients(features, params, "triton")
    assert {key[0] for key in tried} == {"peak_response.forward", "peak_response.backward"}
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert not torch.equal(actual["running_mean"], params.running_mean)


def test_all_that_descriptors_try_is_right_and_running_statistics_move_once(monkeypatch, measuring):
    for op in (descriptor.batch_norm_relu_mean, descriptor.encode_descriptors):
        monkeypatch.setitem(op.obstacles, "triton", lambda *args: None)
    inputs, args = norm_inputs(3, 40, 7, 9), narrowed(encode_inputs(3, 70, 7, 7, 300, 12), torch.float32)
    with interpreting(), matmul_precision("high"):
        expected = normalised(inputs, "triton", torch.float32)
        codes, logits = af.encode_descriptors(*args, impl="triton")
        timer, tried = _agreeing(BAND)
        measuring(timer)
        actual = normalised(inputs, "triton", torch.float32)
        again = af.encode_descriptors(*args, impl="triton")
    assert {key[0].split(".")[1] for key in tried} == {"statistics", "forward", "backward", "encode"}
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], logits)


@pytest.mark.gpu
def test_gpu_tuned_statistics_move_once(monkeypatch):
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(tuning, "_chosen", {})
    y, _, _, mean, var = (t.float().cuda() for t in norm_inputs(8, 64, 7, 7))
    running = {mode: (mean.clone(), var.clone()) for mode in ("0", "1")}
    for mode, statistics in running.items():
        monkeypatch.setattr(tuning, "MODE", mode)
        fwd.batch_statistics(y, *statistics, 0.1)
    assert len(tuning._chosen) == 1
    for tuned, plain in zip(*running.values(), strict=True):
        # Another order of a sum of some hundred terms.
        assert relative_error(tuned, plain) < 100 * torch.finfo(torch.float32).eps


@pytest.mark.gpu
def test_gpu_tuned_encoding_gives_the_same_codes(monkeypatch):
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(tuning, "_chosen", {})
    args = tuple(t.cuda() for t in narrowed(encode_inputs(8, 256, 14, 14, 300, 48), torch.bfloat16))
    expected = encode.encode(*args, 1e-5)
    monkeypatch.setattr(tuning, "MODE", "1")
    actual = encode.encode(*args, 1e-5)
    assert len(tuning._chosen) == 1
    assert relative_error(actual[1], expected[1]) < 1e-5
