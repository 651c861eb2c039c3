"""The first rule of admission."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.slo.admission import (
    HANDOVER_STEPS,
    Ask,
    Binding,
    DecodeView,
    PrefillView,
    QueuedPrefill,
    finish_times_s,
    place,
)
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.performance import PerformanceCoefficients, PerformanceModel

MODEL = PerformanceModel(PerformanceCoefficients(0.010, 0.001, 0.0, 0.0, "placeholder"))
SAFETY = 1.15
BOUND = replace(MODEL, scale=SAFETY)
PREFILL = PrefillView(
    "p", MODEL, BOUND, max_step_tokens=1000, busy_until_s=0.0, waiting=(), queue=(), kv_tokens=100_000
)
DECODE = DecodeView(
    "d",
    MODEL,
    BOUND,
    requests=0,
    context_tokens=0,
    tightest_tpot_s=None,
    max_running_requests=8,
    kv_tokens_free=100_000,
    kv_tokens=100_000,
)
CONTRACT = Contract(prefill=PrefillTarget(ttft_s=1.0), decode=(DecodeTarget(0.1),))
ASK = Ask(arrival_s=0.0, prompt_tokens=100, max_output_tokens=50, contract=CONTRACT)


def test_an_idle_cluster_guarantees() -> None:
    placement = place(ASK, [PREFILL], [DECODE], now_s=0.0, best_effort_patience_s=30.0)
    assert placement is not None
    assert placement.guaranteed
    assert placement.predicted_ttft_s == pytest.approx(0.110)
    assert placement.predicted_tpot_s == pytest.approx(HANDOVER_STEPS * 0.011)
    assert placement.due_s == 1.0


def test_without_a_contract_it_is_best_effort_and_ranked_by_patience() -> None:
    placement = place(replace(ASK, contract=Contract()), [PREFILL], [DECODE], 0.0, 30.0)
    assert placement is not None
    assert placement.binding is Binding.NO_CONTRACT
    assert placement.due_s == 30.0


@pytest.mark.parametrize(
    ("prefill", "decode", "binding"),
    [
        (replace(PREFILL, busy_until_s=0.95), DECODE, Binding.PREFILL_TIME),
        (PREFILL, replace(DECODE, tightest_tpot_s=0.010), Binding.DECODE_RATE),
        (PREFILL, replace(DECODE, requests=8), Binding.DECODE_SLOTS),
        (PREFILL, replace(DECODE, kv_tokens_free=149), Binding.KV_MEMORY),
        (PREFILL, replace(DECODE, bound=replace(MODEL, scale=4.0)), Binding.HANDOVER),
    ],
)
def test_what_binds_is_named(prefill: PrefillView, decode: DecodeView, binding: Binding) -> None:
    placement = place(ASK, [prefill], [decode], 0.0, 30.0)
    assert placement is not None
    assert placement.binding is binding
    assert placement.due_s == 30.0


def test_an_earlier_guarantee_is_not_broken() -> None:
    tight_but_later = QueuedPrefill(due_s=1.13, tokens=950, guaranteed=True)
    placement = place(ASK, [replace(PREFILL, queue=(tight_but_later,))], [DECODE], 0.0, 30.0)
    assert placement is not None
    assert placement.binding is Binding.EARLIER_GUARANTEE


def test_best_effort_work_behind_does_not_forbid_a_guarantee() -> None:
    best_effort = QueuedPrefill(due_s=30.0, tokens=5000, guaranteed=False)
    placement = place(ASK, [replace(PREFILL, queue=(best_effort,))], [DECODE], 0.0, 30.0)
    assert placement is not None
    assert placement.guaranteed


def test_a_request_larger_than_every_kv_cache_has_no_place() -> None:
    assert place(ASK, [PREFILL], [replace(DECODE, kv_tokens=149)], 0.0, 30.0) is None
    assert place(ASK, [replace(PREFILL, kv_tokens=99)], [DECODE], 0.0, 30.0) is None


def test_the_idle_worker_is_chosen() -> None:
    busy_p, busy_d = replace(PREFILL, worker_id="p2", busy_until_s=0.5), replace(DECODE, worker_id="d2", requests=5)
    placement = place(ASK, [busy_p, PREFILL], [busy_d, DECODE], 0.0, 30.0)
    assert placement is not None
    assert (placement.prefill_worker_id, placement.decode_worker_id) == ("p", "d")


def test_prompts_of_one_step_end_together() -> None:
    prompts = [QueuedPrefill(0.0, tokens, guaranteed=False) for tokens in (400, 500, 200, 2500)]
    ends_s = finish_times_s(prompts, 1.0, MODEL, max_step_tokens=1000)
    assert ends_s == pytest.approx([1.910, 1.910, 2.120, 2.120 + 3 * 0.010 + 2.5])


queues = st.lists(
    st.builds(
        QueuedPrefill,
        due_s=st.floats(min_value=0, max_value=5),
        tokens=st.integers(1, 1500),
        guaranteed=st.booleans(),
    ),
    max_size=8,
)


@given(queue=queues, busy_until_s=st.floats(min_value=0, max_value=2), prompt_tokens=st.integers(1, 2000))
def test_a_guarantee_is_on_time_and_breaks_no_other(
    queue: list[QueuedPrefill], busy_until_s: float, prompt_tokens: int
) -> None:
    ordered = tuple(sorted(queue, key=lambda queued: queued.due_s))
    ask = replace(ASK, prompt_tokens=prompt_tokens)
    view = replace(PREFILL, queue=ordered, busy_until_s=busy_until_s)
    placement = place(ask, [view], [DECODE], 0.0, 30.0)
    assert placement is not None
    if not placement.guaranteed:
        return
    mine = QueuedPrefill(placement.due_s, prompt_tokens, guaranteed=True)
    position = sum(queued.due_s <= mine.due_s for queued in ordered)
    slowest = replace(MODEL, scale=SAFETY)
    ends_s = finish_times_s((*ordered[:position], mine, *ordered[position:]), busy_until_s, slowest, 1000)
    assert ends_s[position] <= mine.due_s + 1e-9
    before_s = finish_times_s(ordered, busy_until_s, slowest, 1000)
    for index, queued in enumerate(ordered):
        if queued.guaranteed and before_s[index] <= queued.due_s:
            assert ends_s[index if index < position else index + 1] <= queued.due_s + 1e-9


def test_the_hand_over_takes_as_many_steps_as_measured() -> None:
    second_token_s = SAFETY * HANDOVER_STEPS * 0.011
    exact = Contract(decode=(DecodeTarget(second_token_s * 1.0001),))
    short = Contract(decode=(DecodeTarget(second_token_s * 0.9999),))
    for contract, guaranteed in ((exact, True), (short, False)):
        placement = place(replace(ASK, contract=contract), [PREFILL], [DECODE], 0.0, 30.0)
        assert placement is not None
        assert placement.guaranteed is guaranteed
