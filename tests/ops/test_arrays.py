"""NumPy arguments: no copies, no warnings, no surprises."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from agmh_fast.errors import InputError
from agmh_fast.ops.arrays import array_to_tensor, numpy_in_numpy_out


@numpy_in_numpy_out
def _both(x, scale=1, *, y=None):
    assert isinstance(x, torch.Tensor)
    return x * scale, None if y is None else x + y


def test_results_follow_the_arguments():
    array = np.arange(3)
    first, second = _both(array, y=array, scale=2)
    assert isinstance(first, np.ndarray)
    assert second.tolist() == [0, 2, 4]
    assert isinstance(_both(torch.arange(3))[0], torch.Tensor)
    with pytest.raises(InputError, match="y is a torch tensor, x a NumPy array"):
        _both(array, y=torch.arange(3))


@pytest.mark.parametrize("readonly", [False, True])
def test_memory_is_shared(readonly):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)[:, :3]
    array.flags.writeable = not readonly
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = array_to_tensor("x", array)
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.tolist() == array.tolist()


def test_memory_outlives_the_array():
    array = np.arange(1 << 16)
    array.flags.writeable = False
    tensor = array_to_tensor("x", array)
    del array
    assert int(tensor.sum()) == (1 << 15) * ((1 << 16) - 1)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6)[::-1],
        np.ones((1, 6))[::-1],
        np.arange(6).astype(">i8"),
        np.zeros(4, [("a", "u1"), ("b", "<i4")])["b"],
        np.zeros((0, 3)),
    ],
)
def test_layouts_that_torch_lacks_are_copied(array):
    assert array_to_tensor("x", array).tolist() == array.tolist()


def test_types_that_torch_lacks_are_refused():
    with pytest.raises(InputError, match="x has dtype object"):
        array_to_tensor("x", np.array([None]))
    with pytest.raises(InputError, match="x has dtype"):
        array_to_tensor("x", np.zeros(2, "V0"))
