"""What the index refuses: the message names the argument, and the index stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import agmh_fast as af

pytestmark = pytest.mark.usefixtures("engine")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_devices():
    index = af.HammingIndex(8, device=torch.device("cpu:0"))
    assert index.device == torch.device("cpu")
    index.add(torch.zeros(1, 1, dtype=torch.uint8))
    assert index.to("cpu") is index
    for call in (lambda: af.HammingIndex(8, device="cuda"), lambda: index.to("cuda:1")):
        with pytest.raises(af.InputError, match="no CUDA device"):
            call()
    for device in ("meta", "nowhere", 1.5):
        with pytest.raises(af.InputError, match="device must be"):
            af.HammingIndex(8, device=device)


CODES = np.zeros((2, 6), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: af.HammingIndex(0), "bits must be"),
        (lambda index: af.HammingIndex(4097), "bits must be"),
        (lambda index: index.add(CODES[:, :5]), "codes must have 6 bytes"),
        (lambda index: index.add(CODES.astype(np.int64)), "view its words as bytes"),
        (lambda index: index.add(CODES.tolist()), "codes must be a NumPy array"),
        (lambda index: index.add(CODES[0]), r"codes\[None\]"),
        (lambda index: index.add(CODES + np.uint8(1)), "codes: row 0 has bits set beyond the 45 bits"),
        (lambda index: index.add(CODES, [7]), "ids must have one entry"),
        (lambda index: index.add(CODES, [7, 7]), "7 is given twice"),
        (lambda index: index.add(CODES, [7, -1]), "ids must be from 0"),
        (lambda index: index.add(CODES, [7, 3]), "3 is in the index already"),
        (lambda index: index.add(CODES, [7.0, 8.0]), "whole numbers"),
        (lambda index: index.add(CODES, np.array([1, 2**63], np.uint64)), "below"),
        (lambda index: index.add(CODES, [[7], [8]]), "one-dimensional"),
        (lambda index: index.add(CODES, [[7], [8, 9]]), "ids cannot be read as an array"),
        (lambda index: index.add(CODES, torch.ones(2, dtype=torch.bfloat16)), "ids (cannot|must be whole)"),
        (lambda index: index.add(torch.from_numpy(CODES).to_sparse()), "codes must be a dense tensor"),
        (lambda index: index.remove([5]), "5 is not in the index"),
        (lambda index: index.remove([3, 3]), "3 is given twice"),
        (lambda index: index.search(CODES, 0), "k must be"),
        (lambda index: index.search(CODES, 1.0), "k must be"),
        (lambda index: index.search(CODES, 2**31), "k must be"),
        (lambda index: index.search(CODES + np.uint8(1), 1), "queries: row 0"),
        (lambda index: index.search(CODES, 1, max_distance=-1), "max_distance must be"),
        (lambda index: index.search(CODES, 1, mask=np.ones(4, bool)), "one entry for each of the 5 items"),
        (lambda index: index.search(CODES, 1, mask=np.ones((1, 5), bool)), "one row for each of 2 queries"),
        (lambda index: index.search(CODES, 1, mask=np.ones((2, 5, 1), bool)), "mask must be"),
        (lambda index: index.search(CODES, 1, mask=np.ones(5, np.uint8)), "bool, or int64"),
        (lambda index: index.search(CODES, 1, mask=np.ones(5)), "whole numbers"),
        (lambda index: index.search(CODES, 1, mask=[[1], [2, 3]]), "mask cannot be read as an array"),
        (lambda index: index.range_search(CODES, -1), "radius must be"),
        (lambda index: index.range_search(CODES, None), "radius must be"),
        (lambda index: index.range_search(CODES, 2, mask=np.ones(6, bool)), "one entry for each of the 5 items"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(call, message):
    index = af.HammingIndex(45)
    index.add(np.zeros((5, 6), np.uint8), [0, 1, 3, 4, 9])
    with pytest.raises(af.InputError, match=message) as error:
        call(index)
    assert "\n" not in str(error.value)
    assert index.ids.tolist() == [0, 1, 3, 4, 9]
