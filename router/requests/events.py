"""Every event in the life of a request, told once and passed on to everyone who keeps an account of requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from router.requests.live_request import LiveRequest
from router.requests.parsed_request import ParsedRequest
from router.requests.planning_log import PlanningLog
from router.requests.request_record import RequestRecord
from router.requests.step_log import LoggedStep
from services.rpc.errors import RequestError
from services.telemetry.traces import Trace


@dataclass(frozen=True, slots=True)
class Refusal:
    """A received request that was not admitted, and why. Times are on the router's clock, in seconds."""

    error: RequestError
    trace: Trace
    request_id: str
    """Id that the client gave the request; empty if it gave none."""
    arrival_s: float
    refused_s: float
    parsed: ParsedRequest | None
    """The request as it was understood, its id reserved in the journal; None if it did not get that far."""
    planning: PlanningLog
    """Notes of the planning rounds that the request took part in."""


class RequestObserver:
    """Base of everyone who keeps an account of requests; a subclass overrides the events that it needs.

    A received request is either refused or admitted, and an admitted one ends exactly once. Observers are called on
    the router's event loop and must not block.
    """

    def on_received(self) -> None:
        """A client asked for a generation."""

    def on_refused(self, refusal: Refusal) -> None:
        """A received request was not admitted, or its client left before the verdict."""

    def on_admitted(self, request: LiveRequest) -> None:
        """A received request was admitted."""

    def on_entered(self, request: LiveRequest) -> None:
        """An admitted request entered the state that it is in now; it may have entered the same state before."""

    def on_delivered(self, request: LiveRequest) -> None:
        """Tokens of an admitted request were put into its output buffer."""

    def on_restarted(self, request: LiveRequest) -> None:
        """An attempt at a request failed, and the failure counts towards the limit of restarts."""

    def on_kv_recomputed(self, request: LiveRequest) -> None:
        """A decode worker computed the KV cache of a request again instead of pulling it."""

    def on_ended(self, request: LiveRequest, record: RequestRecord, error: RequestError | None) -> None:
        """An admitted request ended.

        Args:
            record: the request as it will be remembered.
            error: what the client is told, if the request failed.
        """

    def on_worker_lost(self, worker_id: str) -> None:
        """The session to a worker ended although the worker was not draining."""

    def on_round_ended(self, took_s: float) -> None:
        """A planning round ended after `took_s` seconds."""

    def on_stepped(self, worker_id: str, step: LoggedStep) -> None:
        """A worker reported an engine step; its outputs have not been taken yet."""


class RequestEvents:
    """Passes each event on to all observers, in the order in which they were given."""

    def __init__(self, *observers: RequestObserver) -> None:
        self._observers = observers
        ignored = RequestObserver.on_delivered
        self._delivered: list[Callable[[LiveRequest], None]] = [
            observer.on_delivered for observer in observers if type(observer).on_delivered is not ignored
        ]
        """The observers that do something on this event, which comes with every message of tokens."""
        self._stepped: list[Callable[[str, LoggedStep], None]] = [
            observer.on_stepped for observer in observers if type(observer).on_stepped is not RequestObserver.on_stepped
        ]
        """The observers that do something on this event, which comes with every engine step."""

    def received(self) -> None:
        """See `RequestObserver.on_received`."""
        for observer in self._observers:
            observer.on_received()

    def refused(self, refusal: Refusal) -> None:
        """See `RequestObserver.on_refused`."""
        for observer in self._observers:
            observer.on_refused(refusal)

    def admitted(self, request: LiveRequest) -> None:
        """See `RequestObserver.on_admitted`."""
        for observer in self._observers:
            observer.on_admitted(request)

    def entered(self, request: LiveRequest) -> None:
        """See `RequestObserver.on_entered`."""
        for observer in self._observers:
            observer.on_entered(request)

    def delivered(self, request: LiveRequest) -> None:
        """See `RequestObserver.on_delivered`."""
        for tell in self._delivered:
            tell(request)

    def restarted(self, request: LiveRequest) -> None:
        """See `RequestObserver.on_restarted`."""
        for observer in self._observers:
            observer.on_restarted(request)

    def kv_recomputed(self, request: LiveRequest) -> None:
        """See `RequestObserver.on_kv_recomputed`."""
        for observer in self._observers:
            observer.on_kv_recomputed(request)

    def ended(self, request: LiveRequest, record: RequestRecord, error: RequestError | None) -> None:
        """See `RequestObserver.on_ended`."""
        for observer in self._observers:
            observer.on_ended(request, record, error)

    def worker_lost(self, worker_id: str) -> None:
        """See `RequestObserver.on_worker_lost`."""
        for observer in self._observers:
            observer.on_worker_lost(worker_id)

    def round_ended(self, took_s: float) -> None:
        """See `RequestObserver.on_round_ended`."""
        for observer in self._observers:
            observer.on_round_ended(took_s)

    def stepped(self, worker_id: str, step: LoggedStep) -> None:
        """See `RequestObserver.on_stepped`."""
        for tell in self._stepped:
            tell(worker_id, step)
