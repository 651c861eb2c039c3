"""The requests without a verdict, and what a round's answer makes of each of them."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TypeGuard

from services.slo.admission.assessment import Assessment, Held, Unservable
from services.slo.admission.promise_wanted import PromiseWanted
from services.slo.admission.requests import Arrival
from services.slo.planner import ArrivalSample, Binding, CostThreshold


class Outcome(enum.Enum):
    """What a planning round means for a request."""

    GUARANTEED = "guaranteed"
    HELD = "held"
    """There is no room now, but some in sight: it is planned again."""
    BEST_EFFORT = "best effort"
    REFUSED = "refused"
    MOVED = "moved"
    """It was placed again, because its worker was gone or room was found for what had waited long."""


@dataclass(frozen=True, slots=True)
class RequestVerdict:
    """What a round answers to one request that waits for its verdict."""

    request_id: str
    outcome: Outcome
    answer: Assessment | Held | Unservable


@dataclass(frozen=True, slots=True)
class AdmissionRound:
    """One planning round over every request without a verdict."""

    number: int
    at_s: float
    verdicts: tuple[RequestVerdict, ...]
    """One for each request, in the order in which they came."""
    replan_at_s: float
    """When what is held should be planned again at the latest; infinite if nothing asks for it."""


def outcome_of(answer: Assessment | Held | Unservable) -> Outcome:
    """Return what an answer means for a request."""
    if isinstance(answer, Held):
        return Outcome.HELD
    if isinstance(answer, Unservable) or answer.to_be_refused:
        return Outcome.REFUSED
    return Outcome.GUARANTEED if answer.guaranteed else Outcome.BEST_EFFORT


def could_be_promised(answer: Assessment | Held | Unservable) -> TypeGuard[Assessment | Held]:
    """Return whether an idle cluster could give a request the promise that it wants.

    Nothing is learnt from others: whoever asks for what nobody can keep would take room and raise prices for nothing.
    """
    if isinstance(answer, Unservable) or not answer.contract.promises_anything:
        return False
    return isinstance(answer, Held) or answer.impossible is None


def note_arrival(
    sample: ArrivalSample[PromiseWanted], arrival: Arrival, answer: Assessment | Held, value: float
) -> None:
    """Add a request to the sample that the typical one is taken from, with times counted from its arrival.

    Args:
        value: what it is worth beside the requests of other tenants.
    """
    contract, tokens = answer.contract, arrival.facts.prompt_tokens
    ttft_s = contract.ttft_s(0.0)
    due_s = math.inf if ttft_s is None else ttft_s
    sample.note(PromiseWanted(arrival.request_id, tokens, tokens, due_s, contract.tightest_tpot_s, value))


def note_cost(threshold: CostThreshold, answer: Assessment, now_s: float) -> None:
    """Let the cost threshold learn from the final verdict on a request that room was looked for."""
    if answer.work_per_value is not None and answer.binding is not Binding.NO_WORKER:
        ttft_s = answer.contract.ttft_s(0.0)
        late = ttft_s is None or answer.placement.ttft.expected_s > ttft_s
        threshold.settled(now_s, answer.work_per_value, answer.binding, late=late)
