"""Random draws of one engine: by how much a step strays from its mean time, and which drafted tokens are accepted."""

from __future__ import annotations

import math

import numpy as np

from simulator.machine import Machine

_DRAWS = 4096
"""Number of factors drawn at once, to call the generator seldom."""


class EngineRandomness:
    """A source of random draws for one engine; the same seed gives the same draws."""

    __slots__ = ("_acceptance", "_at_s", "_drift", "_factors", "_lasts_s", "_level", "_noise", "_rng")

    def __init__(self, machine: Machine, seed: int) -> None:
        self._noise, self._acceptance = machine.noise, machine.acceptance
        self._drift, self._lasts_s = machine.drift, machine.drift_lasts_s
        self._rng = np.random.default_rng(seed)
        self._factors: list[float] = []
        self._at_s = -math.inf
        self._level = 0.0

    def factor(self, now_s: float) -> float:
        """Return how long a step that begins at `now_s` takes, as a multiple of its mean time.

        Each step strays by itself, log-normally with mean 1; with `Machine.drift`, whole stretches of time do as well.
        """
        if not self._factors:
            noise = self._noise
            draws = np.exp(noise * self._rng.standard_normal(_DRAWS) - noise * noise / 2)
            self._factors = draws.tolist()
        factor = self._factors.pop()
        return factor * self._slowness(now_s) if self._drift else factor

    def _slowness(self, now_s: float) -> float:
        """Return by how much steps are slower at `now_s` than usual: an Ornstein-Uhlenbeck process, exponentiated.

        Args:
            now_s: not before that of the last call.
        """
        kept = math.exp((self._at_s - now_s) / self._lasts_s)
        self._level = kept * self._level + math.sqrt(1 - kept * kept) * self._rng.standard_normal()
        self._at_s = now_s
        return math.exp(self._drift * self._level - self._drift * self._drift / 2)

    def tokens(self, drafts: int, most: int) -> int:
        """Draw how many tokens a step brings that verifies `drafts` drafted ones.

        Those before the first rejected one are accepted, and the step brings one more.

        Args:
            most: tokens that the request still wants.
        """
        accepted = 0
        while accepted < drafts and self._rng.random() < self._acceptance:
            accepted += 1
        return min(1 + accepted, most)
