"""Planning rounds: coalesced, repeated while waiting helps, and fair to what waited long."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from router.admission.admission_loop import AdmissionLoop
from router.observability.counters import Counters
from router.requests.events import RequestEvents
from router.requests.live_request import LiveRequest
from router.requests.planning_log import PlanningRound
from services.rpc.errors import CancelledRequestError, OverloadedError, PlanningFailedError
from services.slo.admission import (
    DEFAULT_OPTIONS,
    AdmissionCore,
    AdmissionOptions,
    Arrival,
    Assessment,
    Outcome,
    RequestVerdict,
)
from services.slo.admission.assessor import Assessor
from services.slo.contract import Contract
from services.slo.latency_forecast import Placement
from services.slo.planner import Binding
from tests.support.tiny_model import write_tiny_model
from tests.unit.router.router_support import START_S, Desk, contract, recorder


@dataclass(slots=True)
class Bench:
    """Rounds over an idle cluster with a clock that stands still unless told otherwise."""

    desk: Desk
    now_s: float = START_S
    counters: Counters = field(default_factory=Counters)
    given_room: list[LiveRequest] = field(default_factory=list)
    rounds: AdmissionLoop = field(init=False)

    def __post_init__(self) -> None:
        events = RequestEvents(self.counters, recorder())
        desk = self.desk
        self.rounds = AdmissionLoop(desk.core, desk.cluster, desk.requests, self._give_room, lambda: self.now_s, events)

    def _give_room(self, request: LiveRequest, placement: Placement) -> None:
        request.give_room(placement)
        self.desk.file(request)
        self.given_room.append(request)

    def ask(self, request_id: str, prompt_tokens: int, wanted: Contract) -> asyncio.Task[Assessment]:
        arrival = self.desk.arrival(request_id, prompt_tokens, wanted, self.now_s)
        return asyncio.create_task(
            self.rounds.decide(arrival, lambda answer: void(self.desk.take(arrival, answer))), name=request_id
        )

    async def fill(self) -> None:
        """Two prompts of about 0.22 s each, so that a third one within 0.65 s has to wait."""
        answers = await asyncio.gather(*(self.ask(f"b{index}", 2000, contract(0.65)) for index in range(2)))
        assert all(answer.guaranteed for answer in answers)

    async def round(self) -> None:
        """Let the round that is due happen."""
        await asyncio.sleep(3 * DEFAULT_OPTIONS.coalesce_s)
        self.now_s += 1e-9


def void(_: object) -> None:
    return None


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def bench(model_dir: Path) -> Bench:
    return Bench(Desk(model_dir))


async def test_arrivals_close_together_are_one_round(bench: Bench) -> None:
    tasks = [bench.ask(f"r{index}", 100, contract(1.0, 0.1)) for index in range(5)]
    answers = await asyncio.gather(*tasks)
    assert all(answer.guaranteed for answer in answers)
    assert bench.counters.rounds == 1
    assert len(bench.desk.requests) == 5
    assert bench.rounds.held == 0


async def test_what_finds_room_soon_is_held_and_then_guaranteed(bench: Bench) -> None:
    await bench.fill()
    waiting = bench.ask("w", 2000, contract(0.65, 0.1, refuse=True))
    await bench.round()
    assert not waiting.done()
    assert bench.rounds.held == 1
    for request in bench.desk.requests:
        if request.guaranteed:
            bench.desk.remove(request)
    bench.rounds.changed()
    assert (await waiting).guaranteed
    assert bench.rounds.held == 0


async def test_a_held_request_is_decided_about_again_without_any_event(bench: Bench) -> None:
    """Time alone decides: after 0.3 s it can no longer be in time, and nothing but the loop's own timer says so."""
    await bench.fill()
    waiting = bench.ask("w", 2000, contract(0.65, 0.1, refuse=True))
    await bench.round()
    assert not waiting.done()
    bench.now_s += 0.6
    with pytest.raises(OverloadedError):
        await asyncio.wait_for(waiting, 20)


