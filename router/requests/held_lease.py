"""The lease on a KV cache that a worker holds for one request."""

from __future__ import annotations

from dataclasses import dataclass

from services.engine.kv.handle import KvHandle


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A worker's commitment to hold the KV cache of a request until it is pulled, released or expired."""

    handle: KvHandle
    received_s: float
    """When the handle came, on the router's clock, in seconds; the lease's time runs from there."""

    def remaining_s(self, now_s: float) -> float:
        """Return the seconds until the lease expires; negative once it has."""
        return self.handle.lease_remaining_s - (now_s - self.received_s)
