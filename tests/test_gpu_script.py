"""bench/gpu.py without a GPU: which stages there are, that each has its limit, and what the exit status says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench/gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("agmh_gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def python(gpu):
    """A stage that runs a line of Python."""

    def stage(name, code, limit=60.0, **options):
        return gpu.Stage(name, [sys.executable, "-c", code], limit, **options)

    return stage


def _summary(folder):
    return {each["name"]: each for each in json.loads((folder / "summary.json").read_text())}


def test_a_dry_run_lists_every_stage_and_its_files_exist(tmp_path):
    command = [sys.executable, SCRIPT, "--dry-run", "--out", tmp_path / "results"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    listed = [line.split(" (")[0] for line in run.stdout.splitlines() if " s): " in line]
    checks = ["memcheck", "racecheck", "initcheck", "synccheck"]
    assert listed == ["build", "tests", "floors", "hamming", "bench", "report", *checks]
    assert not (tmp_path / "results").exists()
    for word in run.stdout.split():
        if word.startswith("bench/"):
            assert (ROOT / word).is_file(), word


def test_all_stages_fit_nine_minutes_unless_told_otherwise(gpu, tmp_path):
    chosen = gpu.stages(tmp_path)
    assert sum(stage.limit for stage in chosen) < 540
    benches = [stage for stage in chosen if "pytest" in stage.command and "gpu" not in stage.command]
    assert [stage.name for stage in benches] == ["hamming", "bench"]
    for stage in benches:
        # A row that begins in time is given half a minute.
        assert float(stage.environment["AGMH_BENCH_SECONDS"]) <= stage.limit - 30
    for stage, slow in zip(chosen, (gpu.with_slack(stage, 2.5) for stage in chosen), strict=True):
        assert slow.limit == 2.5 * stage.limit
        assert set(slow.environment) == set(stage.environment)
        assert slow.environment.get("AGMH_BENCH_SECONDS") == {"60": "150"}.get(
            stage.environment.get("AGMH_BENCH_SECONDS")
        )


def test_only_the_stages_asked_for(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AGMH_BENCH_OUT", str(tmp_path))
    monkeypatch.setenv("OUT", "/not/for/us")  # a name that other tools set
    assert gpu.main(["--dry-run", "--only", "floors", "bench"]) == 0
    listed = capsys.readouterr().out
    assert [line.split(" (")[0] for line in listed.splitlines()] == ["floors", "bench"]
    assert f"{tmp_path}/floors.json" in listed


def test_without_a_gpu_it_says_so_in_one_line(tmp_path, gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "_gpu", lambda: None)
    assert gpu.main(["--out", str(tmp_path / "results")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_failure_does_not_stop_the_next_stage(gpu, python, tmp_path, capfd):
    chosen = [python("first", "raise SystemExit('went wrong')"), python("second", "print('went well')")]
    assert gpu.run_all(chosen, tmp_path, 60) == 1
    assert [each["status"] for each in _summary(tmp_path).values()] == [gpu.FAILED, gpu.PASSED]
    assert (tmp_path / "second.log").read_text() == "went well\n"
    assert "went wrong" in capfd.readouterr().out


def test_a_stage_is_killed_with_its_children_at_its_limit(gpu, python, tmp_path):
    said = tmp_path / "child"
    code = f"import subprocess; subprocess.run(['sh', '-c', 'echo $$ > {said}; sleep 60; true'])"
    start = time.monotonic()
    assert gpu.run_all([python("slow", code, limit=3.0), python("next", "pass")], tmp_path, 60) == 1
    assert time.monotonic() - start < 30
    assert [each["status"] for each in _summary(tmp_path).values()] == [gpu.TIMED_OUT, gpu.PASSED]
    # Killed with its parent; whoever inherits it may take a moment to bury it.
    status = Path(f"/proc/{said.read_text().strip()}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_what_cannot_be_run_is_neither_passed_nor_failed(gpu, python, tmp_path):
    missing = python("memcheck", "pass", missing="compute-sanitizer is nowhere")
    unsupported = python("racecheck", "print('Error: Device not supported. Exiting'); raise SystemExit(1)")
    assert gpu.run_all([missing, unsupported, python("tests", "pass")], tmp_path, 60) == 3
    found = _summary(tmp_path)
    assert [found[name]["status"] for name in ("memcheck", "racecheck", "tests")] == [
        gpu.NOT_RUN,
        gpu.NOT_RUN,
        gpu.PASSED,
    ]
    assert "nowhere" in found["memcheck"]["reason"]
    assert "Device not supported" in found["racecheck"]["reason"]


def test_stages_beyond_the_total_time_are_not_begun(gpu, python, tmp_path):
    assert gpu.run_all([python("late", "pass")], tmp_path, 0) == 3
    assert _summary(tmp_path)["late"]["reason"] == "no time left"


def test_the_tests_let_cublas_be_deterministic():
    """By tests/conftest.py, so that a plain `pytest -m gpu` has it too."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_all_passed(gpu, python, tmp_path):
    stage = python("tests", "import os; assert os.environ['SETTING'] == '1'", environment={"SETTING": "1"})
    assert gpu.run_all([stage], tmp_path, 60) == 0


def test_the_sanitizer_of_cuda_home_comes_first(gpu, tmp_path, monkeypatch):
    tool = tmp_path / "bin/compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert gpu.find_sanitizer() == str(tool)


def test_the_run_for_the_sanitizer_agrees_on_a_cpu():
    """Every implementation that a CPU has, against the reference."""
    command = [sys.executable, ROOT / "bench/equivalence.py", "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "attention_dispersion, torch" in run.stdout
