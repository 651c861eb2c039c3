"""What is kept up of commitments equals a count of everything."""

from __future__ import annotations

import pytest

from services.slo.admission.committed_loads import CommittedLoads
from services.slo.admission.index import MOST_CHANGES
from services.slo.lengths import REFORECAST_TOKENS
from services.slo.planner import Tiers
from tests.unit.services.slo.admission.support import Desk, contract

TIERS = Tiers((0.1,))


def loads_of(desk: Desk) -> CommittedLoads:
    return CommittedLoads(desk.core.requests, desk.core.memory)


def test_what_is_kept_up_is_what_a_count_of_everything_would_find() -> None:
    desk = Desk()
    loads, requests = loads_of(desk), desk.core.requests
    ended = 0
    for index in range(40):
        request = desk.admit(f"r{index}", 50 + index, contract(5.0, 0.1) if index % 3 else contract())
        if index % 2:
            desk.start_decode(request)
            request.generated_tokens += index
            desk.core.grew("d1", index)
        if index % 5 == 4:
            desk.core.removed(desk.taken[f"r{ended}"], complete=True)
            ended += 1
        known = loads.of("d1", step=index * REFORECAST_TOKENS)
        there = requests.decoding("d1")
        assert len(known.everyone) == len(there)
        assert known.everyone.kv_tokens() == pytest.approx(desk.core.memory.of_all(there), abs=1)
        planned = [request for request in there if request.planned]
        assert len(known.planned) == len(planned)
        assert known.planned.kv_tokens() == pytest.approx(desk.core.memory.of_all(planned), abs=1)
        contexts = [request.facts.prompt_tokens + request.generated_tokens for request in there]
        assert requests.decoding_tokens("d1") == sum(contexts)


def test_a_request_that_moves_is_counted_where_it_is_now() -> None:
    desk = Desk(("p1", "d1", "d2"))
    loads, request = loads_of(desk), desk.admit("a", 100, contract(1.0, 0.1))
    old, new = request.decode_worker_id, {"d1": "d2", "d2": "d1"}[request.decode_worker_id]
    assert len(loads.of(old).planned) == 1
    request.decode_worker_id = new
    desk.core.filed(request)
    assert (len(loads.of(old).planned), len(loads.of(new).planned)) == (0, 1)


def test_more_changes_than_are_kept_are_counted_all_the_same() -> None:
    desk = Desk()
    loads, first = loads_of(desk), desk.arrival("r0", 10, contract())
    assessment = desk.assess("r0", 10, contract())
    desk.take(first, assessment)
    assert len(loads.of("d1").everyone) == 1
    for index in range(1, MOST_CHANGES + 10):
        desk.take(desk.arrival(f"r{index}", 10, contract()), assessment)
    assert len(loads.of("d1").everyone) == MOST_CHANGES + 10


def test_a_forecast_is_renewed_once_the_worker_has_taken_enough_steps() -> None:
    desk = Desk()
    loads, request = loads_of(desk), desk.admit("a", 100, contract(1.0, 0.1))
    desk.start_decode(request)
    first = loads.of("d1", TIERS, step=0)
    before = first.revision
    request.generated_tokens = REFORECAST_TOKENS
    assert loads.of("d1", TIERS, step=REFORECAST_TOKENS - 1).revision == before
    renewed = loads.of("d1", TIERS, step=REFORECAST_TOKENS)
    assert renewed.revision == before + 1
    assert renewed.planned.held["a"].produced_tokens == REFORECAST_TOKENS


def test_a_stage_with_another_rate_is_counted_in_its_tier() -> None:
    desk = Desk()
    loads, request = loads_of(desk), desk.admit("a", 100, contract(1.0, 0.2))
    desk.start_decode(request)
    both = Tiers((0.1, 0.2))
    assert loads.of("d1", both, step=0).planned.held["a"].tier == 1
    request.meter = type(request.meter)(contract(1.0, 0.1), request.meter.arrival_s)
    assert loads.of("d1", both, step=REFORECAST_TOKENS).planned.held["a"].tier == 0
