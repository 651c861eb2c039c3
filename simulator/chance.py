"""What is left to chance on an engine: how long a step takes, and which drafts are accepted."""

from __future__ import annotations

import numpy as np

from simulator.machine import Machine

_DRAWS = 4096


class Chance:
    """Of one engine, the same for the same seed."""

    __slots__ = ("_acceptance", "_factors", "_noise", "_rng")

    def __init__(self, machine: Machine, seed: int) -> None:
        self._noise, self._acceptance = machine.noise, machine.acceptance
        self._rng = np.random.default_rng(seed)
        self._factors: list[float] = []

    def factor(self) -> float:
        """What a step takes, as a multiple of its mean time: log-normal with mean 1."""
        if not self._factors:
            noise = self._noise
            draws = np.exp(noise * self._rng.standard_normal(_DRAWS) - noise * noise / 2)
            self._factors = draws.tolist()
        return self._factors.pop()

    def tokens(self, drafts: int, most: int) -> int:
        """Tokens that a step of so many drafts brings, one by one accepted until one is not; `most` are wanted."""
        accepted = 0
        while accepted < drafts and self._rng.random() < self._acceptance:
            accepted += 1
        return min(1 + accepted, most)
