"""What distinguishes the roles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from services.engine.kv.handle import KvHandle, LeaseOutcome
from services.engine.protocol import EngineFacts, EngineRequest, RequestOutput
from services.state.registry import WorkerRole


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a worker does not take a request."""

    detail: str
    invalid: bool
    """True: no other worker would take it either."""


class RolePolicy(ABC):
    """The part of a worker that depends on its pool. An owner is the session a request came from.

    The defaults are those of a role that exports no KV cache.
    """

    role: WorkerRole

    @abstractmethod
    def admit(self, request: EngineRequest, facts: EngineFacts) -> EngineRequest | Refusal:
        """The request as the engine is to have it, or why it is not taken."""

    @abstractmethod
    def summary(self) -> str:
        """What the worker did, for its last log line."""

    def annotate(self, output: RequestOutput) -> RequestOutput:
        """The output as its router is to have it."""
        return output

    def finished(self, engine_request_id: str) -> None:
        """The engine has let go of a request."""
        return

    def hold(self, owner: str, kv: KvHandle) -> None:
        """A lease begins: the engine holds this KV cache for a router."""
        return

    def lease_closed(self, lease_id: str, outcome: LeaseOutcome) -> str | None:
        """The engine has ended a lease; the owner it was held for, if any."""
        return None

    def leases_of(self, owner: str) -> tuple[str, ...]:
        """The open leases of an owner."""
        return ()

    def given_up(self, lease_id: str) -> None:
        """Its router wants a lease no more; the engine has yet to close it."""
        return

    def leased_blocks(self, owners: frozenset[str]) -> int:
        """KV blocks under leases of these owners that are not given up. Called from any thread."""
        return 0

    @property
    def open_leases(self) -> int:
        return 0
