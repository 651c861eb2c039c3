"""What the router takes a worker's step for."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.cluster.cluster_view import WorkerView
from router.cluster.step_under_way import note_stop, under_way
from router.requests.live_request import LiveRequest
from services.engine.protocol import EngineLoad
from services.state.journal_entry import RequestState
from tests.unit.router.router_support import FACTS, Desk, contract, worker

BEGAN_S = 5.0
BUSY = EngineLoad(1, 0, FACTS.kv_blocks_total, 10, 0)


@pytest.fixture
def desk(model_dir: Path) -> Desk:
    return Desk(model_dir)


def prefilling(desk: Desk, request_id: str, prompt_tokens: int, worker_id: str) -> LiveRequest:
    wanted = contract(ttft_s=9.0, tpot_s=0.05)
    live = desk.take(desk.arrival(request_id, prompt_tokens, wanted), desk.assess(request_id, prompt_tokens, wanted))
    live.submit_prompt(worker_id, 0, now_s=1.0)
    live.enter(RequestState.PREFILLING)
    desk.requests.file(live)
    return live


def busy(worker_id: str) -> WorkerView:
    view = worker(worker_id)
    view.load, view.step_began_s, view.last_step_s = BUSY, BEGAN_S, 0.02
    return view


def test_a_prompt_alone_is_computed_as_a_whole(desk: Desk) -> None:
    view, prompt = busy("p1"), prefilling(desk, "r", 500, "p1")
    left_s, grants = under_way(view, [prompt], desk.requests, BEGAN_S + 0.01)
    assert grants == {"r": 500}
    assert left_s == pytest.approx(view.bound.prefill_s(500, 2048) - 0.01)


def test_a_prompt_longer_than_a_step_may_be_is_cut(desk: Desk) -> None:
    view, prompt = busy("p1"), prefilling(desk, "r", 1000, "p1")
    _, grants = under_way(view, [prompt], desk.requests, BEGAN_S)
    assert 500 < grants["r"] < 1000


def test_a_prompt_beside_streams_is_computed_as_far_as_their_rate_allows(desk: Desk) -> None:
    wanted = contract(ttft_s=9.0, tpot_s=0.05)
    stream = desk.take(desk.arrival("s", 100, wanted), desk.assess("s", 100, wanted))
    desk.start_decode(stream)
    view, prompt = busy("d1"), prefilling(desk, "r", 1000, "d1")
    left_s, grants = under_way(view, [prompt], desk.requests, BEGAN_S)
    assert 0 < grants["r"] < 400
    assert left_s <= 0.05


def test_a_step_goes_on_although_its_prompt_is_given_up(desk: Desk) -> None:
    view, prompt = busy("p1"), prefilling(desk, "r", 1000, "p1")
    expected_s, _ = under_way(view, [prompt], desk.requests, BEGAN_S + 0.01)
    note_stop(view, prompt, desk.requests, BEGAN_S + 0.01)
    desk.requests.remove(prompt)
    left_s, grants = under_way(view, [], desk.requests, BEGAN_S + 0.03)
    assert grants == {}
    assert left_s == pytest.approx(expected_s - 0.02)
    assert under_way(view, [], desk.requests, BEGAN_S + 9.0)[0] == 0.0
