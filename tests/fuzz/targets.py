"""What inputs are made for: each target makes an input from a source of random numbers, and sends it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol

Frames = tuple[bytes, ...]
"""An input: one or more messages, documents or lines, as bytes."""


class Target(Protocol):
    """Something that reads what others wrote."""

    name: str
    share: int
    """Share of all inputs, relative to that of the others."""

    def make(self, rng: Random) -> Frames:
        """Return an input. It depends on nothing but `rng`."""
        ...

    async def send(self, frames: Frames, rng: Random) -> str:
        """Send an input, and return in few words how it was answered.

        Args:
            rng: for choices that are the client's, such as when it leaves.

        Raises:
            FaultError: it was answered as no input may be.
        """
        ...


def choose(targets: Sequence[Target], rng: Random) -> Target:
    """Return one target, each as often as its share says."""
    return rng.choices(targets, [target.share for target in targets])[0]
