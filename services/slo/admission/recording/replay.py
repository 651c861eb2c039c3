"""Replays of a recording: events are carried out on a core, and its answers compared with the recorded ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from services.slo.admission.core import AdmissionCore
from services.slo.admission.recording.asked import (
    Assessed,
    Decided,
    GaveRoom,
    PlacedAgain,
    PlanningFailed,
    PromisedKv,
    Submitted,
)
from services.slo.admission.recording.events import Event
from services.slo.admission.recording.snapshots import Requests

ASKED = (PlanningFailed, Decided, Assessed, GaveRoom, PlacedAgain, Submitted, PromisedKv)


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that is not the recorded one."""

    position: int
    """Number of events before it."""
    event: Event
    recorded: object
    replayed: object


class Replay:
    """One pass of a recording through a core."""

    def __init__(self, core: AdmissionCore, requests: Requests | None = None) -> None:
        """Begin with a core that is in the state at which the recording begins.

        Args:
            requests: the admitted requests at that moment.
        """
        self.core = core
        self.requests: Requests = {} if requests is None else requests
        self.events = 0
        """Events carried out so far."""
        self.answers = 0
        """Answers compared so far."""

    def differences(self, events: Iterable[Event]) -> Iterator[Difference]:
        """Carry events out, and yield every answer that differs from the recorded one."""
        for event in events:
            answer = event.happen(self.core, self.requests)
            if isinstance(event, ASKED):
                self.answers += 1
                if answer != event.answer:
                    yield Difference(self.events, event, event.answer, answer)
            self.events += 1
