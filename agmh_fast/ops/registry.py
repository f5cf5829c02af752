"""Implementations of an op side by side, and how one is chosen.

An op lists its implementations fastest first. Each may give a reason why it cannot serve the arguments at hand;
`impl="auto"` takes the first that has none, and an implementation asked for by name is used or raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agmh_fast.errors import InputError

# Read once: tracing an op must not depend on the environment of the moment.
FORCED = os.environ.get("AGMH_FAST_IMPL") or None

Obstacle = Callable[..., "str | None"]


@dataclass(frozen=True)
class Choice:
    """What `impl="auto"` does for some arguments: the implementation chosen and why the faster ones were not."""

    op: str
    chosen: str
    passed_over: dict[str, str]

    def __str__(self) -> str:
        reasons = "".join(f"; not {name}: {why}" for name, why in self.passed_over.items())
        return f"{self.op}: {self.chosen}{reasons}"


@dataclass
class Op:
    """A named operation with implementations listed fastest first."""

    name: str
    implementations: dict[str, Callable[..., Any]] = field(default_factory=dict)
    obstacles: dict[str, Obstacle] = field(default_factory=dict)

    def register(
        self, impl: str, obstacle: Obstacle | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that adds an implementation; `obstacle(*args, **kwargs)` says why it cannot serve, or None."""

        def add(function: Callable[..., Any]) -> Callable[..., Any]:
            self.implementations[impl] = function
            if obstacle is not None:
                self.obstacles[impl] = obstacle
            return function

        return add

    def obstacle(self, impl: str, *args: Any, **kwargs: Any) -> str | None:
        """Why `impl` cannot serve these arguments, or None if it can."""
        return self.obstacles[impl](*args, **kwargs) if impl in self.obstacles else None

    def explain(self, *args: Any, **kwargs: Any) -> Choice:
        """The choice that `impl="auto"` makes for these arguments."""
        if FORCED is not None:
            return Choice(self.name, self._named(FORCED, *args, **kwargs), {})
        passed_over: dict[str, str] = {}
        for impl in self.implementations:
            reason = self.obstacle(impl, *args, **kwargs)
            if reason is None:
                return Choice(self.name, impl, passed_over)
            passed_over[impl] = reason
        raise InputError(f"{self.name} has no implementation for these arguments: {passed_over}")

    def __call__(self, *args: Any, impl: str = "auto", **kwargs: Any) -> Any:
        if impl == "auto":
            impl = self.explain(*args, **kwargs).chosen
        else:
            self._named(impl, *args, **kwargs)
        return self.implementations[impl](*args, **kwargs)

    def _named(self, impl: str, *args: Any, **kwargs: Any) -> str:
        if impl not in self.implementations:
            raise InputError(
                f"impl={impl!r} is not known to {self.name}; choose from {', '.join(['auto', *self.implementations])}"
            )
        reason = self.obstacle(impl, *args, **kwargs)
        if reason is not None:
            raise InputError(f"impl={impl!r} cannot serve {self.name}: {reason}")
        return impl
