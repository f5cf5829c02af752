"""What importing needs, and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import agmh_fast

PACKAGE = Path(agmh_fast.__file__).parent
# Low to high: a module imports from its own folder, or from a lower layer.
LAYERS = (
    {"_version", "errors", "kernels", "reference"},
    {"files", "machine", "recorded", "shares"},
    {"ops"},
    {"functional"},
    {"modules", "search", "metrics", "data", "viz"},
    {"official", "train"},
    {"demo", "selfbench"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def _sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imported(path: Path) -> set[str]:
    """The parts of agmh_fast that a file imports, anywhere in it."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("agmh_fast."):
                parts.add(name.split(".")[1])
    return {part for part in parts if part in LEVEL}


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_below(path):
    part = _part(path)
    assert part in LEVEL, f"{part} has no layer: add it to LAYERS"
    for other in _imported(path) - {part}:
        assert LEVEL[other] < LEVEL[part], f"{path.name} ({part}) imports {other}, which is not below it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "reference").glob("*.py")), ids=lambda path: path.name)
def test_the_reference_imports_nothing_of_ours(path):
    assert _imported(path) <= {"reference"}


def _run(code: str, *absent: str) -> subprocess.CompletedProcess:
    """Run a script in a fresh interpreter in which the modules named are absent."""
    script = f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)


def test_importing_needs_no_triton_no_compiled_module_and_no_plotting():
    code = """
import agmh_fast as af
from agmh_fast import data, functional, metrics, modules, official, reference, search, train, viz, cli
import torch, numpy as np
q, x = np.zeros((2, 6), np.uint8), np.zeros((5, 6), np.uint8)
assert af.functional.hamming_topk(q, x, 3)[1].tolist() == [[0, 1, 2]] * 2
assert af.explain("hamming_topk", torch.from_numpy(q), torch.from_numpy(x)).chosen == "torch"
model = af.AGMH(8, backbone=torch.nn.Conv2d(3, 4, 1), num_descriptors=2, descriptor_dim=3, memory_size=4)
model(torch.randn(2, 3, 4, 4)).attention_dispersion.backward()
for call in (lambda: af.functional.hamming_topk(q, x, 3, impl="cpu"), lambda: af.HammingIndex(bits=48)):
    try:
        call()
    except af.InputError as error:
        assert "compiled module" in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError("needs a compiled module, and did not say so")
"""
    done = _run(code, "triton", "agmh_fast._C", "agmh_fast._engine", "matplotlib", "tensorboard", "faiss")
    assert done.returncode == 0, done.stderr


def test_importing_the_package_is_light():
    done = _run("import agmh_fast, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_every_public_name_resolves():
    for name in agmh_fast.__all__:
        assert getattr(agmh_fast, name) is not None
    assert set(agmh_fast.__all__) <= set(dir(agmh_fast))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = agmh_fast.nonsense
