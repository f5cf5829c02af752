"""NumPy in, NumPy out: functions written for tensors take arrays too, without copying where the layout fits."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from agmh_fast.errors import InputError, require

_Function = TypeVar("_Function", bound=Callable[..., Any])


def numpy_in_numpy_out(function: _Function) -> _Function:
    """Decorator: NumPy arguments reach `function` as tensors over the same memory, its tensors come back as arrays.

    Arrays and tensors cannot be mixed in one call. `function` must not write to its arguments: read-only arrays are
    welcome.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(value, np.ndarray) for value in (*args, *kwargs.values())):
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
        for name, value in given.items():
            beside = f"{name} is a torch tensor, {next(iter(arrays))} a NumPy array: give both as one kind"
            require(not isinstance(value, Tensor), beside)
        given.update({name: array_to_tensor(name, array) for name, array in arrays.items()})
        return _to_numpy(function(**given))

    return wrapper  # type: ignore[return-value]


def array_to_tensor(name: str, array: np.ndarray) -> Tensor:
    """A tensor over the memory of `array`, or of a copy where torch has no such layout; never to be written to.

    Raises InputError, naming `name`, for dtypes that torch lacks.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % max(array.itemsize, 1) for stride in array.strides):
        array = array.copy(order="C")  # ascontiguousarray would keep a single row's stride, whatever it is
    try:
        return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))
    except TypeError as error:
        raise InputError(f"{name} has dtype {array.dtype}, which torch does not have; convert it first") from error


class _Writable:
    """The memory of a read-only array without the flag: torch warns about it, and the engine only reads."""

    def __init__(self, array: np.ndarray) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self.owner = array


def _to_numpy(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.numpy()
    if isinstance(result, tuple):
        values = [_to_numpy(value) for value in result]
        return type(result)(*values) if hasattr(result, "_fields") else tuple(values)
    return result
