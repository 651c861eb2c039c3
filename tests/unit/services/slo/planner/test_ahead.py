"""What streams that are ahead leave to prompts: promised by the planner, kept by the composer."""

from __future__ import annotations

import math

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from services.slo.composer import Limits, SchedulableRequest, TokenDeadlines
from services.slo.due_times import LONGEST_GAP_TPOTS
from services.slo.planner import (
    Candidate,
    Decision,
    Problem,
    StepBound,
    Tiers,
    Topology,
    Worker,
    WorkerProfile,
    ahead_s,
    plan_round,
)
from tests.unit.services.slo.composer.works import MODEL, Request, Simulation, blocks_for

TPOT_S = 0.06
LIMITS = Limits(max_step_tokens=512, max_running_requests=64, block_tokens=4)
BOUND = StepBound.of(MODEL)
PROFILE = WorkerProfile(BOUND, Tiers((TPOT_S,)), LIMITS.max_step_tokens, TPOT_S)
CONTEXT_TOKENS, OUTPUT_TOKENS = 5, 20
LEADS = st.lists(st.floats(LONGEST_GAP_TPOTS, 5.0), min_size=1, max_size=25).map(
    lambda leads: [lead * TPOT_S for lead in leads]
)
ASKED = st.lists(st.tuples(st.integers(1, 60), st.floats(0.02, 0.3)), min_size=1, max_size=3)


def running(index: int, lead_s: float) -> Request:
    promise = TokenDeadlines(lead_s, TPOT_S, wanted_s=LONGEST_GAP_TPOTS * TPOT_S, counts_from_due=True)
    work = SchedulableRequest(
        f"s{index}",
        CONTEXT_TOKENS,
        1,
        decoding=True,
        running=True,
        held_blocks=blocks_for(CONTEXT_TOKENS),
        due_s=promise.due_s,
        tpot_s=TPOT_S,
        wanted_s=promise.wanted_s,
    )
    return Request(work, promise, OUTPUT_TOKENS, 0.0)


def worker(leads: list[float]) -> Worker:
    contexts = len(leads) * (CONTEXT_TOKENS + OUTPUT_TOKENS)
    ahead = ahead_s(BOUND, len(leads), contexts, ((lead_s, TPOT_S) for lead_s in leads))
    return Worker("w", PROFILE, True, True, 10**6, 10**6, (len(leads),), (contexts,), ahead_s=ahead)


def asked(prompts: list[tuple[int, float]]) -> list[Candidate]:
    return [
        Candidate(f"p{index}", tokens, tokens + OUTPUT_TOKENS, due_s, 0)
        for index, (tokens, due_s) in enumerate(prompts)
    ]


def decided(there: Worker, candidates: list[Candidate]) -> tuple[Decision, ...]:
    return plan_round(Problem((there,), Topology.of((there,)), tuple(candidates))).decisions


@settings(max_examples=300)
@given(leads=LEADS, prompts=ASKED)
def test_what_is_promised_on_the_lead_of_streams_is_kept(leads: list[float], prompts: list[tuple[int, float]]) -> None:
    there = worker(leads)
    decisions = decided(there, asked(prompts))
    promised = [prompts[index] for index, decision in enumerate(decisions) if decision.guaranteed]
    event(f"ahead {there.ahead_s > 0}, promised {bool(promised)}")
    requests = [running(index, lead_s) for index, lead_s in enumerate(leads)]
    for index, (tokens, due_s) in enumerate(promised):
        promise = TokenDeadlines.begin(0.0, due_s, TPOT_S, 0)
        work = SchedulableRequest(f"p{index}", 0, tokens, False, False, 0, promise.due_s, promise.tpot_s)
        requests.append(Request(work, promise, OUTPUT_TOKENS, 0.0))
    simulation = Simulation(requests, limits=LIMITS)
    simulation.run()
    late = {name: request.late for name, request in simulation.requests.items() if request.late}
    assert not late, (there.ahead_s, promised)


def test_a_prompt_that_has_no_time_beside_streams_is_promised_where_they_are_ahead() -> None:
    """Beside 30 streams a step takes 40 ms before it has any prompt."""
    prompt = asked([(15, 0.05)])
    (near,) = decided(worker([0.06] * 30), prompt)
    (far,) = decided(worker([0.13] * 30), prompt)
    assert (near.guaranteed, far.guaranteed) == (False, True)


def test_one_stream_that_is_not_ahead_leaves_nothing() -> None:
    assert worker([9.0, 9.0, 0.11]).ahead_s == 0
    assert worker([9.0, 9.0, 0.12]).ahead_s == pytest.approx(3 * 0.001)
    assert worker([]).ahead_s == 0


@pytest.mark.parametrize("ahead", [-0.001, math.nan, math.inf])
def test_a_lead_is_a_time(ahead: float) -> None:
    with pytest.raises(ValueError, match="ahead_s must be finite and not negative"):
        Worker("w", PROFILE, True, True, 100, 100, ahead_s=ahead)
