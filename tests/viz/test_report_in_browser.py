"""Reports as Chromium shows them, where it is installed: at two widths, in the dark, and without a complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agmh_fast.viz import Picture, Section, Table, bar_chart, map_curve, write_report

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
WIDTHS = {"desktop": 1280, "phone": 390}

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")


def _browse(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--enable-logging=stderr", "--allow-file-access-from-files", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def _measured(page: Path, width: int, *lengths: str) -> list[int]:
    """Lengths of a page in a frame of that width, in pixels: expressions in `page`, its root element."""
    outer = page.with_name("outer.html")
    told = ", ".join(lengths)
    outer.write_text(
        f'<iframe id="inner" src="{page.as_uri()}" style="border: 0" width="{width}" height="900"></iframe>'
        "<p id=lengths></p><script>document.getElementById('inner').onload = event => {"
        "const page = event.target.contentDocument.documentElement;"
        f"document.getElementById('lengths').textContent = 'measured ' + [{told}].join(' ')}}</script>"
    )
    run = _browse(page.parent, "--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom", outer.as_uri())
    found = re.search(r"measured ([\d ]+)", run.stdout)
    assert found is not None, run.stdout + run.stderr
    return [int(length) for length in found[1].split()]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report with everything in it, some of it too wide for a phone."""
    curve = map_curve([{"seconds": 1.0, "map": 0.25}, {"seconds": 2.0, "map": 0.5}])
    bars = bar_chart(
        [(f"bar {number} with a name of some length", 10.0**number) for number in range(4)], "times", log=True
    )
    table = Table(
        "scores", ["row", *(f"column {i}" for i in range(9))], [["a", *range(9)], ["b", "words " * 12, *range(8)]]
    )
    path = tmp_path / "report.html"
    write_report(
        path,
        "A title that is longer than a phone is wide, since it goes on",
        {"a_name_without_a_space_" * 4: 1, "device": "a CPU"},
        [
            Section("Pictures", "Text.", [Picture(curve, "a curve", "a caption"), Picture(bars, "bars", wide=True)]),
            Section("Tables", "", tables=[table]),
        ],
        lead="What was measured.",
        highlights={"mAP": 0.5, "seconds": 12, "items": 1680},
    )
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_screenshot_is_taken_and_nothing_is_complained_of(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    shot = tmp_path / "shot.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    run = _browse(tmp_path, *scheme, f"--window-size={width},1200", f"--screenshot={shot}", page.as_uri())
    assert shot.exists(), run.stderr
    assert "CONSOLE" not in run.stderr
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape[1] == width
    # Paper fills the edge from top to bottom; the title is ink.
    edge = pixels[:, :5]
    assert (edge < 40).all() if dark else (edge > 245).all()
    title = pixels[:100, 20:]
    assert title.max() > 200 if dark else title.min() < 60


@pytest.mark.parametrize("width", [320, *WIDTHS.values()])
def test_the_page_itself_never_scrolls_sideways(page: Path, tmp_path: Path, width: int) -> None:
    needed, given = _measured(page, width, "page.scrollWidth", "page.clientWidth")
    # The scroll bar takes its part of the width.
    assert needed <= given <= width


def test_a_long_text_leaves_the_names_beside_it_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, "Title", {"untrained": 1, "definition": "words " * 40}, [], lead="One line.")
    row, line = _measured(path, 390, "page.querySelector('tr').clientHeight", "page.querySelector('p').clientHeight")
    assert 0 < row < 2 * line


def test_a_complaint_would_be_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><title>bad</title><script>nothing.at.all()</script>")
    run = _browse(tmp_path, f"--screenshot={tmp_path / 'shot.png'}", bad.as_uri())
    assert "CONSOLE" in run.stderr
