"""An admission core that passes on every call it gets, with its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from services.slo.admission.assessment import Assessment, Held, Unservable
from services.slo.admission.core import AdmissionCore
from services.slo.admission.kv_forecasts import LengthForecasts
from services.slo.admission.other_work import NO_OTHERS, OtherWork
from services.slo.admission.patience import RoomGiven
from services.slo.admission.pending import AdmissionRound
from services.slo.admission.recording import asked, told
from services.slo.admission.recording.events import Event
from services.slo.admission.recording.snapshots import RecordedBlocks, RecordedFacts, RequestSnapshot
from services.slo.admission.requests import Arrival, RequestFacts, TrackedRequest
from services.slo.admission.submission import Submission
from services.slo.admission.workers import IDLE, StepTimes, WorkerFacts, WorkerLoad
from services.slo.admission_options import DEFAULT_OPTIONS, AdmissionOptions
from services.slo.latency_forecast import Placement
from services.slo.performance import StepShape
from services.slo.transfer import SHARED_MEMORY_LINK, TransferModel

_NO_STATE = {"_tell", "_names_changed", "_facts", "known"}
"""Attributes of a recording core that its answers do not depend on."""


class RecordingCore(AdmissionCore):
    """Decides as its base does, and tells each call; what has changed of a request is told before it matters to a call.

    Looking for changes costs a few microseconds for each admitted request and each question that depends on them.
    """

    def __init__(
        self,
        tell: Callable[[Event], None],
        options: AdmissionOptions = DEFAULT_OPTIONS,
        *,
        names_changed: Callable[[], None] | None = None,
        link: TransferModel = SHARED_MEMORY_LINK,
        lengths: LengthForecasts | None = None,
        seed: int = 0,
    ) -> None:
        """Make a core that knows no worker and no request.

        Args:
            tell: given every event, in order.
            names_changed: called after a worker joined whose KV blocks have a size that none had, while there are
                requests: the events so far name no blocks of that size, so that a replay can only go on from the state.
        """
        super().__init__(options, link=link, lengths=lengths, seed=seed)
        self._tell = tell
        self._names_changed = names_changed
        self.known: dict[str, RequestSnapshot] = {}
        """Admitted requests as they were told last."""
        self._facts: dict[str, RecordedFacts] = {}
        """What was told of the prompts of admitted requests."""

    def state(self) -> dict[str, object]:
        """Return everything that its answers depend on, by attribute, for `AdmissionCore.restored`."""
        return {name: value for name, value in vars(self).items() if name not in _NO_STATE}

    # Told about workers.

    def joined(self, facts: WorkerFacts, load: WorkerLoad = IDLE, times: StepTimes | None = None) -> None:
        new_size = facts.limits.block_tokens not in self._block_sizes()
        super().joined(facts, load, times)
        self._tell(told.Joined(facts, load))
        if new_size and (self.pending or len(self.requests)):
            self._facts = {request.facts.request_id: self._named(request.facts) for request in self.requests}
            if self._names_changed is not None:
                self._names_changed()

    def left(self, worker_id: str) -> None:
        self._tell(told.Left(worker_id))
        super().left(worker_id)

    def drains(self, worker_id: str) -> None:
        self._tell(told.Drains(worker_id))
        super().drains(worker_id)

    def stepped(
        self,
        worker_id: str,
        shape: StepShape,
        duration_s: float,
        load: WorkerLoad,
        now_s: float,
        others: OtherWork = NO_OTHERS,
    ) -> None:
        self._tell(told.Stepped(worker_id, shape, duration_s, load, now_s, others))
        super().stepped(worker_id, shape, duration_s, load, now_s, others)

    def loaded(self, worker_id: str, load: WorkerLoad, now_s: float, others: OtherWork = NO_OTHERS) -> None:
        self._tell(told.Loaded(worker_id, load, now_s, others))
        super().loaded(worker_id, load, now_s, others)

    # Told about requests.

    def arrived(self, arrival: Arrival) -> None:
        self._tell(self._arrived(arrival))
        super().arrived(arrival)

    def withdrawn(self, request_id: str) -> bool:
        self._tell(told.Withdrawn(request_id))
        return super().withdrawn(request_id)

    def filed(self, request: TrackedRequest) -> None:
        self._tell_of(request)
        self._tell(told.Filed(request.facts.request_id))
        super().filed(request)

    def grew(self, worker_id: str, tokens: int) -> None:
        self._tell(told.Grew(worker_id, tokens))
        super().grew(worker_id, tokens)

    def removed(self, request: TrackedRequest, *, complete: bool) -> None:
        self._tell_of(request)
        self._tell(told.Removed(request.facts.request_id, complete))
        super().removed(request, complete=complete)
        self.known.pop(request.facts.request_id, None)
        self._facts.pop(request.facts.request_id, None)

    def stopping(self, request: TrackedRequest, now_s: float) -> None:
        self._tell_of_all()
        self._tell(told.Stopping(request.facts.request_id, now_s))
        super().stopping(request, now_s)

    def prompt_computed(self, request: TrackedRequest, believed_tokens: int, cached_tokens: int) -> None:
        self._tell_of(request)
        self._tell(told.PromptComputed(request.facts.request_id, believed_tokens, cached_tokens))
        super().prompt_computed(request, believed_tokens, cached_tokens)

    def handed_over(
        self, request: TrackedRequest, kv_bytes: int, transfer_s: float, wait_s: float, now_s: float
    ) -> None:
        self._tell_of_all()
        self._tell(told.HandedOver(request.facts.request_id, kv_bytes, transfer_s, wait_s, now_s))
        super().handed_over(request, kv_bytes, transfer_s, wait_s, now_s)

    def planning_took(self, began_s: float, planning_s: float) -> None:
        self._tell(told.PlanningTook(began_s, planning_s))
        super().planning_took(began_s, planning_s)

    # Asked.

    def decide(self, now_s: float) -> AdmissionRound:
        self._tell_of_all()
        try:
            answer = super().decide(now_s)
        except Exception as error:
            self._tell(asked.PlanningFailed("decide", now_s, type(error).__name__))
            raise
        self._tell(asked.Decided(now_s, _without_texts_of_round(answer)))
        return answer

    def assess(self, arrival: Arrival, now_s: float) -> Assessment | Unservable:
        self._tell_of_all()
        try:
            answer = super().assess(arrival, now_s)
        except Exception as error:
            self._tell(asked.PlanningFailed("assess", now_s, type(error).__name__, self._arrived(arrival)))
            raise
        self._tell(asked.Assessed(self._arrived(arrival), now_s, _without_texts(answer)))
        return answer

    def give_room(self, now_s: float) -> list[RoomGiven]:
        self._tell_of_all()
        try:
            answer = super().give_room(now_s)
        except Exception as error:
            self._tell(asked.PlanningFailed("give_room", now_s, type(error).__name__))
            raise
        given = tuple((room.request.facts.request_id, room.placement) for room in answer)
        self._tell(asked.GaveRoom(now_s, given))
        return answer

    def place_again(self, request: TrackedRequest, now_s: float) -> Placement | Unservable:
        self._tell_of(request)
        self._tell_of_all()
        answer = super().place_again(request, now_s)
        self._tell(asked.PlacedAgain(request.facts.request_id, now_s, answer))
        return answer

    def to_submit(self, worker_id: str, now_s: float) -> Sequence[Submission]:
        if not self.requests.awaiting_count(worker_id):
            return ()
        self._tell_of_all()
        answer = super().to_submit(worker_id, now_s)
        chosen = tuple(
            (submission.request.facts.request_id, submission.believed_cached_tokens) for submission in answer
        )
        self._tell(asked.Submitted(worker_id, now_s, chosen))
        return answer

    def promised_kv_tokens(self, request: TrackedRequest) -> int:
        self._tell_of(request)
        answer = super().promised_kv_tokens(request)
        self._tell(asked.PromisedKv(request.facts.request_id, answer))
        return answer

    def _tell_of_all(self) -> None:
        for request in self.requests:
            self._tell_of(request)

    def _tell_of(self, request: TrackedRequest) -> None:
        """Tell what has changed of a request since it was told of last."""
        request_id, now = request.facts.request_id, RequestSnapshot.of(request)
        known = self.known.get(request_id)
        if known == now:
            return
        self.known[request_id] = now
        if known is None:
            facts = self._facts[request_id] = self.recorded_facts(request.facts)
            self._tell(told.Admitted(facts, now))
        elif known == replace(now, generated_tokens=known.generated_tokens, next_due_s=known.next_due_s):
            self._tell(told.Advanced(request_id, now.generated_tokens, now.next_due_s))
        else:
            self._tell(told.Changed(request_id, now))

    def _arrived(self, arrival: Arrival) -> told.Arrived:
        contract = arrival.contract.without_texts()
        return told.Arrived(self.recorded_facts(arrival.facts), contract, arrival.arrival_s, arrival.task_due_s)

    def recorded_facts(self, facts: RequestFacts) -> RecordedFacts:
        """Return facts without what their prompt is: blocks of the sizes that workers have, under recorded names."""
        return self._facts.get(facts.request_id) or self._named(facts)

    def _block_sizes(self) -> set[int]:
        """Return the sizes of the KV blocks of the workers that are connected, in tokens."""
        return {worker.facts.limits.block_tokens for worker in self.cluster.workers.values()}

    def _named(self, facts: RequestFacts) -> RecordedFacts:
        blocks = {size: tuple(map(str, facts.blocks.of(size))) for size in sorted(self._block_sizes())}
        return RecordedFacts(
            facts.request_id,
            facts.prompt_tokens,
            facts.max_tokens,
            facts.tenant,
            facts.application,
            facts.expected_output_tokens,
            RecordedBlocks({size: names for size, names in blocks.items() if names}),
        )


_Answer = TypeVar("_Answer", Assessment | Unservable, Assessment | Held | Unservable)


def _without_texts(answer: _Answer) -> _Answer:
    """Return an answer whose contract does not show what a client wrote into it."""
    if isinstance(answer, Unservable):
        return answer
    return replace(answer, contract=answer.contract.without_texts())


def _without_texts_of_round(decided: AdmissionRound) -> AdmissionRound:
    verdicts = tuple(replace(verdict, answer=_without_texts(verdict.answer)) for verdict in decided.verdicts)
    return replace(decided, verdicts=verdicts)
