"""Requests sorted by what is owed to them."""

from __future__ import annotations

import math

import pytest

from services.slo.composer.request_queues import sort_into_queues
from services.slo.composer.step import SchedulableRequest
from tests.unit.services.slo.composer.works import BLOCK, prefill, stream, waiting

NEVER = math.inf


@pytest.mark.parametrize(
    ("work", "queue"),
    [
        (stream("w", due_s=1.0), "streams"),
        (stream("w", due_s=NEVER, tpot_s=0.05), "streams"),
        (stream("w", due_s=-math.inf, tpot_s=NEVER), "streams"),
        (prefill("w", 1, due_s=1.0, computed=20), "streams"),
        (prefill("w", 2, due_s=1.0), "prefills"),
        (waiting("w", 1, due_s=1.0), "prefills"),
        (waiting("w", 9, tpot_s=0.05), "prefills"),
        (waiting("w", 9, due_s=1.0, pulls_kv=True), "prefills"),
        (stream("w", due_s=1.0, best_effort=True), "best_effort"),
        (stream("w", due_s=NEVER, tpot_s=NEVER), "best_effort"),
        (stream("w", due_s=math.nan, tpot_s=0.05), "best_effort"),
        (stream("w", due_s=NEVER, tpot_s=math.nan), "best_effort"),
        (waiting("w", 9), "best_effort"),
        (prefill("w", 1, due_s=1.0, pulls_kv=True), ""),
        (stream("w", due_s=NEVER, tpot_s=NEVER, pulls_kv=True), ""),
    ],
)
def test_a_request_is_in_the_queue_of_what_is_owed_to_it(work: SchedulableRequest, queue: str) -> None:
    queues = sort_into_queues([work], BLOCK, 0.25)
    found = {name for name in ("streams", "prefills", "best_effort") if getattr(queues, name) == [work]}
    assert found == ({queue} if queue else set())
    assert queues.running == work.running
    assert queues.pulling_kv == (work.running and work.pulls_kv)


def test_streams_are_summed_up() -> None:
    works = [
        stream("a", 5, due_s=1.0, tpot_s=0.1),
        stream("b", 8, due_s=0.99, tpot_s=0.04, wanted_s=0.97),
        stream("c", 30, due_s=5.0, tpot_s=NEVER),
        prefill("landed", 1, due_s=0.98, computed=20, tpot_s=0.2),
    ]
    queues = sort_into_queues(works, BLOCK, 0.5)
    assert queues.streams == works
    assert (queues.decodes, queues.context_tokens) == (3, 43)
    assert queues.earliest_due_s == 0.97
    assert queues.buffered_due_s == pytest.approx(0.98 - 0.1)
    assert queues.tightest_tpot_s == 0.04
    assert not queues.has_drafts
    assert not queues.has_unpromised_contract


def test_a_wish_counts_only_where_it_is_a_time_before_the_due_time() -> None:
    for wanted_s in (math.nan, 2.0, NEVER):
        queues = sort_into_queues([stream("a", due_s=1.0, tpot_s=NEVER, wanted_s=wanted_s)], BLOCK, 0.25)
        assert (queues.earliest_due_s, queues.buffered_due_s) == (1.0, 1.0)


def test_streams_that_need_another_block_are_told() -> None:
    works = [stream("full", 8, due_s=1.0, held_blocks=2), stream("free", 7, due_s=1.0, held_blocks=2)]
    assert sort_into_queues(works, BLOCK, 0.25).lacking_block == works[:1]


def test_blocks_that_running_prefills_will_take_are_reserved() -> None:
    works = [
        prefill("p", 40, 9.0, computed=8, held_blocks=2),
        prefill("has all", 8, 9.0),
        prefill("be", 8, held_blocks=0),
        waiting("waits", 100, 9.0),
        stream("s", 8, due_s=1.0, held_blocks=2),
    ]
    assert sort_into_queues(works, BLOCK, 0.25).reserved_blocks == 10 + 2


def test_streams_with_drafts_set_no_pace() -> None:
    works = [stream("a", due_s=1.0, tpot_s=0.02, draft_tokens=3), stream("b", due_s=1.0, tpot_s=0.1)]
    queues = sort_into_queues(works, BLOCK, 0.25)
    assert queues.has_drafts
    assert queues.tightest_tpot_s == 0.1
    assert sort_into_queues(works[:1], BLOCK, 0.25).tightest_tpot_s == NEVER


def test_best_effort_with_a_contract_is_told_apart() -> None:
    works = [
        stream("attainable", due_s=1.0, best_effort=True, draft_tokens=2),
        stream("lost", best_effort=True),
        prefill("landed", 1, due_s=1.0, computed=20, best_effort=True),
        waiting("prompt", 9, due_s=1.0, best_effort=True),
    ]
    queues = sort_into_queues(works, BLOCK, 0.25)
    assert queues.best_effort == works
    assert queues.attainable_streams == works[:1]
    assert queues.has_unpromised_contract
    assert queues.has_drafts
    assert not sort_into_queues(works[1:2], BLOCK, 0.25).has_unpromised_contract
    waits = sort_into_queues(works[3:], BLOCK, 0.25)
    assert waits.has_unpromised_contract
    assert waits.attainable_streams == []
    assert not waits.has_drafts
