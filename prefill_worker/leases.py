"""The KV caches that are held for decode workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.engine.kv.handle import KvHandle, LeaseOutcome


@dataclass(slots=True)
class LeaseBook:
    """Who holds which lease: exactly those that the engine has opened for living sessions and not closed."""

    closed: dict[LeaseOutcome, int] = field(default_factory=lambda: dict.fromkeys(LeaseOutcome, 0))
    """How many ended in each way."""
    kv_bytes_held: int = 0
    _open: dict[str, tuple[str, KvHandle]] = field(default_factory=dict)
    _given_up: set[str] = field(default_factory=set)

    def open(self, owner: str, kv: KvHandle) -> None:
        self._open[kv.lease_id] = (owner, kv)
        self.kv_bytes_held += kv.kv_bytes

    def close(self, lease_id: str, outcome: LeaseOutcome) -> str | None:
        """The owner; None if the lease was not in the book."""
        owner, kv = self._open.pop(lease_id, (None, None))
        self._given_up.discard(lease_id)
        if kv is not None:
            self.closed[outcome] += 1
            self.kv_bytes_held -= kv.kv_bytes
        return owner

    def give_up(self, lease_id: str) -> None:
        """Nobody wants it any more; it stays open until the engine closes it."""
        if lease_id in self._open:
            self._given_up.add(lease_id)

    def wanted_blocks(self, owners: frozenset[str]) -> int:
        """KV blocks under leases of these owners that are not given up. Safe to call from another thread."""
        return sum(
            -(-kv.tokens // kv.compatibility.block_tokens)
            for lease_id, (owner, kv) in list(self._open.items())
            if owner in owners and lease_id not in self._given_up
        )

    def of(self, owner: str) -> tuple[str, ...]:
        return tuple(lease_id for lease_id, (holder, _) in self._open.items() if holder == owner)

    def __len__(self) -> int:
        return len(self._open)
