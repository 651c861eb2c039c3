"""What a worker is taken to be working on."""

from __future__ import annotations

import pytest

from services.slo.admission import WorkerLoad, WorkerState
from services.slo.admission.step_under_way import under_way
from services.slo.performance import StepShape
from tests.unit.services.slo.admission.support import START_S, Desk, Tracked, contract

SUBMISSION_S = 0.004


@pytest.fixture
def desk() -> Desk:
    return Desk()


def prefilling(desk: Desk, request_id: str, prompt_tokens: int, worker_id: str, at_s: float) -> Tracked:
    request = desk.admit(request_id, prompt_tokens, contract(ttft_s=9.0, tpot_s=0.05))
    desk.start_prefill(request, worker_id, at_s)
    return request


def busy(desk: Desk, worker_id: str) -> WorkerState:
    worker = desk.worker(worker_id)
    worker.load, worker.step_began_s, worker.last_step_s = WorkerLoad(running_requests=1), START_S, 0.02
    return worker


def look(desk: Desk, worker: WorkerState, prompts: list[Tracked], now_s: float) -> tuple[float, dict[str, int]]:
    left_s, grants = under_way(worker, prompts, desk.core.requests, SUBMISSION_S, now_s)
    return left_s, dict(grants)


def test_a_prompt_alone_is_computed_as_a_whole(desk: Desk) -> None:
    worker, prompt = busy(desk, "p1"), prefilling(desk, "r", 500, "p1", START_S - 1.0)
    left_s, grants = look(desk, worker, [prompt], START_S + 0.01)
    assert grants == {"r": 500}
    assert left_s == pytest.approx(worker.bound.prefill_s(500, 2048) - 0.01)


def test_a_prompt_sent_too_late_is_not_in_the_step(desk: Desk) -> None:
    worker = busy(desk, "p1")
    early = prefilling(desk, "early", 100, "p1", START_S - SUBMISSION_S)
    late = prefilling(desk, "late", 100, "p1", START_S - SUBMISSION_S + 1e-6)
    assert look(desk, worker, [early, late], START_S)[1] == {"early": 100}


def test_a_step_without_prompts_takes_about_as_long_as_the_last(desk: Desk) -> None:
    worker = busy(desk, "p1")
    assert look(desk, worker, [], START_S + 0.015)[0] == pytest.approx(0.005)
    assert look(desk, worker, [], START_S + 1.0)[0] == 0.0
    worker.load = WorkerLoad(running_requests=0)
    assert look(desk, worker, [], START_S + 0.015)[0] == 0.0


def test_a_prompt_longer_than_a_step_may_be_is_cut(desk: Desk) -> None:
    worker, prompt = busy(desk, "p1"), prefilling(desk, "r", 1000, "p1", START_S - 1.0)
    assert 500 < look(desk, worker, [prompt], START_S)[1]["r"] < 1000


def test_a_prompt_beside_streams_is_computed_as_far_as_their_rate_allows(desk: Desk) -> None:
    desk.start_decode(desk.admit("s", 100, contract(ttft_s=9.0, tpot_s=0.05)))
    worker, prompt = busy(desk, "d1"), prefilling(desk, "r", 1000, "d1", START_S - 1.0)
    left_s, grants = look(desk, worker, [prompt], START_S)
    assert 0 < grants["r"] < 400
    assert left_s <= 0.05


def test_a_step_goes_on_although_its_prompt_is_given_up(desk: Desk) -> None:
    worker, prompt = busy(desk, "p1"), prefilling(desk, "r", 1000, "p1", START_S - 1.0)
    expected_s, _ = look(desk, worker, [prompt], START_S + 0.01)
    desk.core.stopping(prompt, START_S + 0.01)
    desk.core.removed(prompt, complete=False)
    left_s, grants = look(desk, worker, [], START_S + 0.03)
    assert grants == {}
    assert left_s == pytest.approx(expected_s - 0.02)
    assert look(desk, worker, [], START_S + 9.0)[0] == 0.0


def test_a_report_ends_the_step(desk: Desk) -> None:
    worker, prompt = busy(desk, "p1"), prefilling(desk, "r", 1000, "p1", START_S - 1.0)
    desk.core.stopping(prompt, START_S + 0.01)
    shape = StepShape(1, 1000, 5e5, 0, 0, 0, 0)
    desk.core.stepped("p1", shape, 0.11, WorkerLoad(), START_S + 0.11)
    assert worker.step_began_s == START_S + 0.11
    assert worker.stopped_step_ends_s == 0.0
