"""What the published datasets have in common: an archive of known layout, and files of lines that list its images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agmh_fast.data.base import RetrievalData
from agmh_fast.data.images import ImageFiles, image_data
from agmh_fast.errors import InputError, require, shown
from agmh_fast.files import as_path


@dataclass(frozen=True)
class Archive:
    """A dataset as it is distributed.

    folders: what its archive unpacks to, and holds in turn, down to the dataset's folder. markers: files of which
    one shows that a folder is that one. layout, source: said to who has not got it. classes, database, query: official
    counts.
    """

    name: str
    folders: tuple[str, ...]
    markers: tuple[str, ...]
    layout: str
    source: str
    classes: int
    database: int
    query: int

    def find(self, root: str | os.PathLike[str] | None) -> Path:
        """The dataset's folder: `root`, or in it; raises InputError that says what was expected."""
        require(root is not None, f"root: dataset {self.name!r} needs its folder; it has {self.layout} ({self.source})")
        folder = as_path(root)  # type: ignore[arg-type]
        places = [folder.joinpath(*self.folders[skip:]) for skip in range(len(self.folders), -1, -1)]
        found = next((place for place in places if any((place / name).is_file() for name in self.markers)), None)
        if found is None:
            # Where it should be, as far as the folders are there.
            raise self.missing(next((place for place in reversed(places) if place.is_dir()), folder) / self.markers[0])
        return found

    def missing(self, path: Path) -> InputError:
        """The error for a file that is not there."""
        return InputError(f"root: {str(path)!r} is missing: {self.name} has {self.layout} ({self.source})")

    def lines(self, path: Path) -> Iterator[tuple[str, str]]:
        """The lines of a file that are not blank, each with its place for a message."""
        for number, line in enumerate(read_text(path, self.missing(path)).splitlines(), 1):
            if line.strip():
                yield line.strip(), f"{str(path)!r}, line {number}"

    def pairs(self, path: Path, from_end: bool = False) -> Iterator[tuple[str, str, str]]:
        """Both words of each line and its place; the second, or with `from_end` the first, may hold spaces."""
        for line, place in self.lines(path):
            words = line.rsplit(maxsplit=1) if from_end else line.split(maxsplit=1)
            require(len(words) == 2, f"root: {place}: expected two words, got {shown(line)}")
            yield words[0], words[1], place

    def check_classes(self, found: int) -> None:
        """Raise InputError unless there are as many classes as there should be."""
        fits = found == self.classes
        require(fits, f"root: {self.name} has {self.classes} classes, {found} were found: is the archive whole?")

    def data(
        self, class_names: Sequence[str], database: ImageFiles, query: ImageFiles, skip_broken: bool
    ) -> RetrievalData:
        """The dataset, without its broken images if that is asked for."""
        self.check_classes(len(class_names))
        return image_data(self.name, class_names, database, query, skip_broken)


def read_text(path: Path, missing: InputError) -> str:
    """A text file; raises `missing` where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise missing from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"root: cannot read {str(path)!r}: {error}") from error


def number(word: str, place: str) -> int:
    """A whole number >= 0 in a file."""
    require(word.isascii() and word.isdigit(), f"root: {place}: expected a whole number, got {shown(word)}")
    return int(word)
