"""Rows in host memory, or in a mapped file, on a device piece after piece: the next is under way while one is searched.

    host    copy rows i + 1 to the pinned buffer        wait until it may be written
    side                  copy them to the device       wait until the search has left the buffer there
    current               search piece i                wait until it has arrived

Two lanes of buffers take turns, so that each of the three works on another piece. Devices without streams take the same
steps one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from agmh_fast.ops.arrays import array_to_tensor
from agmh_fast.search.index_file import Rows


def pieces(rows: Rows, width: int, count: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Which rows, and these on the device (n, width) uint8, n <= count, in order.

    A piece holds what was read for as long as it is read on the stream that is current, and until the next but one is
    asked for. Takes 2 · count · width bytes on the device and as many in host memory.
    """
    streams = torch.get_device_module(device)
    current, side = streams.current_stream(device), streams.Stream(device)
    lanes = [_Lane(min(count, len(rows)), width, device, side) for _ in range(min(2, -(-len(rows) // count)))]
    side.wait_stream(current)  # which may be using the memory that the buffers were given
    spans = [slice(start, min(start + count, len(rows))) for start in range(0, len(rows), count)]
    try:
        for number, span in enumerate([*spans, None]):
            if span is not None:
                lanes[number % 2].send(rows[span])
            if number > 0:
                lane = lanes[(number - 1) % 2]
                yield spans[number - 1], lane.receive(current)
                lane.leave(current)
    finally:
        current.wait_stream(side)  # whoever is given the memory of the buffers next comes after the last copy to it


class _Lane:
    """A pinned buffer, one on the device, and the events after which each may be used again."""

    def __init__(self, count: int, width: int, device: torch.device, side: torch.Stream) -> None:
        streams = torch.get_device_module(device)
        self._staged = torch.empty(count, width, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._piece = torch.empty(count, width, dtype=torch.uint8, device=device)
        self._copied, self._left = streams.Event(), streams.Event()
        self._on_side, self._side, self._rows = streams.stream, side, 0

    def send(self, rows: np.ndarray) -> None:
        """Start rows on their way; the host waits only until those before have left the pinned buffer."""
        self._rows = len(rows)
        self._copied.synchronize()
        staged = self._staged[: len(rows)].copy_(array_to_tensor("codes", rows))
        with self._on_side(self._side):
            self._side.wait_event(self._left)
            self._piece[: len(rows)].copy_(staged, non_blocking=True)
            self._copied.record(self._side)

    def receive(self, current: torch.Stream) -> Tensor:
        """The rows on the device, for work that the stream is given from now on."""
        current.wait_event(self._copied)
        return self._piece[: self._rows]

    def leave(self, current: torch.Stream) -> None:
        """All work on the rows has been given to the stream."""
        self._left.record(current)
