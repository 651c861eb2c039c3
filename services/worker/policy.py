"""The part of a worker that depends on its role: prefill or decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import EngineFacts, EngineRequest, RequestOutput
from services.state.registry import WorkerRole


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a worker does not take a request."""

    detail: str
    invalid: bool
    """Whether the request itself is at fault, so that no other worker would take it."""


class RolePolicy(ABC):
    """Decisions of a worker that differ between prefill and decode workers.

    The defaults are those of a role that exports no KV caches. An owner is the key of the session that a request came
    from.
    """

    role: WorkerRole

    @abstractmethod
    def admit(self, request: EngineRequest, facts: EngineFacts) -> EngineRequest | Refusal:
        """Return the request as the engine shall have it, or the reason why it is not taken."""

    @abstractmethod
    def summary(self) -> str:
        """Sum up the worker's life in words, for its last log line."""

    def annotate(self, output: RequestOutput) -> RequestOutput:
        """Return an output as its router shall have it."""
        return output

    def finished(self, engine_request_id: str) -> None:
        """Note that the engine has let go of a request."""
        return

    def hold(self, owner: str, kv: KvHandle) -> None:
        """Note that a lease begins: the engine holds this KV cache for a router."""
        return

    def lease_closed(self, lease_id: str, outcome: LeaseOutcome) -> str | None:
        """Note that the engine has ended a lease, and return the owner that it was held for, if any."""
        return None

    def leases_of(self, owner: str) -> tuple[str, ...]:
        """Return the ids of an owner's open leases."""
        return ()

    def given_up(self, lease_id: str) -> None:
        """Note that a router has given up a lease, which the engine has yet to close."""
        return

    def leased_blocks(self, owners: frozenset[str]) -> int:
        """Count the KV blocks under leases of these owners that are not given up. Any thread may call it."""
        return 0

    @property
    def open_leases(self) -> int:
        """Number of leases that the engine has yet to close."""
        return 0
