"""One received request until it is admitted or refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from router.requests.events import Refusal, RequestEvents
from router.requests.live_request import LiveRequest
from router.requests.parsed_request import ParsedRequest
from router.requests.planning_log import PlanningLog
from services.rpc.errors import CancelledRequestError, PlanningFailedError, RequestError
from services.telemetry.traces import Trace

log = logging.getLogger(__name__)


class Intake:
    """Context in which a received request is decided about.

    It tells the events that the request was received when it is entered, and that the request was refused when it is
    left with an error before `admit` was called. Every received request is thus either admitted or refused.
    """

    def __init__(
        self, events: RequestEvents, request_id: str, trace: Trace, arrival_s: float, clock: Callable[[], float]
    ) -> None:
        """
        Args:
            request_id: the id that the client gave the request; empty if it gave none.
            arrival_s: when the request came, on `clock`, in seconds.
        """
        self._events = events
        self._request_id = request_id
        self._trace = trace
        self._arrival_s = arrival_s
        self._clock = clock
        self._parsed: ParsedRequest | None = None
        self._planning = PlanningLog()
        self._admitted = False

    def understood(self, parsed: ParsedRequest, planning: PlanningLog) -> None:
        """Note that the request makes sense and that its id is reserved in the journal.

        Args:
            planning: where the rounds that the request takes part in are noted.
        """
        self._parsed, self._planning = parsed, planning

    def admit(self, request: LiveRequest) -> None:
        """Tell the events that the request was admitted."""
        self._admitted = True
        self._events.admitted(request)

    def __enter__(self) -> Self:
        self._events.received()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or self._admitted:
            return
        self._events.refused(
            Refusal(
                error=_as_request_error(error),
                trace=self._trace,
                request_id=self._request_id,
                arrival_s=self._arrival_s,
                refused_s=self._clock(),
                parsed=self._parsed,
                planning=self._planning,
            )
        )


def _as_request_error(error: BaseException) -> RequestError:
    match error:
        case RequestError():
            return error
        case asyncio.CancelledError() | GeneratorExit():
            return CancelledRequestError("the client left before the verdict")
        case _:
            return PlanningFailedError(f"{type(error).__name__} before the verdict")
