"""Who made a request late: which steps count, how their time is shared, and what is forgotten."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from router.requests.lateness import KEPT_SHARERS, Course, latenesses, sharers
from router.requests.step_log import KEPT_MEMBERS, KEPT_WORKERS, LoggedStep, StepLog, logged_step
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract
from services.state.journal_entry import RequestState
from slos_serve.v1 import worker_pb2
from tests.unit.router.router_support import START_S, Desk, contract


@pytest.fixture
def desk(tiny_model: Path) -> Desk:
    return Desk(tiny_model)


Prompts = tuple[tuple[str, int], ...]


def step(
    began_s: float, duration_s: float, prompts: Prompts = (), decodes: tuple[str, ...] = (), tokens: int = 0
) -> LoggedStep:
    known = sum(count for _, count in prompts) + len(decodes)
    return LoggedStep(START_S + began_s + duration_s, duration_s, prompts, decodes, tokens or known)


def course(meter: AttainmentMeter, ended_s: float = 9.0) -> Course:
    return Course("late", START_S, START_S + ended_s, "p1", "d1", meter.attainment())


def meter(wanted: Contract, *tokens_at_s: float) -> AttainmentMeter:
    made = AttainmentMeter(wanted, START_S)
    for at_s in tokens_at_s:
        made.note_tokens(1, START_S + at_s)
    return made


def test_the_time_of_a_step_is_shared_by_tokens() -> None:
    steps = [
        step(0.0, 1.0, (("long", 700), ("late", 200)), ("d-1", "d-2"), tokens=1000),
        step(1.0, 0.5, (("long", 50),)),
    ]
    own, others, unknown_s = sharers("late", steps, START_S, START_S + 10)
    assert own.share_s == pytest.approx(0.2)
    assert (own.steps, own.prompt_tokens) == (1, 200)
    assert [(one.request_id, one.steps, one.prompt_tokens) for one in others] == [
        ("long", 2, 750), ("d-1", 1, 0), ("d-2", 1, 0),
    ]  # fmt: skip
    assert others[0].share_s == pytest.approx(0.7 + 0.5)
    assert others[1].share_s == pytest.approx(0.001)
    assert unknown_s == pytest.approx(0.098), "other routers' requests"


def test_of_a_step_only_what_lies_within_counts() -> None:
    _, (only,), unknown_s = sharers("late", [step(0.0, 4.0, (("long", 100),))], START_S + 1.0, START_S + 2.0)
    assert only.share_s == pytest.approx(1.0)
    assert unknown_s == 0.0


def test_a_late_first_token_is_laid_on_those_who_were_computed_before_it() -> None:
    log = StepLog()
    log.add("p1", step(-2.0, 1.0, (("before", 100),)))
    log.add("p1", step(0.0, 2.0, (("long", 900), ("late", 100))))
    log.add("p1", step(3.0, 1.0, (("after", 100),)))
    log.add("d1", step(0.0, 2.0, (), ("elsewhere",)))
    (late,) = latenesses(course(meter(contract(ttft_s=0.5), 2.5)), log)
    assert (late.stage, late.token, late.worker_id) == (0, 1, "p1")
    assert (late.due_s, late.came_s, late.from_s) == (START_S + 0.5, START_S + 2.5, START_S)
    assert late.steps == 1
    assert [late.steps_s, late.own_s, *(one.share_s for one in late.sharers)] == pytest.approx([2.0, 0.2, 1.8])
    assert [one.request_id for one in late.sharers] == ["long"]
    assert (late.others, late.others_s, late.kept_since_s) == (0, 0.0, None)


def test_a_late_token_of_a_stage_is_laid_on_the_steps_of_its_decode_worker() -> None:
    log = StepLog()
    log.add("p1", step(0.0, 0.3, (("late", 10),)))
    log.add("d1", step(0.4, 0.1, (), ("late", "other")))
    log.add("d1", step(0.5, 1.0, (("big", 98),), ("late", "other")))
    (late,) = latenesses(course(meter(contract(ttft_s=1.0, tpot_s=0.2), 0.4, 0.5, 1.5)), log)
    assert (late.stage, late.token, late.worker_id, late.steps) == (1, 2, "d1", 2)
    assert [late.from_s, late.due_s, late.came_s] == pytest.approx([START_S + 0.4, START_S + 0.8, START_S + 1.5])
    assert [one.request_id for one in late.sharers] == ["big", "other"]


def test_who_was_in_time_has_nobody_to_blame() -> None:
    assert latenesses(course(meter(contract(ttft_s=1.0, tpot_s=0.2), 0.4, 0.5)), StepLog()) == ()
    assert latenesses(course(meter(contract()), ended_s=99.0), StepLog()) == ()


def test_a_first_token_that_never_came_is_late_once_it_is_due() -> None:
    waiting = meter(contract(ttft_s=1.0))
    assert latenesses(course(waiting, ended_s=0.9), StepLog()) == ()
    (late,) = latenesses(course(waiting, ended_s=3.0), StepLog())
    assert (late.came_s, late.steps) == (None, 0)


def test_no_more_than_a_few_are_named_and_forgotten_steps_are_told_of() -> None:
    log = StepLog(kept_steps=3)
    for second in range(6):
        members = tuple((f"r-{index}", 10 + index) for index in range(KEPT_SHARERS + 2))
        log.add("p1", step(float(second), 1.0, members))
    (late,) = latenesses(course(meter(contract(ttft_s=0.5), 6.0)), log)
    assert (late.steps, late.kept_since_s) == (3, START_S + 3.0)
    assert [one.request_id for one in late.sharers][:2] == ["r-9", "r-8"]
    assert (len(late.sharers), late.others) == (KEPT_SHARERS, 2)
    assert late.others_s + sum(one.share_s for one in late.sharers) == pytest.approx(3.0)


def test_steps_of_workers_long_gone_are_forgotten() -> None:
    log = StepLog()
    for number in range(KEPT_WORKERS + 1):
        log.add(f"w-{number}", step(float(number), 0.5))
    assert log.between("w-0", START_S - 9, START_S + 999) == []
    assert len(log.between("w-1", START_S - 9, START_S + 999)) == 1
    assert log.kept_since_s("w-0") == math.inf
    assert log.kept_since_s("w-1") == -math.inf


def test_what_is_logged_of_a_report(desk: Desk) -> None:
    ids = ("prompt", "first", "decoding")
    lives = {name: desk.take(desk.arrival(name, 300, contract()), desk.assess(name, 300, contract())) for name in ids}
    for name in ("prompt", "first"):
        lives[name].submit_prompt("p1", 0, START_S)
        lives[name].enter(RequestState.PREFILLING)
        lives[name].advance_prefill(100)
    desk.start_decode(lives["decoding"])
    report = worker_pb2.StepReport(
        duration_s=0.25,
        shape=worker_pb2.StepShape(prefill_tokens=280, decode_tokens=5),
        outputs=[
            worker_pb2.RequestOutput(request_id="prompt", prefilled_tokens=180),
            worker_pb2.RequestOutput(request_id="first", token_ids=[7]),
            worker_pb2.RequestOutput(request_id="decoding", token_ids=[7]),
            worker_pb2.RequestOutput(request_id="decoding", attempt=3, token_ids=[7]),
            worker_pb2.RequestOutput(request_id="unknown", token_ids=[7]),
        ],
    )
    logged = logged_step(report, desk.requests.get, START_S + 1.0)
    assert logged == LoggedStep(START_S + 1.0, 0.25, (("prompt", 80), ("first", 200)), ("decoding",), 285)
    for nonsense in (-1.0, math.inf, math.nan):
        report.duration_s = nonsense
        assert logged_step(report, desk.requests.get, START_S) is None


def test_a_step_with_many_streams_is_kept_in_little_memory(desk: Desk) -> None:
    streams = KEPT_MEMBERS + 5
    report = worker_pb2.StepReport(duration_s=0.1, shape=worker_pb2.StepShape(decode_tokens=streams))
    for number in range(streams):
        name = f"r-{number}"
        desk.start_decode(desk.take(desk.arrival(name, 10, contract()), desk.assess(name, 10, contract())))
        report.outputs.add(request_id=name, token_ids=[7])
    logged = logged_step(report, desk.requests.get, START_S)
    assert logged is not None
    assert (len(logged.decodes), logged.tokens) == (KEPT_MEMBERS, streams)
    prompt = desk.take(desk.arrival("prompt", 90, contract()), desk.assess("prompt", 90, contract()))
    prompt.submit_prompt("p1", 0, START_S)
    prompt.enter(RequestState.PREFILLING)
    report.outputs.add(request_id="prompt", prefilled_tokens=60)
    report.shape.prefill_tokens = 60
    logged = logged_step(report, desk.requests.get, START_S)
    assert logged is not None
    assert logged.prompts == (("prompt", 60),), "the last of all is found where a prompt was computed"
