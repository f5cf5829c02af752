"""Datasets by name."""

from __future__ import annotations

import pytest

from agmh_fast.data import DATASETS, load
from agmh_fast.errors import InputError


def test_a_dataset_is_made_by_name_with_its_options() -> None:
    data = load("fonts", words_per_class=2, queries_per_class=1, size=32)
    assert data.name == "fonts"
    assert len(data.database) == 2 * len(data.class_names)
    assert len(data.query) == len(data.class_names)


def test_unknown_names_and_options_are_refused_with_what_exists() -> None:
    with pytest.raises(InputError, match=r"dataset 'birds' is not known: choose one of .*fonts"):
        load("birds")
    with pytest.raises(InputError, match="dataset 'fonts' takes no root: its options are seed, size"):
        load("fonts", root="somewhere")
    with pytest.raises(InputError, match="dataset 'fonts' takes no crop"):
        load("fonts", crop=3)
    assert "fonts" in DATASETS
