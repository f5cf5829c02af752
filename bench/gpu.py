"""Everything that needs a GPU, stage after stage: build, tests, floors, benches, their report, compute-sanitizer.

    python bench/gpu.py [--out FOLDER] [--only STAGE ...] [--total SECONDS] [--slack FACTOR] [--dry-run]

A stage has a time limit and a log, and one that fails does not stop the next; FOLDER/summary.json has the outcome of
each. The limits come to less than nine minutes. FOLDER is $AGMH_BENCH_OUT, else bench/results/gpu-NAME. Nothing is
downloaded: torch, pytest and pytest-benchmark must be there. Exit status: 0, all stages passed; 1, one failed; 3, none
failed and one could not be run; 2, there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What compute-sanitizer prints where it cannot work; that is neither a pass nor a failure of ours.
UNSUPPORTED = re.compile(r"device not supported|unable to find injection library|not supported on (?:this|the) ", re.I)
TIME = "AGMH_BENCH_SECONDS"
PASSED, FAILED, TIMED_OUT, NOT_RUN = "passed", "failed", "timed out", "not run"


@dataclass(frozen=True)
class Stage:
    """A command with its limit in seconds; `missing` says why it cannot be run at all."""

    name: str
    command: Sequence[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    missing: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a stage ended, after how many seconds, and why it did not pass."""

    name: str
    status: str
    seconds: float = 0.0
    reason: str = ""


def find_sanitizer() -> str | None:
    """compute-sanitizer of CUDA_HOME, PATH, or the usual folders."""
    homes = [Path(os.environ["CUDA_HOME"])] if os.environ.get("CUDA_HOME") else []
    homes += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    tried = [home / folder / "compute-sanitizer" for home in homes for folder in ("bin", "compute-sanitizer")]
    found = [path for path in tried if path.is_file() and os.access(path, os.X_OK)]
    return str(found[0]) if found else shutil.which("compute-sanitizer")


def stages(out: Path, capability: str | None = None) -> list[Stage]:
    """All stages, in order. capability: as "9.0", for a build that is quick because it is for this GPU only."""
    python = sys.executable
    pip = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."]
    arch = {} if capability is None or "TORCH_CUDA_ARCH_LIST" in os.environ else {"TORCH_CUDA_ARCH_LIST": capability}
    bench = [python, "-m", "pytest", "-q", "--full", "--benchmark-columns=median,iqr,rounds"]
    training = [f"bench/test_{name}.py" for name in ("training_kernels", "training_step", "encoding", "loading")]
    sanitizer = find_sanitizer()
    missing = None if sanitizer else "compute-sanitizer is neither in CUDA_HOME nor on PATH nor in /usr/local/cuda*"
    # Each tensor in memory of its own: what lies beyond it is then nobody's, and what was not written is known.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    checks = [
        Stage(
            tool,
            [sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", python, "bench/equivalence.py"],
            30,
            alone,
            missing,
        )
        for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
    ]
    results = [str(out / f"{name}.json") for name in ("hamming", "training-kernels")]
    undrawn = None if importlib.util.find_spec("matplotlib") else "matplotlib, which draws, is not installed"
    # Rows that do not begin within this are left out, so that the file of the others is written before the limit.
    hurry = {TIME: "60"}
    return [
        Stage("build", pip, 95, arch),
        Stage("tests", [python, "-m", "pytest", "-q", "-m", "gpu", "--durations=10"], 120),
        Stage("floors", [python, "bench/floors.py", str(out / "floors.json")], 10),
        Stage("hamming", [*bench, "bench/test_hamming_gpu.py", f"--benchmark-json={results[0]}"], 90, hurry),
        Stage("bench", [*bench, *training, f"--benchmark-json={results[1]}"], 90, hurry),
        Stage("report", [python, "bench/report.py", *results, "--output", str(out)], 10, missing=undrawn),
        *checks,
    ]


def with_slack(stage: Stage, factor: float) -> Stage:
    """The stage with so many times its time."""
    hurry = {key: f"{float(value) * factor:g}" for key, value in stage.environment.items() if key == TIME}
    return replace(stage, limit=stage.limit * factor, environment=stage.environment | hurry)


def run(stage: Stage, out: Path, limit: float) -> Outcome:
    """Run a stage with its output in OUT/NAME.log; it is killed with all its processes at the limit."""
    if stage.missing is not None:
        return Outcome(stage.name, NOT_RUN, reason=stage.missing)
    if limit <= 0:
        return Outcome(stage.name, NOT_RUN, reason="no time left")
    log, start = out / f"{stage.name}.log", time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    seconds = round(time.monotonic() - start, 1)
    if code is None:
        return Outcome(stage.name, TIMED_OUT, seconds, f"after its {limit:.0f} s")
    said = log.read_text(errors="replace")
    if code == 0:
        return Outcome(stage.name, PASSED, seconds)
    if stage.name.endswith("check") and (unsupported := UNSUPPORTED.search(said)):
        return Outcome(stage.name, NOT_RUN, seconds, f"compute-sanitizer: {unsupported[0]}")
    return Outcome(stage.name, FAILED, seconds, f"exit status {code}")


def run_all(chosen: Sequence[Stage], out: Path, total: float) -> int:
    """Run stages for `total` seconds at most; write summary.json after each and return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    end, outcomes = time.monotonic() + total, []
    for stage in chosen:
        print(f"{stage.name}: {shlex.join(stage.command)}", flush=True)
        outcome = run(stage, out, min(stage.limit, end - time.monotonic()))
        outcomes.append(outcome)
        if outcome.status in (FAILED, TIMED_OUT):
            print("".join(f"  {line}\n" for line in _tail(out / f"{stage.name}.log", 30)), end="")
        reason = f": {outcome.reason}" if outcome.reason else ""
        print(f"{stage.name}: {outcome.status} after {outcome.seconds:.0f} s{reason}", flush=True)
        (out / "summary.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
    statuses = {outcome.status for outcome in outcomes}
    return 1 if statuses & {FAILED, TIMED_OUT} else 3 if NOT_RUN in statuses else 0


def _tail(log: Path, count: int) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-count:]


def _gpu() -> tuple[str, str] | None:
    """Name and compute capability of the first GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower(), f"{major}.{minor}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [stage.name for stage in stages(Path())]
    parser.add_argument("--out", type=Path, help="where logs and results go")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE", help=", ".join(names))
    parser.add_argument("--total", type=float, default=float("inf"), help="seconds for all stages together")
    parser.add_argument("--slack", type=float, default=1.0, help="every time limit times this, for slower machines")
    parser.add_argument("--dry-run", action="store_true", help="print the stages and run none")
    options = parser.parse_args(arguments)
    gpu = _gpu()
    if gpu is None and not options.dry_run:
        print("agmh-fast: torch finds no CUDA device here: bench/gpu.py needs one", file=sys.stderr)
        return 2
    name, capability = gpu or ("none", None)
    # Stages run in the repository's root, wherever this was called.
    out = (options.out or Path(os.environ.get("AGMH_BENCH_OUT") or ROOT / f"bench/results/gpu-{name}")).resolve()
    chosen = [with_slack(s, options.slack) for s in stages(out, capability) if s.name in options.only]
    if options.dry_run:
        for stage in chosen:
            settings = "".join(f"{key}={value} " for key, value in stage.environment.items())
            print(f"{stage.name} ({stage.limit:.0f} s): {settings}{shlex.join(stage.command)}")
            if stage.missing is not None:
                print(f"{stage.name}: not run: {stage.missing}")
        return 0
    return run_all(chosen, out, options.total)


if __name__ == "__main__":
    sys.exit(main())
