"""The report is one file that is whole, escaped, and fetches nothing."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from agmh_fast.errors import InputError
from agmh_fast.viz import Picture, Section, Table, map_curve, png_bytes, write_report

CURVE = map_curve([{"seconds": 1.0, "map": 0.25}, {"seconds": 2.0, "map": 0.5}])


class Elements(HTMLParser):
    """Every start tag with its attributes, and whether each element that opens also closes, in order."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path: Path) -> str:
    write_report(
        tmp_path / "report.html",
        "Codes & <faces>",
        {"mAP": 0.74123456, "images": 1680, "device": '<script>alert("x")</script>', "GPU": None, "resumed": False},
        [
            Section("Losses", "First.\n\nSecond\nline.", [Picture(CURVE, 'a "rising" curve', "mAP < 1")]),
            Section("Found", "", [Picture(png_bytes(CURVE, 90), "the same again", wide=True)]),
            Section("Words alone", "no picture"),
            Section("Scores", "", tables=[Table("by <rule>", ["ties", "mAP", "why"], [["stable", 0.5, "w" * 30]])]),
        ],
        lead="What was measured.",
        highlights={"mAP": 0.5},
    )
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_pictures_are_embedded_with_their_alt_texts(page: str) -> None:
    images = [attributes for tag, attributes in Elements(page).tags if tag == "img"]
    assert [image["alt"] for image in images] == ['a "rising" curve', "the same again"]
    for image in images:
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(BytesIO(base64.b64decode(data)))
        assert picture.size == (int(str(image["width"])), int(str(image["height"])))
        picture.load()


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    tags = Elements(page).tags
    assert not {"script", "link", "iframe", "base"} & {tag for tag, _ in tags}
    assert not re.search(r"https?://|url\(|@import", page)
    assert all(not str(value).startswith(("//", "/")) for _, attributes in tags for value in attributes.values())


def test_text_is_escaped_and_elements_nest(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in page
    assert "<title>Codes &amp; &lt;faces&gt;</title>" in page
    assert "mAP &lt; 1" in page
    assert Elements(page).open == []


def test_numbers_and_paragraphs_read_well(page: str) -> None:
    cells = dict(re.findall(r'<th scope="row">(.*?)</th><td[^>]*>(.*?)</td>', page))
    assert cells["mAP"] == "0.7412"
    assert cells["images"] == "1,680"
    assert cells["GPU"] == "not measured"
    assert cells["resumed"] == "no"
    assert "<p>First.</p>\n<p>Second line.</p>" in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Losses", "Found", "Words alone", "Scores"]


def test_it_suits_small_screens_and_dark_ones(page: str) -> None:
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert "prefers-color-scheme: dark" in page
    assert '<html lang="en">' in page


def test_a_table_names_its_rows_and_columns_and_scrolls_by_itself(page: str) -> None:
    table = page[page.index("by &lt;rule&gt;") :]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["ties", "mAP", "why"]
    assert f'<th scope="row">stable</th><td>0.5</td><td class="words">{"w" * 30}</td>' in table
    boxes = [attributes for tag, attributes in Elements(page).tags if attributes.get("class") in ("table", "sheet")]
    # Whoever has no pointer scrolls by the keyboard.
    assert [box.get("tabindex") for box in boxes] == ["0", None, "0", "0"]
    assert len(re.findall(r"\.(?:table|sheet) {[^}]*overflow-x: auto", page)) == 2


def test_errors_leave_no_file_behind(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    with pytest.raises(InputError, match="needs an alt text"):
        write_report(target, "t", {}, [Section("s", "", [Picture(CURVE, " ")])])
    with pytest.raises(InputError, match="is not a PNG file"):
        write_report(target, "t", {}, [Section("s", "", [Picture(b"GIF89a", "a gif")])])
    with pytest.raises(InputError, match="no folder"):
        write_report(tmp_path / "missing" / "report.html", "t", {}, [])
    with pytest.raises(InputError, match="every row of 't' must have 2 cells"):
        write_report(target, "t", {}, [Section("s", tables=[Table("t", ["a", "b"], [["only one"]])])])
    assert list(tmp_path.iterdir()) == []
