"""What callers hand to an index on a device, as the tensors that it reads there: the rules of arguments.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agmh_fast.errors import InputError, require
from agmh_fast.ops.arrays import array_to_tensor
from agmh_fast.ops.codes import check_layout, dtype_name
from agmh_fast.search.arguments import Array, allowed_items, check_padding, id_list, packed_rows
from agmh_fast.search.devices import memory_errors


class DeviceArguments:
    """Tensors are taken where they lie, which must be the index's device; all else is host memory, and copied there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def codes(self, codes: Array, bits: int) -> Any:
        """(n, ceil(bits / 8)) uint8; set padding bits of tensors are the engine's to find."""
        return self._rows("codes", codes, bits)

    def queries(self, queries: Array, bits: int) -> Tensor:
        """As `codes`."""
        return self._rows("queries", queries, bits)

    def ids(self, ids: Array) -> Any:
        """1-D contiguous int64."""
        return self._id_list("ids", ids)

    def allowed(self, mask: Array | None, queries: int) -> tuple[Tensor | None, Any]:
        """(bool mask, None), (None, allowed ids) or (None, None)."""
        if not isinstance(mask, Tensor):
            kept, ids = allowed_items(mask, queries)
            return (
                None if kept is None else self._there("mask", kept),
                None if ids is None else self._there("mask", ids),
            )
        self._here("mask", mask)
        if mask.dtype != torch.bool:
            typed = mask.dtype not in (torch.uint8, torch.int8)
            require(typed, f"mask must be bool, or int64 ids; got {dtype_name(mask)}")
            return None, self._id_list("mask", mask)
        require(mask.dim() in (1, 2), f"mask must be (N,) or (Q, N), got shape {tuple(mask.shape)}")
        fits = mask.dim() == 1 or mask.shape[0] == queries
        require(fits, f"mask must have one row for each of {queries} queries, got {mask.shape[0]}")
        with memory_errors(self._device):
            return mask.contiguous(), None

    def answer(self, queries: Array, parts: Iterable[Tensor]) -> Iterable[Array]:
        """Tensors on the device for tensors, else NumPy arrays."""
        if isinstance(queries, Tensor):
            return parts
        with memory_errors(self._device):
            return [part.cpu().numpy() for part in parts]

    def _rows(self, name: str, codes: Array, bits: int) -> Tensor:
        if isinstance(codes, Tensor):
            return check_layout(name, self._here(name, codes), bits)
        rows = packed_rows(name, codes, bits)
        check_padding(name, rows, bits)
        return self._there(name, rows)

    def _id_list(self, name: str, ids: Array) -> Tensor:
        if not isinstance(ids, Tensor):
            return self._there(name, id_list(name, ids))
        self._here(name, ids)
        require(ids.dim() == 1, f"{name} must be one-dimensional, got shape {tuple(ids.shape)}")
        whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        require(whole or not len(ids), f"{name} must be whole numbers, got {dtype_name(ids)}")
        with memory_errors(self._device):
            numbers = ids.to(torch.int64).contiguous()
            if ids.dtype == torch.uint64 and bool((numbers < 0).any()):
                raise InputError(f"{name} must be below 2**63, got {int(numbers[numbers < 0][0]) + 2**64}")
            return numbers

    def _here(self, name: str, tensor: Tensor) -> Tensor:
        require(tensor.layout == torch.strided, f"{name} must be a dense tensor, got {tensor.layout}; call .to_dense()")
        place = f"{name} is on {tensor.device}, the index on {self._device}: move one of them"
        require(tensor.device == self._device, place)
        return tensor

    def _there(self, name: str, array: np.ndarray) -> Tensor:
        with memory_errors(self._device):
            return array_to_tensor(name, array).to(self._device)


class StreamArguments(DeviceArguments):
    """For an index whose codes stay in host memory: what it is to keep goes there, masks may lie in either."""

    def codes(self, codes: Array, bits: int) -> np.ndarray:
        return packed_rows("codes", self._in_host_memory("codes", codes), bits)

    def ids(self, ids: Array) -> np.ndarray:
        return id_list("ids", self._in_host_memory("ids", ids))

    def allowed(self, mask: Array | None, queries: int) -> tuple[Tensor | None, np.ndarray | None]:
        if isinstance(mask, Tensor) and mask.device.type != "cpu":
            kept, listed = super().allowed(mask, queries)
            return kept, None if listed is None else self._in_host_memory("mask", listed).numpy()
        held, ids = allowed_items(mask, queries)
        return None if held is None else array_to_tensor("mask", held), ids

    def _in_host_memory(self, name: str, values: Array) -> Array:
        """A copy there of a tensor on the index's device; what is not a tensor of a device as it is."""
        if not isinstance(values, Tensor) or values.device.type == "cpu":
            return values
        with memory_errors(self._device):
            return self._here(name, values).cpu()
