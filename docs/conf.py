"""Sphinx's settings. The source folder is the repository: pages lie where they are read on their own, and nothing is
copied, so that a link works here and there.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import agmh_fast

project = "agmh_fast"
copyright = "the authors, Apache-2.0"
version = release = agmh_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
include_patterns = ["*.md", "docs/**.md", "kernels/**.md", "csrc/**.md", "examples/README.md", "release/README.md"]
root_doc = "docs/index"

html_theme = "furo"
html_title = f"agmh_fast {version}"
html_extra_path = ["start"]
html_show_sphinx = False
html_copy_source = False
smartquotes = False  # x' is a derivative, not a quotation

# Docstrings and pages are written with single backticks.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
myst_heading_anchors = 3


def _plain(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks; what else reStructuredText would take for markup is text.

    Settings that say what they are (`agmh_fast.train.TrainConfig`) are listed.
    """
    if dataclasses.is_dataclass(obj):
        settings = [field for field in dataclasses.fields(obj) if "help" in field.metadata]
        lines += ["", *(f"- `{field.name}`: {field.metadata['help']}" for field in settings)]
    parts = re.split(r"(`[^`]*`)", "\n".join(lines))
    parts[::2] = [re.sub(r"([*|\\_])", r"\\\1", part) for part in parts[::2]]
    # Of code only names may become links.
    parts[1::2] = [part if re.fullmatch(r"`[A-Za-z][\w.]*`", part) else f"`{part}`" for part in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _plain)
