"""The requests that an engine works on, and the claims that go with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.engine.protocol import EngineRequest

if TYPE_CHECKING:
    from services.engine.kv.handle import KvPull
    from services.engine.vllm.frontend.kv_backend import VllmClaim


@dataclass(slots=True, eq=False)
class LiveRequest:
    """A request between `submit` and its last output."""

    request: EngineRequest
    core_id: str
    """Name of the request inside EngineCore."""
    submitted_at_s: float
    """Time of `submit` on the event loop's clock, which is the monotonic one that EngineCore reads too."""
    scheduled_at_s: float | None = None
    """Time at which EngineCore first scheduled it; None before."""
    claim: VllmClaim | None = None
    """Claim of the KV cache that it pulls, until that is no longer read."""
    pull: KvPull | None = None
    """Transfer that brought its KV cache; None before, or if none did."""
    recompute_reason: str = ""
    """Reason why its KV cache is computed here although one was to be pulled."""
    aborted: bool = False
    """Whether nobody wants its tokens any more."""
    in_core: bool = False
    """Whether EngineCore has it; it has not while its KV cache is being claimed."""
    answered: bool = False
    """Whether its first output has gone out, which carries the timings."""

    def pulled(self, pull: KvPull) -> None:
        """Note that the KV cache is here, so that its exporter need not hold it any longer."""
        self.pull = pull
        self.end_claim()

    def recompute(self, reason: str) -> None:
        """Note that the KV cache is computed here, so that its exporter need not hold it any longer."""
        self.recompute_reason = reason
        self.end_claim()

    def end_claim(self) -> None:
        """End the claim: from now on this request does not read the KV cache of another engine."""
        if self.claim is None:
            return
        if self.pull is not None:
            self.claim.confirm()
        else:
            self.claim.give_back()
        self.claim = None


class LiveRequests:
    """All live requests of an engine, by either of their names."""

    def __init__(self) -> None:
        self._by_request_id: dict[str, LiveRequest] = {}
        self._by_core_id: dict[str, LiveRequest] = {}

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._by_request_id

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(tuple(self._by_request_id.values()))

    def add(self, live: LiveRequest) -> None:
        """Take in a request whose names nobody else has."""
        self._by_request_id[live.request.request_id] = live
        self._by_core_id[live.core_id] = live

    def find(self, request_id: str) -> LiveRequest | None:
        """Return the request of this name; None if it is not live."""
        return self._by_request_id.get(request_id)

    def in_core(self, core_id: str) -> LiveRequest | None:
        """Return the request that has this name inside EngineCore; None if it is not live."""
        return self._by_core_id.get(core_id)

    def forget(self, live: LiveRequest) -> None:
        """Let go of a request that has ended, and of its claim."""
        live.end_claim()
        self._by_request_id.pop(live.request.request_id, None)
        self._by_core_id.pop(live.core_id, None)
