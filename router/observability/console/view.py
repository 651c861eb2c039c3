"""The router as the console reads it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from router.observability.console.documents import (
    Document,
    lateness_document,
    request_document,
    state_document,
    summaries,
    window_document,
)
from router.observability.history import History
from router.observability.history.history import KEPT_RECORDS
from router.observability.history.windows import KEPT_WINDOWS, WINDOW_S, ClusterSample
from router.requests.live_requests import LiveRequests
from router.requests.request_record import RequestRecord, profile_of, record_of
from services.state.connection import StateUnavailableError
from services.state.journal import RequestJournal
from slos_serve.v1 import inference_pb2

SHOWN = 50
"""Number of requests in a list."""


@dataclass(frozen=True, slots=True)
class RouterView:
    """Makes documents about the router at this moment. It must be used on the router's event loop."""

    state: Callable[[], inference_pb2.ClusterState]
    history: History
    requests: LiveRequests
    clock: Callable[[], float]
    trace_url: str = ""
    journal: RequestJournal | None = None
    """The journal of the whole cluster; None if nothing is to be looked up there."""

    def state_document(self) -> Document:
        """Return the state of the cluster."""
        return state_document(self.state(), time.time(), self.trace_url)

    def live_document(self) -> Document:
        """Return what changes from one second to the next."""
        now_s = self.clock()
        return {
            **self.state_document(),
            "windows": self._windows(now_s - WINDOW_S, now_s),
            **self._lists(),
        }

    def history_document(self, past_s: float) -> Document:
        """Return the windows of the last `past_s` seconds, and the last requests of every kind."""
        now_s = self.clock()
        return {
            "now": time.time(),
            "window_s": WINDOW_S,
            "kept_s": WINDOW_S * KEPT_WINDOWS,
            "windows": self._windows(now_s - past_s, now_s),
            **self._lists(),
        }

    def request_document(self, request_id: str) -> Document | None:
        """Return everything known of a request; None if it is forgotten, or never was."""
        record = self._record(request_id)
        if record is None:
            return None
        late = [lateness_document(one, record.arrival_s, self._promise_of) for one in self.history.latenesses(record)]
        return {**request_document(record, self._unix_offset_s(), self.trace_url), "late": late}

    async def whereabouts(self, request_id: str) -> str:
        """Return what has become of a request of which nothing is remembered here, in words."""
        unknown = "it neither runs on this router nor is it among the last that ended here"
        if self.journal is None:
            return unknown
        try:
            entry = await self.journal.read(request_id)
        except StateUnavailableError:
            return f"{unknown}, and the journal cannot be read"
        if entry is None:
            return f"{unknown}; the journal does not know it, or not any more"
        if entry.router_id != self.state().router_id:
            return f"{unknown}; it is {entry.state.value} on router {entry.router_id}, whose console knows more"
        kept = f"the last {KEPT_RECORDS} of a kind are remembered"
        return f"it is {entry.state.value}, and this router has forgotten more: {kept}"

    def _promise_of(self, request_id: str) -> tuple[str, bool] | None:
        """Return the profile of a request and whether it is guaranteed; None if it is forgotten."""
        live = self.requests.get(request_id)
        if live is not None:
            return profile_of(live.contract), live.guaranteed
        record = self.history.find(request_id)
        return None if record is None else (record.profile, record.guaranteed)

    def sample(self) -> None:
        """Remember how full the cluster is, once in a window."""
        window = self.history.windows.at(self.clock())
        if window.sample is not None:
            return
        state = self.state()
        window.sample = ClusterSample(
            queued=state.queued_requests,
            running=state.running_requests,
            held=state.held_requests,
            kv_blocks_used=sum(worker.kv_blocks_used for worker in state.workers),
            kv_blocks_total=sum(worker.kv_blocks_total for worker in state.workers),
        )

    def _record(self, request_id: str) -> RequestRecord | None:
        live = self.requests.get(request_id)
        if live is not None:
            return record_of(live, self.clock(), lambda _: 0.0)
        return self.history.find(request_id)

    def _windows(self, since_s: float, now_s: float) -> list[Document]:
        offset_s = self._unix_offset_s()
        return [window_document(window, offset_s) for window in self.history.windows.since(since_s, now_s)]

    def _lists(self) -> Document:
        offset_s = self._unix_offset_s()
        return {
            "latest": summaries(self.history.latest(SHOWN), offset_s),
            "trouble": summaries(self.history.trouble(SHOWN), offset_s),
            "refusals": summaries(self.history.refusals(SHOWN), offset_s),
        }

    def _unix_offset_s(self) -> float:
        return time.time() - self.clock()
