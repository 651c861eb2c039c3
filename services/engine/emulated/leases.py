"""Finished prefills whose KV blocks wait for another engine."""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from services.engine.emulated.blocks import KvBlocks
from services.engine.emulated.core import Export
from services.engine.kv.handle import LeaseOutcome

REMEMBERED_OUTCOMES = 1024
"""Closed leases whose outcome can still be told to a late puller."""


class LeaseUnavailableError(Exception):
    """A KV cache cannot be pulled; the message says why."""


@dataclass(slots=True, eq=False)
class Lease:
    """One exported KV cache."""

    lease_id: str
    export: Export
    kv_bytes: int
    pulling: bool = False
    closed: asyncio.Event = field(default_factory=asyncio.Event)


class LeaseTable:
    """Open leases. Each is closed exactly once, by a pull, a release or its expiry, and gives its blocks back then."""

    def __init__(self, blocks: KvBlocks, on_close: Callable[[str, LeaseOutcome], None]) -> None:
        """`on_close` is called after the blocks are free."""
        self._blocks = blocks
        self._on_close = on_close
        self._open: dict[str, Lease] = {}
        self._expiries: dict[str, asyncio.TimerHandle] = {}
        self._outcomes: OrderedDict[str, LeaseOutcome] = OrderedDict()

    def open(self, export: Export, kv_bytes: int, duration_s: float) -> Lease:
        """Hold an export, whose blocks are counted as leased already, for `duration_s` at most."""
        lease = Lease(uuid.uuid4().hex, export, kv_bytes)
        self._open[lease.lease_id] = lease
        self._expiries[lease.lease_id] = asyncio.get_running_loop().call_later(
            duration_s, self.close, lease.lease_id, LeaseOutcome.EXPIRED
        )
        return lease

    def close(self, lease_id: str, outcome: LeaseOutcome) -> None:
        """Unknown and closed leases are ignored."""
        lease = self._open.pop(lease_id, None)
        if lease is None:
            return
        self._expiries.pop(lease_id).cancel()
        self._outcomes[lease_id] = outcome
        if len(self._outcomes) > REMEMBERED_OUTCOMES:
            self._outcomes.popitem(last=False)
        self._blocks.end_lease(lease.export.blocks)
        lease.closed.set()
        self._on_close(lease_id, outcome)

    def begin_pull(self, lease_id: str) -> Lease:
        """Reserve a lease for one puller, until `close` or `end_pull`.

        Raises:
            LeaseUnavailableError: it is closed, unknown, or being pulled by another.
        """
        lease = self._open.get(lease_id)
        if lease is None:
            raise LeaseUnavailableError(self.outcome(lease_id))
        if lease.pulling:
            raise LeaseUnavailableError("the lease is being pulled by another engine")
        lease.pulling = True
        return lease

    def end_pull(self, lease: Lease) -> None:
        """A pull that failed leaves the lease open."""
        lease.pulling = False

    def outcome(self, lease_id: str) -> str:
        """What became of a lease that is not open, in words."""
        outcome = self._outcomes.get(lease_id)
        return "the lease is unknown" if outcome is None else f"the lease was {outcome.value}"

    def shut_down(self) -> None:
        """Forget all leases without a word: the engine is going."""
        for expiry in self._expiries.values():
            expiry.cancel()
        self._expiries.clear()
        self._open.clear()
