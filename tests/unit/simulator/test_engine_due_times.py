"""The simulated engine keeps due times as a real one does, in its quickest branch as in the others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from services.slo.attainment import AttainmentMeter
from services.slo.composer import Composition, Limits, TokenDeadlines
from services.slo.contract import Contract, DecodeTarget, PrefillTarget
from services.slo.performance import PerformanceCoefficients, PerformanceModel, StepShape
from simulator.engine import Engine
from simulator.events import Events
from simulator.machine import Machine
from simulator.request import OfferedRequest, SimRequest

TTFT_S, TPOT_S, BEGIN_S = 0.2, 0.05, 500.0
CONTRACT = Contract(PrefillTarget(ttft_s=TTFT_S), (DecodeTarget(TPOT_S),))
MACHINE = Machine(
    name="test",
    truth=PerformanceModel(PerformanceCoefficients(0.02, 1e-4, 0.0, 0.0, "placeholder")),
    kv_tokens=64_000,
    kv_bytes_per_token=1,
    limits=Limits(2048, 64, 16),
    noise=0.2,
    acceptance=0.6,
    max_draft_tokens=4,
)


@dataclass
class Judge:
    """One request beside what an engine and a client would make of its tokens."""

    request: SimRequest
    meter: AttainmentMeter
    deadlines: TokenDeadlines
    seen: int = 0
    singles: int = 0
    """Tokens that came alone to a stream that went on: those of the quickest branch."""

    def check(self, now_s: float) -> None:
        count = self.request.generated - self.seen
        if not count:
            return
        self.singles += count == 1 and self.seen > 0 and not self.request.ended
        self.seen += count
        self.meter.note_tokens(count, now_s)
        self.deadlines.note_tokens(count, now_s)
        assert self.request.missed is self.meter.missed
        work = self.request.work
        if self.request.missed and work.best_effort:
            assert (work.due_s, work.tpot_s, work.wanted_s) == (float("inf"),) * 3
            assert self.deadlines.due_s == self.deadlines.wanted_s == float("inf")
        else:
            assert self.request.due_s == pytest.approx(self.meter.next_due_s(), abs=1e-9)
            assert self.request.due_s == self.deadlines.due_s
            assert (work.due_s, work.wanted_s) == (self.deadlines.due_s, self.deadlines.wanted_s)


@dataclass
class Chancy:
    """Serves whom it likes with as many drafts as it likes, and checks every request after every step."""

    events: Events
    draw: random.Random
    judges: dict[str, Judge] = field(default_factory=dict)

    def compose(self, engine: Engine, now_s: float) -> Composition:
        grants, admitted = {}, []
        for work in engine.works:
            if not work.running:
                admitted.append(work.request_id)
                grants[work.request_id] = work.pending_tokens
            elif self.draw.random() < 0.7:
                grants[work.request_id] = 1 + self.draw.choice((0, 0, 0, 2))
        if not grants:
            grants = {engine.works[0].request_id: 1}
        shape = StepShape(decode_requests=len(grants), decode_tokens=sum(grants.values()))
        return Composition(grants, (), tuple(admitted), (), float("inf"), 0.0, shape)

    def took(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        for judge in self.judges.values():
            judge.check(self.events.now_s)

    def first_token(self, engine: Engine, request: SimRequest) -> None: ...
    def prompt_done(self, engine: Engine, request: SimRequest) -> None: ...
    def ended(self, engine: Engine, request: SimRequest) -> None: ...
    def step_ended(self, engine: Engine) -> None: ...
    def pull(self, engine: Engine, request: SimRequest) -> None: ...


def _judges(draw: random.Random) -> Iterator[Judge]:
    for index in range(12):
        offered = OfferedRequest(BEGIN_S, "", draw.randint(1, 200), draw.randint(20, 60), CONTRACT)
        request = SimRequest(f"r{index}", offered, BEGIN_S, TTFT_S, (TPOT_S,))
        best_effort = index % 2 == 0
        request.work.due_s, request.work.tpot_s, request.work.best_effort = request.due_s, TPOT_S, best_effort
        deadlines = TokenDeadlines.begin(BEGIN_S, TTFT_S, TPOT_S, 0, best_effort=best_effort)
        yield Judge(request, AttainmentMeter(CONTRACT, BEGIN_S), deadlines)


def test_every_token_moves_the_due_time_as_deadlines_and_meter_say() -> None:
    verdicts, singles = set(), 0
    for seed in range(10):
        events, draw = Events(), random.Random(seed)
        events.now_s = BEGIN_S
        chancy = Chancy(events, draw)
        engine = Engine("w", MACHINE, events, chancy, chancy, seed)
        for judge in _judges(draw):
            chancy.judges[judge.request.request_id] = judge
            engine.submit(judge.request)
        events.run()
        for judge in chancy.judges.values():
            assert judge.seen == judge.request.output_tokens
            assert judge.request.attained is judge.meter.attainment().kept
            verdicts.add((judge.request.work.best_effort, judge.request.attained))
            singles += judge.singles
    assert len(verdicts) == 4
    assert singles > 1000
