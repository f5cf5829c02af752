"""What a bench of training is made of: an op at one shape by everyone who can, the exact answer, and its work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import agmh_fast.functional as af

Outputs = Sequence[Tensor]
Named = dict[str, Tensor]

PUBLISHED, COMPILED = "published", "published, torch.compile"


@dataclass(frozen=True)
class Contestant:
    """One way to compute a workload. `weights` are the gradients of the outputs; `common` names what all compute."""

    forward: Callable[[], Outputs]
    leaves: Sequence[Tensor]
    common: Callable[[Outputs, Sequence[Tensor]], Named]
    weights: Sequence[Tensor] | None = None

    def gradients(self, outputs: Outputs) -> Sequence[Tensor]:
        """Of every leaf."""
        return torch.autograd.grad(outputs, self.leaves, self.weights)

    def results(self) -> Named:
        """What all contestants compute, by name."""
        outputs = self.forward()
        grads = self.gradients(outputs) if self.leaves else ()
        return {name: tensor.detach() for name, tensor in self.common(outputs, grads).items()}


@dataclass(frozen=True)
class Workload:
    """A race: its contestants, the exact answer, the error allowed beside twice the baseline's, and the fewest bytes
    that forward and backward move. A band of 0 asks for the exact answer itself of all but the published computation.
    """

    contestants: dict[str, Contestant]
    exact: Callable[[], Named]
    band: float
    forward_bytes: int
    backward_bytes: int = 0
    baseline: str = PUBLISHED
    # Whose products are counted, unless those of "torch".
    counted: Contestant | None = None

    def minimal_bytes(self, direction: str) -> int:
        """The fewest bytes that must move."""
        parts = {"forward": self.forward_bytes, "backward": self.backward_bytes}
        return parts.get(direction, sum(parts.values()))

    def products(self) -> dict[str, int]:
        """Floating-point operations of the collapsed form's products, by direction, as torch counts its operators'."""
        counted = self.counted or self.contestants["torch"]
        with FlopCounterMode(display=False) as forward:
            outputs = counted.forward()
        with FlopCounterMode(display=False) as backward:
            if counted.leaves:
                counted.gradients(outputs)
        parts = {"forward": forward.get_total_flops(), "backward": backward.get_total_flops()}
        return parts | {"both": sum(parts.values())}


def compiled(workload: Workload) -> Contestant:
    """The published computation under torch.compile; it is compiled when it is first called."""
    published = workload.contestants[PUBLISHED]
    return dataclasses.replace(published, forward=torch.compile(published.forward))


def serving(op: str, *args: object) -> list[str]:
    """Implementations of an op that can serve these arguments, less the reference."""
    implementations = af.OPS[op].implementations
    return [name for name in implementations if name != "reference" and af.OPS[op].obstacle(name, *args) is None]