async def test_a_request_knows_every_round_it_took_part_in(bench: Bench) -> None:
    await bench.fill()
    waiting = bench.ask("w", 2000, contract(0.65, 0.1))
    await bench.round()
    for request in bench.desk.requests:
        bench.desk.remove(request)
    bench.rounds.changed()
    await waiting
    taken = bench.desk.requests.get("w")
    assert taken is not None
    held, settled = taken.planning.notes[0], taken.planning.verdict
    assert (held.outcome, held.binding) == (Outcome.HELD, Binding.PREFILL_TIME)
    assert held.earliest_guarantee_s is not None
    assert settled is taken.planning.notes[-1]
    assert (settled.outcome, settled.placement) == (Outcome.GUARANTEED, taken.placement)
    assert settled.round.candidates == 1
    assert settled.round.number > held.round.number


async def test_what_would_have_to_wait_too_long_is_answered_at_once(model_dir: Path) -> None:
    bench = Bench(Desk(model_dir, options=AdmissionOptions(max_hold_s=0.0)))
    await bench.fill()
    with pytest.raises(OverloadedError):
        await bench.ask("w", 2000, contract(0.65, 0.1, refuse=True))


async def test_a_held_request_can_be_cancelled(bench: Bench) -> None:
    await bench.fill()
    waiting = bench.ask("w", 2000, contract(0.65, 0.1))
    await bench.round()
    assert bench.rounds.cancel("w")
    assert not bench.rounds.cancel("w")
    with pytest.raises(CancelledRequestError):
        await waiting
    assert bench.rounds.held == 0


async def test_a_client_that_goes_away_is_forgotten(bench: Bench) -> None:
    await bench.fill()
    waiting = bench.ask("w", 2000, contract(0.65, 0.1))
    await bench.round()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert bench.rounds.held == 0
    assert bench.desk.requests.get("w") is None


async def test_best_effort_that_waited_for_its_patience_is_given_room(bench: Bench) -> None:
    answer = await bench.ask("be", 1000, contract())
    assert not answer.guaranteed
    bench.now_s = START_S + 29.0
    bench.rounds.tick()
    await bench.round()
    assert bench.given_room == []
    bench.now_s = START_S + 30.5
    bench.rounds.tick()
    await bench.round()
    assert [request.request_id for request in bench.given_room] == ["be"]
    assert bench.given_room[0].placement.due_s == pytest.approx(START_S + 60.5)
    assert not bench.given_room[0].guaranteed, "the client was told otherwise"
    assert [note.outcome for note in bench.given_room[0].planning.notes] == [Outcome.BEST_EFFORT, Outcome.MOVED]


async def test_a_verdict_that_cannot_be_carried_out_leaves_nobody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = AdmissionLoop._settle

    def broken(self: AdmissionLoop, verdict: RequestVerdict, planned: PlanningRound) -> None:
        if verdict.request_id == "a":
            raise ZeroDivisionError
        settle(self, verdict, planned)

    monkeypatch.setattr(AdmissionLoop, "_settle", broken)
    first, second = await asyncio.gather(
        bench.ask("a", 100, contract(1.0)), bench.ask("b", 100, contract(1.0)), return_exceptions=True
    )
    assert isinstance(first, PlanningFailedError)
    assert isinstance(second, Assessment), "it was decided about in the same round"
    assert second.guaranteed
    assert bench.rounds.held == 0


async def test_a_round_that_breaks_off_leaves_nobody_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as defect:
        defect.setattr(AdmissionCore, "decide", broken)
        with pytest.raises(PlanningFailedError, match="ZeroDivisionError"):
            await bench.ask("a", 100, contract(1.0))
    assert bench.rounds.held == 0
    assert (await bench.ask("b", 100, contract(1.0))).guaranteed


async def test_a_request_that_planning_fails_on_is_refused_and_the_others_of_its_round_are_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assess = Assessor.assess

    def broken(self: Assessor, arrivals: Sequence[Arrival], *rest: Any, **options: Any) -> Any:
        if any(arrival.request_id == "evil" for arrival in arrivals):
            raise OverflowError("cannot convert float infinity to integer")
        return assess(self, arrivals, *rest, **options)

    monkeypatch.setattr(Assessor, "assess", broken)
    good, evil, idle = await asyncio.gather(
        bench.ask("good", 100, contract(1.0)),
        bench.ask("evil", 100, contract(1.0)),
        bench.ask("idle", 100, Contract()),
        return_exceptions=True,
    )
    assert isinstance(evil, PlanningFailedError)
    assert isinstance(good, Assessment)
    assert good.guaranteed
    assert isinstance(idle, Assessment)
    assert bench.rounds.held == 0
    assert (await bench.ask("later", 100, contract(1.0))).guaranteed
