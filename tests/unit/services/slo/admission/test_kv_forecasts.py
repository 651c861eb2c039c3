"""KV memory that requests are promised: learnt from those that ended, renewed as a request goes on."""

from __future__ import annotations

import pytest

from services.slo.admission import RequestFacts
from services.slo.admission.kv_forecasts import KvForecasts
from services.slo.attainment import AttainmentMeter
from services.slo.contract import Contract
from services.slo.lengths import AT_RISK, REFORECAST_TOKENS
from tests.unit.services.slo.admission.support import START_S, Tracked

PROMPT_TOKENS, MAX_TOKENS = 30, 4000


def tracked(name: str, generated_tokens: int, application: str = "chat", hint: int | None = None) -> Tracked:
    facts = RequestFacts(name, PROMPT_TOKENS, MAX_TOKENS, "tenant", application, expected_output_tokens=hint)
    request = Tracked(facts, AttainmentMeter(Contract(), START_S), "p", "d", False, False, START_S)
    request.generated_tokens = generated_tokens
    return request


def taught(tokens: int, *, complete: bool = True, count: int = 4 * AT_RISK) -> KvForecasts:
    forecasts = KvForecasts()
    for index in range(count):
        forecasts.ended(tracked(f"old{index}", tokens), complete=complete)
    return forecasts


def test_a_request_is_promised_memory_for_its_prompt_and_the_tail_of_its_output() -> None:
    forecasts = taught(200)
    assert forecasts.of_new(tracked("new", 0).facts) == PROMPT_TOKENS + 200
    assert forecasts.of(tracked("new", 0)) == PROMPT_TOKENS + 200
    assert forecasts.of(tracked("hinted", 0, hint=50)) == PROMPT_TOKENS + 50


@pytest.mark.parametrize("complete", [True, False])
def test_outputs_that_were_cut_off_are_not_taken_for_complete(complete: bool) -> None:
    """Nobody knows how long they would have become, so nobody is promised as little as they came to."""
    promised = taught(200, complete=complete).of_new(tracked("new", 0).facts)
    assert promised == PROMPT_TOKENS + (200 if complete else MAX_TOKENS)


def test_a_request_that_produced_nothing_teaches_nothing() -> None:
    forecasts = taught(200)
    for index in range(1000):
        forecasts.ended(tracked(f"failed{index}", 0), complete=True)
    assert forecasts.of_new(tracked("new", 0).facts) == PROMPT_TOKENS + 200


def test_a_forecast_is_made_again_when_it_no_longer_serves() -> None:
    forecasts = taught(200)
    for index in range(4 * AT_RISK):
        forecasts.ended(tracked(f"long{index}", 1000), complete=True)
    request = tracked("r", 0)
    first = forecasts.current(request)
    assert first.tail_tokens == 1000
    assert forecasts.serves(request)
    request.generated_tokens = REFORECAST_TOKENS - 1
    assert forecasts.serves(request)
    assert forecasts.current(request) is first
    request.generated_tokens = REFORECAST_TOKENS
    assert not forecasts.serves(request)
    renewed = forecasts.current(request)
    assert renewed is not first
    assert forecasts.serves(request)
    request.generated_tokens = 300
    assert forecasts.current(request).expected_tokens > 950, "it has outgrown the short ones"
    forecasts.ended(request, complete=True)
    assert not forecasts.serves(request), "it is forgotten"


def test_requests_together_are_promised_less_than_each_by_itself() -> None:
    forecasts = taught(100)
    for index in range(4 * AT_RISK):
        forecasts.ended(tracked(f"long{index}", 500), complete=True)
    many = [tracked(f"r{index}", 0) for index in range(64)]
    alone = sum(forecasts.of(request) for request in many)
    together = forecasts.of_all(many)
    assert 64 * (PROMPT_TOKENS + 300) < together < 0.8 * alone
    assert forecasts.of_all(many[:1]) == forecasts.of(many[0])
    assert forecasts.of_all([]) == 0


def test_the_planner_is_told_of_the_forecast_and_what_is_produced() -> None:
    forecasts = taught(200)
    request = tracked("r", 40)
    commitment = forecasts.commitment(request, 2, decodes=True)
    assert commitment.prompt_tokens == PROMPT_TOKENS
    assert commitment.forecast is forecasts.current(request)
    assert (commitment.tier, commitment.decodes) == (2, True)
