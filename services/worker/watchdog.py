"""Detection of an engine that has work but makes no progress."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stall:
    """The time that an engine has had requests without a sign of life, counted by a check at regular intervals."""

    stalled_s: float = 0.0

    def after(self, elapsed_s: float, interval_s: float, *, progressed: bool, requests: int) -> Stall:
        """Return the stall one check later.

        A check that comes late says that this process stood still, not the engine. It counts as two intervals at most.
        """
        if progressed or requests == 0:
            return Stall()
        return Stall(self.stalled_s + min(elapsed_s, 2 * interval_s))


def patience_s(step_timeout_s: float, kv_lease_s: float, open_leases: int) -> float:
    """Return the longest harmless stall in seconds: open leases may hold all KV blocks until they expire."""
    return step_timeout_s + (kv_lease_s if open_leases else 0.0)
