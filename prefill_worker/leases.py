"""The KV caches that are held for decode workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.engine.protocol import KvHandle, LeaseOutcome


@dataclass(slots=True)
class LeaseBook:
    """Who holds which lease: exactly those that the engine has opened for living sessions and not closed."""

    closed: dict[LeaseOutcome, int] = field(default_factory=lambda: dict.fromkeys(LeaseOutcome, 0))
    """How many ended in each way."""
    kv_bytes_held: int = 0
    _open: dict[str, tuple[str, KvHandle]] = field(default_factory=dict)

    def open(self, owner: str, kv: KvHandle) -> None:
        self._open[kv.lease_id] = (owner, kv)
        self.kv_bytes_held += kv.kv_bytes

    def close(self, lease_id: str, outcome: LeaseOutcome) -> str | None:
        """The owner; None if the lease was not in the book."""
        owner, kv = self._open.pop(lease_id, (None, None))
        if kv is not None:
            self.closed[outcome] += 1
            self.kv_bytes_held -= kv.kv_bytes
        return owner

    def of(self, owner: str) -> tuple[str, ...]:
        return tuple(lease_id for lease_id, (holder, _) in self._open.items() if holder == owner)

    def __len__(self) -> int:
        return len(self._open)
