"""When the clairvoyant bound lets the rounds of a session begin and end, and what it charges for each."""

from __future__ import annotations

import math

import pytest

from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from simulator.bound import _bounded_requests
from simulator.machine import Machine, machine
from simulator.request import OfferedRequest

EXACT = machine("qwen2.5-7b-a100", noise=0.0)
TIMED = Contract(PrefillTarget(ttft_s=2.0), (DecodeTarget(0.1),))


def costs(hardware: Machine) -> tuple[float, ...]:
    """Return the seconds that a step takes by itself, for each token, request and context token."""
    return tuple(hardware.truth.vector[:4])


def decode_work_s(context: int, tokens: int) -> float:
    _, per_token_s, per_request_s, per_context_s = costs(EXACT)
    return sum(per_token_s + per_request_s + per_context_s * (context + number) for number in range(tokens))


def test_a_round_begins_when_the_fastest_machine_could_have_answered_the_one_before() -> None:
    following = OfferedRequest(0.0, "", 400, 1, TIMED)
    first = OfferedRequest(50.0, "", 300, 11, TIMED, follow_up=following, delay_s=0.7)
    one, two = _bounded_requests(first, EXACT, {})
    overhead_s, per_token_s, per_request_s, _ = costs(EXACT)
    prompt_s = 300 * per_token_s + per_request_s
    assert (one.release_s, one.prefill.work_s) == pytest.approx((50.0, prompt_s))
    assert one.whole.work_s == pytest.approx(prompt_s + decode_work_s(300, 10))
    steps = 11 if EXACT.max_draft_tokens == 0 else 1 + 10 / (1 + EXACT.max_draft_tokens)
    assert two.release_s == pytest.approx(50.0 + steps * overhead_s + one.whole.work_s + 0.7)


def test_a_round_is_due_when_the_one_before_may_have_taken_all_its_time() -> None:
    following = OfferedRequest(0.0, "", 400, 6, TIMED)
    first = OfferedRequest(50.0, "", 300, 11, TIMED, follow_up=following, delay_s=0.7)
    one, two = _bounded_requests(first, EXACT, {})
    assert (one.first_due_s, one.last_due_s) == pytest.approx((52.0, 53.0))
    assert (two.first_due_s, two.last_due_s) == pytest.approx((53.7 + 2.0, 53.7 + 2.0 + 0.5))


def test_stages_are_due_one_after_the_other() -> None:
    stages = Contract(PrefillTarget(ttft_s=2.0), (DecodeTarget(0.05, "x"), DecodeTarget(0.2)))
    (one,) = _bounded_requests(OfferedRequest(50.0, "", 300, 11, stages, first_stage_tokens=4), EXACT, {})
    assert one.last_due_s == pytest.approx(52.0 + 4 * 0.05 + 6 * 0.2)
    (short,) = _bounded_requests(OfferedRequest(50.0, "", 300, 3, stages, first_stage_tokens=4), EXACT, {})
    assert short.last_due_s == pytest.approx(52.0 + 2 * 0.05), "it ends within its first stage"


def test_nothing_is_due_without_targets() -> None:
    (one,) = _bounded_requests(OfferedRequest(50.0, "", 300, 3, Contract()), EXACT, {})
    assert (one.first_due_s, one.last_due_s) == (math.inf, math.inf)


def test_only_the_last_round_has_the_targets_of_the_last() -> None:
    tools = Contract(PrefillTarget(ttft_s=2.0), (DecodeTarget(0.05),), (DecodeTarget(0.3),), session_final=True)
    last = OfferedRequest(0.0, "", 400, 11, tools)
    one, two = _bounded_requests(OfferedRequest(50.0, "", 300, 11, tools, follow_up=last), EXACT, {})
    assert one.last_due_s - one.first_due_s == pytest.approx(0.5)
    assert two.last_due_s - two.first_due_s == pytest.approx(3.0)


def test_what_others_share_may_have_been_computed_by_them() -> None:
    _, per_token_s, per_request_s, _ = costs(EXACT)
    alike = OfferedRequest(50.0, "", 300, 1, TIMED, prefix=(7, 8, 9), prefix_block_tokens=64)
    (one,) = _bounded_requests(alike, EXACT, {7: 2, 8: 2, 9: 1})
    assert one.prefill.work_s == pytest.approx((300 - 2 * 64) * per_token_s + per_request_s)
    short = OfferedRequest(50.0, "", 100, 1, TIMED, prefix=(7, 8), prefix_block_tokens=64)
    (one,) = _bounded_requests(short, EXACT, {7: 2, 8: 2})
    assert one.prefill.work_s == pytest.approx(per_token_s + per_request_s), "the last token is always computed"
