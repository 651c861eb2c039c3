"""This project: the production planner decides in rounds, the production composer fills every step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from services.slo.latency_forecast import may_be_in_time
from services.slo.planner import (
    ArrivalSample,
    Candidate,
    CommittedLoad,
    CostThreshold,
    Decision,
    Link,
    Problem,
    Tiers,
    Topology,
    Verdict,
    plan_round,
    reserved_headroom,
)
from services.slo.transfer import Handovers
from simulator.belief import PLANNED_COVERAGE, Belief
from simulator.cluster import PolicyContext
from simulator.engine import Engine
from simulator.policies.base import BasePolicy, Source
from simulator.policies.choices import Choices, Roles
from simulator.policies.promise_steps import FixedSteps, PromiseComposer
from simulator.policies.promised import LengthForecasts, Place, Spot, place_of, worker_of
from simulator.request import SimRequest

COALESCE_S = 2e-3
"""Arrivals this close together are planned in one round."""
HELD_ROUND_S = 20e-3
"""What is held is planned again no more often than this."""
MAX_HOLD_S = 1.0
LINK_REFRESH_S = 5.0
LEAST_SHARE = 0.05
"""Of the time of a worker, what is left to prompts in any case."""


class Promising(BasePolicy):
    """Rounds as the router has them: on arrival, when a step ended and somebody is held, and when asked for."""

    def __init__(self, context: PolicyContext, choices: Choices, tpots_s: Sequence[float]) -> None:
        super().__init__(context)
        self.choices = choices
        machine, knowledge = context.machine, choices.knowledge
        self._tiers = self._tiers_of(tpots_s)
        self._lengths = LengthForecasts(knowledge.lengths)
        self._handovers = Handovers(machine.link)
        beliefs: dict[bool, Belief] = {}
        self.spots: list[Spot] = []
        engines = []
        for index in range(context.workers):
            alone = choices.roles is not Roles.COLOCATED and index < choices.prefills
            decodes = not alone
            prefills = alone or choices.roles is not Roles.DISAGGREGATED
            belief = beliefs.setdefault(alone, Belief(machine, knowledge))
            # A decode handed over finds a step under way, and its second token is due one TPOT after the first.
            receives = decodes and choices.roles is not Roles.COLOCATED
            cap_s = min(tpots_s, default=math.inf) if receives else math.inf
            composer = self._composer(belief, cap_s, min(tpots_s, default=math.inf))
            engine = self.engine(index, composer, reserves_output=not choices.composition)
            plans = replace(choices.policy, step_cap_s=cap_s)
            spot = Spot(engine, prefills, decodes, belief, plans, holdings=CommittedLoad(len(self._tiers.tpot_s)))
            if isinstance(composer, PromiseComposer):
                composer.spot = spot
            engines.append(engine)
            self.spots.append(spot)
        self.engines = engines
        self._by_id = {spot.worker_id: spot for spot in self.spots}
        self._pending: dict[str, SimRequest] = {}
        self._queue: deque[SimRequest] = deque()
        self._round_at_s = math.inf
        self._last_round_s = -math.inf
        self._newcomers = ArrivalSample[Candidate](lambda candidate: candidate.prompt_tokens)
        self._price = CostThreshold()
        self.rounds = 0
        self._next_in_ring = 0
        self._topology: tuple[tuple[int, ...], float, Topology] | None = None

    def _composer(self, belief: Belief, cap_s: float, tightest_tpot_s: float) -> PromiseComposer | FixedSteps:
        if self.choices.composition:
            return PromiseComposer(belief, cap_s, self.choices.policy)
        return FixedSteps(belief, tightest_tpot_s)

    def _tiers_of(self, tpots_s: Sequence[float]) -> Tiers:
        machine = self.machine
        tpots = tuple(sorted(set(tpots_s))) or (1e3,)
        drafts = machine.max_draft_tokens if self.choices.speculation else 0
        return Tiers(tpots, (machine.acceptance,) * len(tpots) if drafts else (), drafts)

    def arrive(self, request: SimRequest) -> None:
        if self.choices.admission:
            prompt = request.offered.prompt_tokens
            self._newcomers.note(Candidate(request.request_id, prompt, prompt, request.ttft_s, self._tier(request)))
            self._pending[request.request_id] = request
            self._have_round(max(self.events.now_s, self._last_round_s + COALESCE_S))
        else:
            self._take_unplanned(request, self._soonest(request)[0], promised=True)

    def step_ended(self, engine: Engine) -> None:
        if self._pending:
            self._have_round(max(self.events.now_s, self._last_round_s + HELD_ROUND_S))

    def _have_round(self, at_s: float) -> None:
        if at_s < self._round_at_s:
            self._round_at_s = at_s
            self.events.at(at_s, self._run_round)

    def _run_round(self) -> None:
        now_s = self.events.now_s
        if self._round_at_s != now_s or not self._pending:
            self._round_at_s = math.inf if self._round_at_s <= now_s else self._round_at_s
            return
        self._round_at_s, self._last_round_s = math.inf, now_s
        requests = list(self._pending.values())
        for request, decision in zip(requests, self._decide(requests, now_s), strict=True):
            self._settle(request, decision, now_s)

    def _decide(self, requests: Sequence[SimRequest], now_s: float) -> Sequence[Decision]:
        spots = [spot for spot in self.spots if not spot.engine.failed] or self.spots
        if not self.choices.ring:
            return self._plan(spots, requests, now_s)
        starts = [spot for spot in spots if spot.prefills]
        answers = []
        for request in requests:
            self._next_in_ring += 1
            decision = None
            for hop in range(len(starts)):
                first = starts[(self._next_in_ring + hop) % len(starts)]
                there = [spot for spot in spots if spot.decodes and (not first.decodes or spot is first)]
                (decision,) = self._plan(list({id(s): s for s in (first, *there)}.values()), [request], now_s, first)
                if decision.guaranteed:
                    break
            assert decision is not None
            answers.append(decision)
            if decision.guaranteed:
                self._settle(request, decision, now_s)
        return answers

    def _plan(
        self, spots: Sequence[Spot], requests: Sequence[SimRequest], now_s: float, only: Spot | None = None
    ) -> Sequence[Decision]:
        workers = [
            worker_of(
                spot,
                self._tiers,
                self._lengths,
                now_s,
                self._handovers.steps_bound(spot.worker_id, PLANNED_COVERAGE, busy=bool(spot.decoding)),
            )
            for spot in spots
        ]
        self.rounds += 1
        candidates = tuple(self._candidate(request, spots, now_s) for request in requests)
        room = reserved_headroom(self.choices.newcomers, self._price if self.choices.price else None, now_s)
        outcome = plan_round(
            Problem(
                workers,
                self._topology_of(spots, workers, only),
                candidates,
                typical_arrival=self._newcomers.typical() if room else None,
                headroom_requests=room.requests if room else 0.0,
                cost_threshold=room.cost_threshold if room else 0.0,
                seed=self.rounds,
            )
        )
        for worker_id, plan in outcome.steps.items():
            self._by_id[worker_id].drafts = plan.draft_tokens
        return outcome.decisions

    def _topology_of(self, spots: Sequence[Spot], workers: Sequence[object], only: Spot | None) -> Topology:
        key = (*(int(spot.worker_id[1:]) for spot in spots), -1 if only is None else int(only.worker_id[1:]))
        kept = self._topology
        now_s = self.events.now_s
        if kept is not None and kept[0] == key and now_s - kept[1] < LINK_REFRESH_S:
            return kept[2]
        link = self._handovers.link("", "", PLANNED_COVERAGE)
        topology = Topology(
            workers=tuple(spot.worker_id for spot in spots),
            prefill=tuple(i for i, spot in enumerate(spots) if spot.prefills and only in {None, spot}),
            decode=tuple(i for i, spot in enumerate(spots) if spot.decodes),
            link=Link(link.latency_s, link.bytes_per_s),
            kv_bytes_per_token=float(self.machine.kv_bytes_per_token),
        )
        self._topology = (key, now_s, topology)
        return topology

    def _candidate(self, request: SimRequest, spots: Sequence[Spot], now_s: float) -> Candidate:
        offered = request.offered
        cached: tuple[tuple[str, int], ...] = ()
        if offered.prefix:
            found = ((spot.worker_id, spot.engine.prefixes.peek(offered)) for spot in spots if spot.prefills)
            cached = tuple((worker_id, tokens) for worker_id, tokens in found if tokens)
        tail = self._lengths.of(request).tail_tokens
        tier = self._tier(request)
        return Candidate(
            request.request_id,
            request.context_tokens,
            offered.prompt_tokens + tail,
            request.due_s - now_s,
            tier,
            cached=cached,
        )

    def _tier(self, request: SimRequest) -> int:
        tpot_s = request.tightest_tpot_s
        return max((index for index, tier_s in enumerate(self._tiers.tpot_s) if tier_s <= tpot_s), default=-1)

    def _settle(self, request: SimRequest, decision: Decision, now_s: float) -> None:
        if request.request_id not in self._pending:
            return
        if decision.guaranteed:
            del self._pending[request.request_id]
            self._price.settled(now_s, decision.work_per_value, decision.binding, late=False)
            request.guaranteed = True
            lane, decoder = self._by_id[decision.prefill_worker_id], self._by_id[decision.decode_worker_id]
            self._commit(request, lane, decoder, promised=True)
            return
        if decision.verdict is Verdict.HOLD and decision.earliest_s is not None:
            until_s = now_s + decision.earliest_s
            if now_s < until_s <= request.arrival_s + MAX_HOLD_S:
                if decision.replan_s is not None:
                    self._have_round(now_s + max(decision.replan_s, COALESCE_S))
                return
        del self._pending[request.request_id]
        lane, first_token_s = self._soonest(request)
        late = now_s + first_token_s > request.due_s
        self._price.settled(now_s, decision.work_per_value, decision.binding, late=late)
        if self.choices.best_effort:
            self._take_unplanned(request, lane, promised=False)
        else:
            self.refuse(request)

    def _soonest(self, request: SimRequest) -> tuple[Spot, float]:
        """Where least is to do, and in how many seconds it has its first token there."""
        lanes = self._lanes()
        in_s = [self._first_token_s(spot, request) for spot in lanes]
        soonest = min(range(len(lanes)), key=in_s.__getitem__)
        return lanes[soonest], in_s[soonest]

    def _take_unplanned(self, request: SimRequest, lane: Spot, *, promised: bool) -> None:
        """What can no longer be in time waits here until an engine has room for its prompt."""
        most_tokens, now_s = self.machine.limits.max_step_tokens, self.events.now_s
        model = lane.belief.model
        if promised or may_be_in_time(request.context_tokens, request.due_s, model, most_tokens, now_s):
            self._commit(request, lane, self._decoder_for(lane), promised=promised)
        else:
            self._queue.append(request)
            self._feed()

    def _first_token_s(self, spot: Spot, request: SimRequest) -> float:
        """Until its first token there, as `latency_forecast` has it: prompts get what streams leave of a step."""
        model, streams = spot.belief.model, spot.decoding
        share = 1.0
        if streams:
            context_tokens = sum([other.context_tokens for other in streams.values()])
            share = max(LEAST_SHARE, 1 - model.decode_step_s(len(streams), context_tokens) / self._tiers.tpot_s[0])
        tokens = max(1, _prompt_tokens(spot) + request.context_tokens - spot.engine.prefixes.peek(request.offered))
        return spot.busy_s(self.events.now_s) + model.prefill_s(tokens, self.machine.limits.max_step_tokens) / share

    def _feed(self) -> None:
        """Prompts that are late already go to engines a step's worth at a time."""
        while self._queue:
            lane = min(self._lanes(), key=lambda spot: spot.unplanned_tokens)
            request = self._queue[0]
            room = self.machine.limits.max_step_tokens // 4
            if lane.unplanned_tokens and lane.unplanned_tokens + request.context_tokens > room:
                return
            self._queue.popleft()
            self._commit(request, lane, self._decoder_for(lane), promised=False)

    def _lanes(self) -> Sequence[Spot]:
        lanes = [spot for spot in self.spots if spot.prefills]
        return [spot for spot in lanes if not spot.engine.failed] or lanes

    def _decoder_for(self, lane: Spot) -> Spot:
        if lane.decodes:
            return lane
        there = [spot for spot in self.spots if spot.decodes]
        there = [spot for spot in there if not spot.engine.failed] or there
        return min(there, key=lambda spot: len(spot.decoding))

    def _commit(self, request: SimRequest, lane: Spot, decoder: Spot, *, promised: bool) -> None:
        tier = self._tier(request)
        request.placed = Place(lane, decoder, promised, tier, self._lengths.of(request), request.generated)
        lane.prompts[request.request_id] = request
        lane.unplanned_tokens += 0 if promised else request.offered.prompt_tokens
        decoder.hold(request)
        work = request.work
        request.export = lane is not decoder
        work.best_effort = not promised
        self._pace(request)
        lane.engine.submit(request)

    def _pace(self, request: SimRequest) -> None:
        """What is owed to it on this engine: nothing, once best effort has missed its contract."""
        lost = request.work.best_effort and request.missed
        request.work.due_s = math.inf if lost else request.due_s
        request.work.tpot_s = math.inf if lost or request.export else request.tpot_s

    def decoder_of(self, request: SimRequest) -> Engine:
        place = place_of(request)
        if place.decoder.engine.failed:
            self._move(request, place)
        request.export = False
        self._pace(request)
        return place.decoder.engine

    def _move(self, request: SimRequest, place: Place) -> None:
        place.decoder.let_go(request)
        place.decoder = self._decoder_for(place.lane)
        place.decoder.hold(request)

    def first_token(self, engine: Engine, request: SimRequest) -> None:
        self._leave_lane(request)
        super().first_token(engine, request)

    def prompt_done(self, engine: Engine, request: SimRequest) -> None:
        self._leave_lane(request)

    def handed_over(self, source: Source, engine: Engine, request: SimRequest, transfer_s: float) -> None:
        spot = self._by_id[engine.worker_id]
        kv_bytes = source.tokens * self.machine.kv_bytes_per_token
        work_s = spot.belief.model.decode_step_s(
            max(1, len(engine.requests)), request.context_tokens * len(engine.requests)
        )
        wait_s = self.events.now_s - source.since_s
        self._handovers.observe(
            source.engine.worker_id,
            engine.worker_id,
            kv_bytes,
            transfer_s,
            wait_s + spot.busy_s(self.events.now_s),
            work_s,
            busy=len(engine.requests) > 1,
        )

    def _leave_lane(self, request: SimRequest) -> None:
        """Its prompt is computed."""
        place = place_of(request)
        if place.lane.prompts.pop(request.request_id, None) is None:
            return
        if place.planned:
            place.decoder.hold(request)
        else:
            place.lane.unplanned_tokens -= request.offered.prompt_tokens
            self._feed()

    def ended(self, engine: Engine, request: SimRequest) -> None:
        place = place_of(request)
        self._leave_lane(request)
        place.decoder.let_go(request)
        self._lengths.ended(request)
        super().ended(engine, request)

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        for request in requests:
            place = place_of(request)
            place.lane.prompts.pop(request.request_id, None)
            place.decoder.let_go(request)
            if not place.planned:
                place.lane.unplanned_tokens = max(0, place.lane.unplanned_tokens - request.offered.prompt_tokens)
            lane = min(self._lanes(), key=_prompt_tokens)
            self._commit(request, lane, self._decoder_for(lane), promised=place.planned)


def _prompt_tokens(spot: Spot) -> int:
    return sum([request.work.pending_tokens for request in spot.prompts.values()])
