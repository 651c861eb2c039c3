"""The lease table: who may read which exported KV cache, until when, and how each lease ended."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.engine.kv.handle import LeaseOutcome
from services.engine.kv.lease_secret import proves

OfferT = TypeVar("OfferT")

REMEMBERED_OUTCOMES = 1024
"""Number of closed leases whose end can still be told to a late claimant."""
CONFIRM_WAIT_S = 5.0
"""Seconds that a claimant may take to confirm once it has everything. One that has died says nothing at all."""
UNKNOWN = "the lease is unknown"
"""Refusal of a claim whose lease does not exist, or whose secret is not the lease's: a stranger cannot tell which."""

_ENDS = {
    LeaseOutcome.PULLED: "the lease was pulled",
    LeaseOutcome.RELEASED: "the lease was released",
    LeaseOutcome.EXPIRED: "the lease has expired",
}


class LeaseUnavailableError(Exception):
    """A lease cannot be claimed; the message says why."""


class UnknownLeaseError(LeaseUnavailableError):
    """There is no such lease, or the secret is not its own: whoever asks was not given its handle."""


@dataclass(slots=True, eq=False)
class Lease(Generic[OfferT]):
    """One exported KV cache that is held for another engine."""

    lease_id: str
    secret: str = field(repr=False)
    """Secret that a claimant has to show."""
    offer: OfferT
    """What the engine holds, in its own terms."""
    until_s: float
    """Time at which the lease ends, on the clock of the table's owner."""
    claimed: bool = False
    """Whether an engine may be reading the KV cache."""


@dataclass(frozen=True, slots=True)
class _Closed:
    """One lease that has ended, of which whoever holds its secret is told how."""

    secret: str = field(repr=False)
    outcome: LeaseOutcome


class LeaseTable(Generic[OfferT]):
    """The open leases of one engine.

    A lease is open, and claimed by one engine at most, until it is closed: by the pull, by a release, by its end. The
    table only decides; whoever calls it frees the blocks of each lease that a method returns as ended.
    """

    def __init__(self, engine_epoch: str, margin_s: float, *, one_sided: bool) -> None:
        """
        Args:
            margin_s: seconds; a lease with no more than this left is not granted.
            one_sided: whether a claimant reads without the exporter's help; see `KvExporter.one_sided`.
        """
        self._engine_epoch = engine_epoch
        self._margin_s = margin_s
        self._one_sided = one_sided
        self._open: dict[str, Lease[OfferT]] = {}
        self._closed: OrderedDict[str, _Closed] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, lease_id: str, secret: str, offer: OfferT, until_s: float) -> None:
        """Hold a KV cache for whoever claims it first with its secret."""
        self._open[lease_id] = Lease(lease_id, secret, offer, until_s)

    def claim(self, lease_id: str, secret: str, engine_epoch: str | None, now_s: float) -> Lease[OfferT]:
        """Grant a lease to one claimant, until `end_claim`.

        Args:
            secret: what the claimant shows. Without the lease's own it learns nothing, not even whether the lease
                exists.
            engine_epoch: start of the exporting engine that the claimant means; None if its handle need not say.

        Raises:
            UnknownLeaseError: it does not exist, or has another secret.
            LeaseUnavailableError: it is of another start of the engine, closed, claimed, or about to end.
        """
        if engine_epoch is not None and engine_epoch != self._engine_epoch:
            raise LeaseUnavailableError("the lease belongs to an engine that is gone")
        lease = self._open.get(lease_id)
        known = lease or self._closed.get(lease_id)
        if known is None or not proves(secret, known.secret):
            raise UnknownLeaseError(UNKNOWN)
        if lease is None:
            raise LeaseUnavailableError(self.outcome(lease_id))
        if lease.claimed:
            raise LeaseUnavailableError("the lease is claimed by another engine")
        remaining_s = lease.until_s - now_s
        if remaining_s <= self._margin_s:
            raise LeaseUnavailableError(f"the lease has {remaining_s:.3f} s left")
        lease.claimed = True
        return lease

    def end_claim(self, lease: Lease[OfferT], *, confirmed: bool) -> LeaseOutcome | None:
        """Decide what becomes of a lease whose claimant has confirmed its pull, given up, died or fallen silent.

        Returns:
            How the lease has ended by this; None if it goes on, or had ended before.
        """
        if self._open.get(lease.lease_id) is not lease:
            return None
        if not self._one_sided:
            lease.claimed = False
            return self._close(lease, LeaseOutcome.PULLED) if confirmed else None
        # The confirmation of a one-sided read reaches the engine over the fabric, and the engine closes the lease. An
        # unconfirmed one may still be going on, so that nobody else can be granted the lease.
        return None if confirmed else self._close(lease, LeaseOutcome.RELEASED)

    def release(self, lease_id: str) -> Lease[OfferT] | None:
        """Give a lease up without a pull.

        Returns:
            The lease if it has ended by this; None if it is unknown, or if somebody may be reading whom nothing can
            stop: then the end of the claim ends the lease.
        """
        lease = self._open.get(lease_id)
        if lease is None or (lease.claimed and self._one_sided):
            return None
        self._close(lease, LeaseOutcome.RELEASED)
        return lease

    def closed(self, lease_id: str, outcome: LeaseOutcome) -> None:
        """Note that the engine has ended a lease by itself. Unknown and closed leases are ignored."""
        lease = self._open.get(lease_id)
        if lease is not None:
            self._close(lease, outcome)

    def expire(self, now_s: float) -> list[Lease[OfferT]]:
        """End the leases whose time is over, and return them."""
        over = [lease for lease in self._open.values() if lease.until_s <= now_s]
        for lease in over:
            self._close(lease, LeaseOutcome.EXPIRED)
        return over

    def next_expiry_s(self) -> float | None:
        """Return when the first of the open leases ends; None if there is none."""
        return min((lease.until_s for lease in self._open.values()), default=None)

    def confirmation_due_s(self, lease: Lease[OfferT], now_s: float) -> float:
        """Return until when a claimant is waited for that can have read everything by `now_s` or begins to read now.

        One that falls silent must not hold the blocks longer than the lease lasts.
        """
        return lease.until_s if self._one_sided else min(lease.until_s, now_s + CONFIRM_WAIT_S)

    def outcome(self, lease_id: str) -> str:
        """Return in words what became of a lease that is not open."""
        closed = self._closed.get(lease_id)
        return UNKNOWN if closed is None else _ENDS[closed.outcome]

    def _close(self, lease: Lease[OfferT], outcome: LeaseOutcome) -> LeaseOutcome:
        del self._open[lease.lease_id]
        self._closed[lease.lease_id] = _Closed(lease.secret, outcome)
        if len(self._closed) > REMEMBERED_OUTCOMES:
            self._closed.popitem(last=False)
        return outcome
