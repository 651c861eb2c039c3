"""What a promise costs, in seconds of the cluster's resource that it takes most of."""

from __future__ import annotations

import pytest

from services.slo.admission.promise_cost import promise_cost_s
from services.slo.latency_forecast import Forecast, Placement
from tests.unit.services.slo.admission.support import Desk

TOKEN_S = 0.0001
"""Seconds of a prompt token on the workers of `support`; context costs them nothing."""
KV_TOKENS = 16_000


def cost_s(desk: Desk, first: str, then: str, output_tokens: float, new_tokens: int = 1000) -> float:
    placed = Placement(first, then, 0.0, Forecast(0.1, 0.1), Forecast(0.02, 0.02))
    return promise_cost_s(desk.core.cluster, placed, new_tokens, 1000, output_tokens, 2000)


def test_a_prompt_costs_its_work_and_not_the_steps_that_others_pay() -> None:
    desk = Desk(("d1",))
    assert cost_s(desk, "d1", "d1", 0.0) == pytest.approx(1000 * TOKEN_S)
    assert cost_s(desk, "d1", "d1", 0.0, new_tokens=100) == pytest.approx(100 * TOKEN_S), "the rest is cached"


def test_the_more_workers_there_are_the_less_a_promise_is_of_all() -> None:
    assert cost_s(Desk(("p1", "p2", "d1")), "p1", "d1", 0.0) == pytest.approx(1000 * TOKEN_S / 2)
    assert cost_s(Desk(("d1", "d2")), "d1", "d1", 0.0) == pytest.approx(1000 * TOKEN_S / 2)


def test_a_long_output_costs_the_memory_that_it_holds() -> None:
    held_s = 1000 * TOKEN_S + 1000 * 0.02
    assert cost_s(Desk(), "p1", "d1", 1000.0) == pytest.approx(held_s * 2000 / KV_TOKENS)


def test_where_memory_is_plenty_the_time_of_the_busier_pool_counts() -> None:
    desk = Desk(("p1", "d1", "d2"))
    # 60 tokens of a stream in a batch take 6 ms of a decode worker, and the prompt 100 ms of the prefill worker.
    assert cost_s(desk, "p1", "d1", 60.0) == pytest.approx(1000 * TOKEN_S)
