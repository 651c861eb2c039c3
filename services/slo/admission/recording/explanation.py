"""What a recording says of one request, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import singledispatch

from services.slo.admission.assessment import Assessment, Held, Unservable
from services.slo.admission.pending import Outcome
from services.slo.admission.recording.asked import Decided, GaveRoom, PlacedAgain, Submitted
from services.slo.admission.recording.events import Event
from services.slo.admission.recording.told import Admitted, Arrived, Changed, HandedOver, Removed, Withdrawn
from services.slo.admission.requests import Progress
from services.slo.contract import Contract
from services.slo.latency_forecast import Placement
from services.slo.planner import Binding


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened to a request."""

    at_s: float
    """When, on the clock of the recording; of what has no time of its own, when the event before it was."""
    text: str
    came: bool
    """Whether it is the arrival of the request."""


def explain(events: Iterable[Event], request_id: str) -> Iterator[Line]:
    """Yield what happened to a request, and what every round said of it and why."""
    at_s = 0.0
    for event in events:
        at_s = getattr(event, "now_s", event.arrival_s if isinstance(event, Arrived) else at_s)
        for text in texts(event, request_id):
            yield Line(at_s, text, isinstance(event, Arrived))


@singledispatch
def texts(event: Event, request_id: str) -> Iterator[str]:  # noqa: ARG001 - what no overload knows says nothing
    """Yield what an event says of a request."""
    yield from ()


@texts.register
def _(event: Arrived, request_id: str) -> Iterator[str]:
    if event.facts.request_id == request_id:
        yield f"came: {event.facts.prompt_tokens} prompt tokens, {_wanted(event.contract)}"


@texts.register
def _(event: Decided, request_id: str) -> Iterator[str]:
    for verdict in event.answer.verdicts:
        if verdict.request_id == request_id:
            round_ = f"round {event.answer.number}, {_count(len(event.answer.verdicts))}"
            yield f"{round_}: {_verdict(verdict.outcome, verdict.answer)}"


@texts.register
def _(event: Submitted, request_id: str) -> Iterator[str]:
    cached = dict(event.answer)
    if request_id in cached:
        tokens = cached[request_id]
        yield f"sent to {event.worker_id}" + (f", {tokens} of its tokens thought to be cached" if tokens else "")


@texts.register
def _(event: GaveRoom, request_id: str) -> Iterator[str]:
    for given, placement in event.answer:
        if given == request_id:
            yield f"outwaited its patience and was given room {_where(placement)}"


@texts.register
def _(event: PlacedAgain, request_id: str) -> Iterator[str]:
    if event.request_id == request_id:
        answer = event.answer
        if isinstance(answer, Placement):
            yield f"placed again {_where(answer)}"
        else:
            yield f"could not be placed again: {answer.value}"


@texts.register
def _(event: HandedOver, request_id: str) -> Iterator[str]:
    if event.request_id == request_id:
        moved = f"{event.kv_bytes / 1e6:.1f} MB in {event.transfer_s * 1e3:.1f} ms"
        yield f"handed over: {moved}, first step after {event.wait_s * 1e3:.1f} ms"


@texts.register
def _(event: Admitted, request_id: str) -> Iterator[str]:
    if event.facts.request_id == request_id:
        yield "admitted" if event.now.guaranteed else "admitted without a guarantee"


@texts.register
def _(event: Changed, request_id: str) -> Iterator[str]:
    if event.request_id == request_id and event.now.progress is Progress.DECODING:
        yield f"decodes on {event.now.decode_worker_id}"


@texts.register
def _(event: Removed, request_id: str) -> Iterator[str]:
    if event.request_id == request_id:
        yield "ended by itself" if event.complete else "was cut off"


@texts.register
def _(event: Withdrawn, request_id: str) -> Iterator[str]:
    if event.request_id == request_id:
        yield "was not decided about any more"


def _count(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


def _wanted(contract: Contract) -> str:
    if not contract.promises_anything:
        return "no contract"
    wanted = []
    if contract.prefill is not None:
        prefill = contract.prefill
        seconds = prefill.ttft_s
        wanted.append(f"slowdown {prefill.max_slowdown:g}" if seconds is None else f"TTFT {seconds * 1e3:.0f} ms")
    wanted += [f"TPOT {target.tpot_s * 1e3:.0f} ms" for target in contract.decode]
    return ", ".join(wanted)


def _where(placement: Placement) -> str:
    if placement.local:
        return f"on {placement.decode_worker_id}"
    return f"on {placement.prefill_worker_id}, then {placement.decode_worker_id}"


def _verdict(outcome: Outcome, answer: Assessment | Held | Unservable) -> str:
    if isinstance(answer, Unservable):
        return f"refused, because {answer.value}"
    because = "" if answer.binding is Binding.NONE else f", {answer.binding.value} forbids a guarantee"
    if isinstance(answer, Held):
        return f"held{because}; room expected in {answer.earliest_guarantee_s * 1e3:.0f} ms"
    if outcome is Outcome.REFUSED:
        return f"refused{because}"
    ttft, where = answer.placement.ttft, _where(answer.placement)
    expected = f"first token expected after {ttft.expected_s * 1e3:.0f} ms, bound {ttft.bound_s * 1e3:.0f} ms"
    return f"{'guaranteed' if answer.guaranteed else 'best effort'} {where}{because}; {expected}"
