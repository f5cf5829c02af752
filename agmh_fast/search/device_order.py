"""Work on one device in the order in which it was asked for, whatever streams it was asked for on."""

from __future__ import annotations

import torch
from torch import Tensor


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is captured on the current stream of this device, whichever device is current."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


class Done:
    """The moment when what the current stream of `device` has been given so far is done; at once on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._stream = torch.cuda.current_stream(device)
            self._event = self._stream.record_event()

    def come_after(self, *read: Tensor) -> None:
        """Let the current stream wait for it, and keep the memory of `read` until that stream is done with it.

        The host does not wait. While a CUDA graph is captured nothing is done: what happened before the capture cannot
        be waited for in it.
        """
        if self._device.type != "cuda":
            return
        stream = torch.cuda.current_stream(self._device)
        if stream == self._stream or capturing(self._device):
            return
        stream.wait_event(self._event)
        for tensor in read:
            tensor.record_stream(stream)
