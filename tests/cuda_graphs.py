"""Capturing a step as a CUDA graph, for tests that need a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def capture(
    step: Callable[[], Result], warm_up: Callable[[], object] | None = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The graph of a call of `step` and what it returned: tensors that every replay writes anew. `warm_up`, or else
    `step`, is called first, on a stream of its own.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            (warm_up or step)()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    return graph, captured
