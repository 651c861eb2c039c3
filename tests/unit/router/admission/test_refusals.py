"""When a refused client is asked to come back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.admission.refusals import DEFAULT_RETRY_S, LEAST_RETRY_S, RETRY_JITTER, refusal_of
from services.slo.planner import Binding
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import Desk, contract


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.mark.parametrize(
    ("foreseen_s", "least_s"), [(None, DEFAULT_RETRY_S), (2.5, 2.5), (0.0, LEAST_RETRY_S), (0.001, LEAST_RETRY_S)]
)
def test_what_was_refused_together_does_not_come_back_together(
    desk: Desk, foreseen_s: float | None, least_s: float
) -> None:
    answer = desk.assess("a", 1000, contract(1.0, 0.1, refuse=True))
    refused = replace(answer, binding=Binding.DECODE_RATE, earliest_guarantee_s=foreseen_s)
    errors = [refusal_of(refused) for _ in range(50)]
    waits_s = [error.retry_after_s for error in errors if error is not None and error.retry_after_s is not None]
    assert len(waits_s) == 50
    assert len(set(waits_s)) > 40
    assert all(least_s <= wait_s <= least_s * (1 + RETRY_JITTER) for wait_s in waits_s)
    assert max(waits_s) > least_s * (1 + RETRY_JITTER / 2)
