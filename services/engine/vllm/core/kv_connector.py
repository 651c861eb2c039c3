"""The seam between the scheduler and the KV connector of a backend."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from services.engine.kv.handle import KvPull, LeaseOutcome


@runtime_checkable
class LeasingConnector(Protocol):
    """What the scheduler asks of the scheduler's half of a connector, beside vLLM's own interface."""

    def release(self, request_id: str) -> None:
        """Free the blocks of a finished request with the next step."""
        ...

    def take_outcome(self, request_id: str) -> LeaseOutcome:
        """Return how the lease of a request ended whose blocks are free, and forget it."""
        ...

    def has_news(self) -> bool:
        """Return whether `take_news` would return anything."""
        ...

    def take_news(self) -> tuple[dict[str, KvPull], dict[str, str]]:
        """Return the pulls since the last call, and the reasons why other KV caches are computed here instead.

        Both are keyed by request id.
        """
        ...
