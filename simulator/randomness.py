"""What is left to chance on an engine: how long a step takes, and which drafts are accepted."""

from __future__ import annotations

import math

import numpy as np

from simulator.machine import Machine

_DRAWS = 4096


class EngineRandomness:
    """Of one engine, the same for the same seed."""

    __slots__ = ("_acceptance", "_at_s", "_drift", "_factors", "_lasts_s", "_level", "_noise", "_rng")

    def __init__(self, machine: Machine, seed: int) -> None:
        self._noise, self._acceptance = machine.noise, machine.acceptance
        self._drift, self._lasts_s = machine.drift, machine.drift_lasts_s
        self._rng = np.random.default_rng(seed)
        self._factors: list[float] = []
        self._at_s = -math.inf
        self._level = 0.0

    def factor(self, now_s: float) -> float:
        """What a step that begins then takes, as a multiple of its mean time: log-normal with mean 1."""
        if not self._factors:
            noise = self._noise
            draws = np.exp(noise * self._rng.standard_normal(_DRAWS) - noise * noise / 2)
            self._factors = draws.tolist()
        factor = self._factors.pop()
        return factor * self._slowness(now_s) if self._drift else factor

    def _slowness(self, now_s: float) -> float:
        """An Ornstein-Uhlenbeck process on a logarithmic scale, `now_s` not before that of the last call."""
        kept = math.exp((self._at_s - now_s) / self._lasts_s)
        self._level = kept * self._level + math.sqrt(1 - kept * kept) * self._rng.standard_normal()
        self._at_s = now_s
        return math.exp(self._drift * self._level - self._drift * self._drift / 2)

    def tokens(self, drafts: int, most: int) -> int:
        """Tokens that a step of so many drafts brings, one by one accepted until one is not; `most` are wanted."""
        accepted = 0
        while accepted < drafts and self._rng.random() < self._acceptance:
            accepted += 1
        return min(1 + accepted, most)
