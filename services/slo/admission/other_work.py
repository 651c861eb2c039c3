"""What a worker tells of the work that it has promised to other routers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OtherDecodes:
    """Requests of one rate that decode on the worker, or will."""

    tpot_s: float | None
    """None: memory is promised to them, but no rate."""
    requests: int
    tokens: int
    """Context tokens that they are promised memory for."""


@dataclass(frozen=True, slots=True)
class OtherPrompts:
    """Prompts of other routers that are still to be computed."""

    due_in_s: float
    """Seconds until the first of them is due; infinite without such a promise."""
    tokens: int


@dataclass(frozen=True, slots=True)
class OtherWork:
    """Everything that a worker has promised to other routers; empty while a router is alone."""

    decodes: tuple[OtherDecodes, ...] = ()
    prompts: tuple[OtherPrompts, ...] = ()
    """Prompts by due time."""

    @property
    def requests(self) -> int:
        """Number of requests that decode, or will."""
        return sum(decodes.requests for decodes in self.decodes)

    @property
    def tokens(self) -> int:
        """Context tokens that those who decode are promised memory for."""
        return sum(decodes.tokens for decodes in self.decodes)


NO_OTHERS = OtherWork()
