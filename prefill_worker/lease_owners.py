"""The routers for which KV caches are held."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.engine.kv.handle import KvHandle, LeaseOutcome


@dataclass(slots=True)
class LeaseOwners:
    """The owner of each open lease: exactly those that the engine has opened for living sessions and not closed."""

    closed: dict[LeaseOutcome, int] = field(default_factory=lambda: dict.fromkeys(LeaseOutcome, 0))
    """Number of leases that ended in each way."""
    kv_bytes_held: int = 0
    """Number of bytes under open leases."""
    _open: dict[str, tuple[str, KvHandle]] = field(default_factory=dict)
    _given_up: set[str] = field(default_factory=set)

    def open(self, owner: str, kv: KvHandle) -> None:
        """Note that the engine holds a KV cache for an owner."""
        self._open[kv.lease_id] = (owner, kv)
        self.kv_bytes_held += kv.kv_bytes

    def close(self, lease_id: str, outcome: LeaseOutcome) -> str | None:
        """Note that the engine has ended a lease, and return its owner; None if nobody's lease has this id."""
        owner, kv = self._open.pop(lease_id, (None, None))
        self._given_up.discard(lease_id)
        if kv is not None:
            self.closed[outcome] += 1
            self.kv_bytes_held -= kv.kv_bytes
        return owner

    def give_up(self, lease_id: str) -> None:
        """Note that nobody wants a KV cache any more; its lease stays open until the engine closes it."""
        if lease_id in self._open:
            self._given_up.add(lease_id)

    def wanted_blocks(self, owners: frozenset[str]) -> int:
        """Return the KV blocks under leases of these owners that are not given up. Safe from any thread."""
        return sum(
            kv.blocks
            for lease_id, (owner, kv) in list(self._open.items())
            if owner in owners and lease_id not in self._given_up
        )

    def of(self, owner: str) -> tuple[str, ...]:
        """Return the ids of an owner's open leases."""
        return tuple(lease_id for lease_id, (holder, _) in self._open.items() if holder == owner)

    def __len__(self) -> int:
        return len(self._open)
