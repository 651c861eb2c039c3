"""Whether an engine that has work still does it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stall:
    """How long an engine has had requests without a sign of life, as counted by a regular check."""

    stalled_s: float = 0.0

    def after(self, elapsed_s: float, interval_s: float, *, progressed: bool, requests: int) -> Stall:
        """The stall one check later.

        A check that comes late says that this process stood still, not the engine, so it counts as two at most.
        """
        if progressed or requests == 0:
            return Stall()
        return Stall(self.stalled_s + min(elapsed_s, 2 * interval_s))


def patience_s(step_timeout_s: float, kv_lease_s: float, open_leases: int) -> float:
    """How long a stall may be harmless: open leases may hold all blocks until they expire."""
    return step_timeout_s + (kv_lease_s if open_leases else 0.0)
