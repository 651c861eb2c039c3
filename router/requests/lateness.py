"""Who made a request late: the requests whose tokens filled the steps between its beginning and its late token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from router.requests.step_log import LoggedStep, StepLog
from services.slo.attainment import Attainment

KEPT_SHARERS = 8
"""Number of other requests that are named; the rest are summed up."""


@dataclass(frozen=True, slots=True)
class Sharer:
    """A request's part in the steps of a stretch of time."""

    request_id: str
    steps: int
    """Number of these steps that it had tokens in."""
    prompt_tokens: int
    """Number of its prompt tokens that were computed in them."""
    share_s: float
    """Its part of their time, by its part of their tokens. Seconds."""


@dataclass(frozen=True, slots=True)
class Lateness:
    """A token that came late, and who was in the steps until it came. Times are on the router's clock, in seconds."""

    stage: int
    """Number of the decode stage whose token was late, counted from 1; 0 for the first token of the request."""
    token: int
    """Number of that token in its stage, counted from 1."""
    due_s: float
    came_s: float | None
    """When it came; None if it never did."""
    from_s: float
    """When what made it late began: the request's arrival, or the beginning of the decode stage."""
    worker_id: str
    """The worker whose steps these are; empty if none had the request."""
    steps: int
    """Number of steps from then on, until the token came."""
    steps_s: float
    """Time in these steps. Seconds."""
    own_s: float
    """Part of it that went into this request itself. Seconds."""
    sharers: tuple[Sharer, ...]
    """The other requests with the largest parts, the largest first."""
    others: int
    """Number of further requests in these steps."""
    others_s: float
    """Their part, and that of requests of other routers. Seconds."""
    kept_since_s: float | None
    """Time before which the steps are forgotten; None if all are remembered."""


@dataclass(frozen=True, slots=True)
class Course:
    """What decides whether a request was late, and where. Times are on the router's clock, in seconds."""

    request_id: str
    arrival_s: float
    ended_s: float
    """When it ended, or the present moment."""
    prefill_worker_id: str
    decode_worker_id: str
    attainment: Attainment


def latenesses(course: Course, log: StepLog) -> tuple[Lateness, ...]:
    """Return every target that the request missed, at its first late token, with who was in the steps until then."""
    return tuple(_late_tokens(course, log))


def sharers(request_id: str, steps: list[LoggedStep], from_s: float, to_s: float) -> tuple[Sharer, list[Sharer], float]:
    """Share the time of steps between the requests that had tokens in them.

    Returns:
        The request's own part, the parts of the others with the largest first, and the seconds that belong to nobody
        who is known.
    """
    share_s: dict[str, float] = {}
    had: dict[str, int] = {}
    prompt_tokens: dict[str, int] = {}
    unknown_s = 0.0
    for step in steps:
        within_s = min(step.ended_s, to_s) - max(step.began_s, from_s)
        per_token_s = within_s / max(1, step.tokens)
        known = 0
        for member, tokens in (*step.prompts, *((decoding, 1) for decoding in step.decodes)):
            share_s[member] = share_s.get(member, 0.0) + tokens * per_token_s
            had[member] = had.get(member, 0) + 1
            known += tokens
        for member, tokens in step.prompts:
            prompt_tokens[member] = prompt_tokens.get(member, 0) + tokens
        unknown_s += max(0, step.tokens - known) * per_token_s
    found = [
        Sharer(member, had[member], prompt_tokens.get(member, 0), seconds)
        for member, seconds in sorted(share_s.items(), key=lambda item: (-item[1], item[0]))
    ]
    own = next((one for one in found if one.request_id == request_id), Sharer(request_id, 0, 0, 0.0))
    return own, [one for one in found if one.request_id != request_id], unknown_s


def _late_tokens(course: Course, log: StepLog) -> Iterator[Lateness]:
    attainment, arrival_s = course.attainment, course.arrival_s
    if attainment.target_ttft_s is not None:
        due_s = arrival_s + attainment.target_ttft_s
        came_s = None if attainment.ttft_s is None else arrival_s + attainment.ttft_s
        if (course.ended_s if came_s is None else came_s) > due_s:
            yield _lateness(course, log, (0, 1), (arrival_s, due_s, came_s), course.prefill_worker_id)
    for number, stage in enumerate(attainment.stages, start=1):
        late = stage.first_late
        if late is not None:
            times = (stage.began_s, late.due_s, late.came_s)
            yield _lateness(course, log, (number, late.number), times, course.decode_worker_id)


def _lateness(
    course: Course, log: StepLog, place: tuple[int, int], times: tuple[float, float, float | None], worker_id: str
) -> Lateness:
    from_s, due_s, came_s = times
    until_s = course.ended_s if came_s is None else came_s
    steps = log.between(worker_id, from_s, until_s)
    own, others, unknown_s = sharers(course.request_id, steps, from_s, until_s)
    left = others[KEPT_SHARERS:]
    kept_since_s = log.kept_since_s(worker_id)
    return Lateness(
        stage=place[0],
        token=place[1],
        due_s=due_s,
        came_s=came_s,
        from_s=from_s,
        worker_id=worker_id,
        steps=len(steps),
        steps_s=sum(min(step.ended_s, until_s) - max(step.began_s, from_s) for step in steps),
        own_s=own.share_s,
        sharers=tuple(others[:KEPT_SHARERS]),
        others=len(left),
        others_s=unknown_s + sum(one.share_s for one in left),
        kept_since_s=kept_since_s if kept_since_s > from_s else None,
    )
