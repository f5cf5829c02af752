"""Every code block of README, docs and notes runs; one that needs what a test has not says so, and is at least real.

A comment `<!-- needs: … -->` before a block says what: a package, or one of `OUT_OF_REACH`. The blocks of a page run in
order and in one folder. Python blocks share their names until one imports agmh_fast, which starts afresh. In shell
blocks `agmh-fast` runs, or is parsed by its own parser; of other commands the files and make targets must exist.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import socket
import textwrap
import types
from pathlib import Path
from typing import NamedTuple

import pytest

from agmh_fast.cli import _parser, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*.md", "kernels/**/*.md", "csrc/**/*.md", "release/*.md")
    for path in ROOT.glob(pattern)
)
OUT_OF_REACH = {"a dataset", "a GPU", "a minute", "the network", "Clang"}
_BLOCK = re.compile(
    r"^(?:[ ]*<!-- needs: (?P<needs>[^\n]+?) -->\n)?"
    r"(?P<indent>[ ]*)```(?P<language>python|sh)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    line: int
    needs: str | None
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    page = path.read_text()
    found = [(page.count("\n", 0, match.start("text")), match) for match in _BLOCK.finditer(page)]
    return [Block(line, match["needs"], match["language"], textwrap.dedent(match["text"])) for line, match in found]


@pytest.fixture
def _rank_of_one(monkeypatch):
    """What torchrun gives a process that is alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    yield
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("_rank_of_one")
@pytest.mark.parametrize(
    "path", [path for path in PAGES if blocks(path)], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_the_blocks_of_a_page_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(path):
        runs = block.needs not in OUT_OF_REACH and (block.needs is None or _installed(block.needs))
        if block.language == "sh":
            _shell(block, f"{path.name}, line {block.line + 1}")
            continue
        # Line numbers in tracebacks are those of the page.
        code = compile("\n" * block.line + block.text, path.name, "exec")
        if re.search(r"^(import|from) agmh_fast\b", block.text, re.MULTILINE):
            names = {}
        if runs:
            exec(code, names)


def _installed(package: str) -> bool:
    assert re.fullmatch(r"\w+", package), f"needs: {package} is neither a package nor one of {OUT_OF_REACH}"
    return importlib.util.find_spec(package) is not None


def _shell(block: Block, where: str) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "torchrun" and "agmh_fast" in words:
            program, words = "agmh-fast", words[words.index("agmh_fast") + 1 :]
            assert block.needs, f"{where}: say what it needs"
        if program == "agmh-fast":
            if block.needs is None:
                assert main(words) == 0, f"{where}: {line}"
            else:
                _parser(words).parse_args(words)
        elif program == "make":
            targets = [word for word in words if "=" not in word]
            rules = (ROOT / "Makefile").read_text()
            assert all(re.search(rf"^{target}:", rules, re.MULTILINE) for target in targets), f"{where}: {line}"
        elif program in ("python", "torchrun"):
            scripts = [word for word in words if word.endswith(".py")]
            assert all((ROOT / script).is_file() for script in scripts), f"{where}: {line}"
            assert scripts or "-m" in words, f"{where}: {line}"
        elif program:
            assert block.needs, f"{where}: {program} is run by no test: say what it needs"


def test_there_are_pages_to_run():
    assert sum(block.needs is None for path in PAGES for block in blocks(path)) > 10


def test_every_page_is_in_the_table_of_contents():
    index = ROOT / "docs" / "index.md"
    contents = re.findall(r"^```{toctree}\n.*?\n\n(.*?)```$", index.read_text(), re.DOTALL | re.MULTILINE)
    lines = [re.sub(r".*<(.*)>", r"\1", line) for part in contents for line in part.splitlines()]
    listed = {(index.parent / f"{line}.md").resolve() for line in lines}
    assert listed == set(PAGES) - {index}, "docs/index.md"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_public_name_is_in_the_api_pages():
    import agmh_fast

    documented, module = set(), agmh_fast
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        for kind, name in re.findall(r"^\.\. (\w+):: ([\w.]+)$", page.read_text(), re.MULTILINE):
            if kind in ("currentmodule", "automodule"):
                module = importlib.import_module(name)
            names = getattr(module, "__all__", []) if kind == "automodule" else [name]
            documented |= {id(getattr(module, each)) for each in names} if kind != "currentmodule" else set()
    public = [agmh_fast, *(importlib.import_module(f"agmh_fast.{name}") for name in agmh_fast._MODULES)]
    missing = [
        f"{module.__name__}.{name}"
        for module in public
        for name in getattr(module, "__all__", [])
        if not isinstance(getattr(module, name), types.ModuleType | str) and id(getattr(module, name)) not in documented
    ]
    assert not missing
