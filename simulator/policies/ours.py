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
from simulator.cluster import Site
from simulator.engine import Engine
from simulator.policies.base import Serving, Source
from simulator.policies.choices import Choices, Roles
from simulator.policies.promise_steps import FixedSteps, PromiseComposer
from simulator.policies.promised import Lengths, Place, Spot, place_of, worker_of
from simulator.request import Live

COALESCE_S = 2e-3
"""Arrivals this close together are planned in one round."""
HELD_ROUND_S = 20e-3
"""What is held is planned again no more often than this."""
MAX_HOLD_S = 1.0
LINK_REFRESH_S = 5.0
LEAST_SHARE = 0.05
"""Of the time of a worker, what is left to prompts in any case."""


class Promising(Serving):
    """Rounds as the router has them: on arrival, when a step ended and somebody is held, and when asked for."""

    def __init__(self, site: Site, choices: Choices, tpots_s: Sequence[float]) -> None:
        super().__init__(site)
        self.choices = choices
        machine, knowledge = site.machine, choices.knowledge
        self._tiers = self._tiers_of(tpots_s)
        self._lengths = Lengths(knowledge.lengths)
        self._handovers = Handovers(machine.link)
        beliefs: dict[bool, Belief] = {}
        self.spots: list[Spot] = []
        engines = []
        for index in range(site.workers):
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
        self._pending: dict[str, Live] = {}
        self._queue: deque[Live] = deque()
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

    def arrive(self, live: Live) -> None:
        if self.choices.admission:
            prompt = live.offered.prompt_tokens
            self._newcomers.note(Candidate(live.request_id, prompt, prompt, live.ttft_s, self._tier(live)))
            self._pending[live.request_id] = live
            self._have_round(max(self.events.now_s, self._last_round_s + COALESCE_S))
        else:
            self._take_unplanned(live, self._soonest(live)[0], promised=True)

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
        lives = list(self._pending.values())
        for live, decision in zip(lives, self._decide(lives, now_s), strict=True):
            self._settle(live, decision, now_s)

    def _decide(self, lives: Sequence[Live], now_s: float) -> Sequence[Decision]:
        spots = [spot for spot in self.spots if not spot.engine.failed] or self.spots
        if not self.choices.ring:
            return self._plan(spots, lives, now_s)
        starts = [spot for spot in spots if spot.prefills]
        answers = []
        for live in lives:
            self._next_in_ring += 1
            decision = None
            for hop in range(len(starts)):
                first = starts[(self._next_in_ring + hop) % len(starts)]
                there = [spot for spot in spots if spot.decodes and (not first.decodes or spot is first)]
                (decision,) = self._plan(list({id(s): s for s in (first, *there)}.values()), [live], now_s, first)
                if decision.guaranteed:
                    break
            assert decision is not None
            answers.append(decision)
            if decision.guaranteed:
                self._settle(live, decision, now_s)
        return answers

    def _plan(
        self, spots: Sequence[Spot], lives: Sequence[Live], now_s: float, only: Spot | None = None
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
        candidates = tuple(self._candidate(live, spots, now_s) for live in lives)
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
            prefill=(tuple(i for i, spot in enumerate(spots) if spot.prefills and only in {None, spot}),),
            decode=(tuple(i for i, spot in enumerate(spots) if spot.decodes),),
            link=Link(link.latency_s, link.bytes_per_s),
            kv_bytes_per_token=float(self.machine.kv_bytes_per_token),
        )
        self._topology = (key, now_s, topology)
        return topology

    def _candidate(self, live: Live, spots: Sequence[Spot], now_s: float) -> Candidate:
        offered = live.offered
        cached: tuple[tuple[str, int], ...] = ()
        if offered.prefix:
            found = ((spot.worker_id, spot.engine.prefixes.peek(offered)) for spot in spots if spot.prefills)
            cached = tuple((worker_id, tokens) for worker_id, tokens in found if tokens)
        tail = self._lengths.of(live).tail_tokens
        tier = self._tier(live)
        return Candidate(
            live.request_id, live.context_tokens, offered.prompt_tokens + tail, live.due_s - now_s, tier, cached=cached
        )

    def _tier(self, live: Live) -> int:
        tpot_s = live.tightest_tpot_s
        return max((index for index, tier_s in enumerate(self._tiers.tpot_s) if tier_s <= tpot_s), default=-1)

    def _settle(self, live: Live, decision: Decision, now_s: float) -> None:
        if live.request_id not in self._pending:
            return
        if decision.guaranteed:
            del self._pending[live.request_id]
            self._price.settled(now_s, decision.work_per_value, decision.binding, late=False)
            live.guaranteed = True
            lane, decoder = self._by_id[decision.prefill_worker_id], self._by_id[decision.decode_worker_id]
            self._commit(live, lane, decoder, promised=True)
            return
        if decision.verdict is Verdict.HOLD and decision.earliest_s is not None:
            until_s = now_s + decision.earliest_s
            if now_s < until_s <= live.arrival_s + MAX_HOLD_S:
                if decision.replan_s is not None:
                    self._have_round(now_s + max(decision.replan_s, COALESCE_S))
                return
        del self._pending[live.request_id]
        lane, first_token_s = self._soonest(live)
        late = now_s + first_token_s > live.due_s
        self._price.settled(now_s, decision.work_per_value, decision.binding, late=late)
        if self.choices.best_effort:
            self._take_unplanned(live, lane, promised=False)
        else:
            self.refuse(live)

    def _soonest(self, live: Live) -> tuple[Spot, float]:
        """Where least is to do, and in how many seconds it has its first token there."""
        lanes = self._lanes()
        in_s = [self._first_token_s(spot, live) for spot in lanes]
        soonest = min(range(len(lanes)), key=in_s.__getitem__)
        return lanes[soonest], in_s[soonest]

    def _take_unplanned(self, live: Live, lane: Spot, *, promised: bool) -> None:
        """What can no longer be in time waits here until an engine has room for its prompt."""
        most_tokens, now_s = self.machine.limits.max_step_tokens, self.events.now_s
        model = lane.belief.model
        if promised or may_be_in_time(live.context_tokens, live.due_s, model, most_tokens, now_s):
            self._commit(live, lane, self._decoder_for(lane), promised=promised)
        else:
            self._queue.append(live)
            self._feed()

    def _first_token_s(self, spot: Spot, live: Live) -> float:
        """Until its first token there, as `latency_forecast` has it: prompts get what streams leave of a step."""
        model, streams = spot.belief.model, spot.decoding
        share = 1.0
        if streams:
            context_tokens = sum([other.context_tokens for other in streams.values()])
            share = max(LEAST_SHARE, 1 - model.decode_step_s(len(streams), context_tokens) / self._tiers.tpot_s[0])
        tokens = max(1, _prompt_tokens(spot) + live.context_tokens - spot.engine.prefixes.peek(live.offered))
        return spot.busy_s(self.events.now_s) + model.prefill_s(tokens, self.machine.limits.max_step_tokens) / share

    def _feed(self) -> None:
        """Prompts that are late already go to engines a step's worth at a time."""
        while self._queue:
            lane = min(self._lanes(), key=lambda spot: spot.unplanned_tokens)
            live = self._queue[0]
            room = self.machine.limits.max_step_tokens // 4
            if lane.unplanned_tokens and lane.unplanned_tokens + live.context_tokens > room:
                return
            self._queue.popleft()
            self._commit(live, lane, self._decoder_for(lane), promised=False)

    def _lanes(self) -> Sequence[Spot]:
        lanes = [spot for spot in self.spots if spot.prefills]
        return [spot for spot in lanes if not spot.engine.failed] or lanes

    def _decoder_for(self, lane: Spot) -> Spot:
        if lane.decodes:
            return lane
        there = [spot for spot in self.spots if spot.decodes]
        there = [spot for spot in there if not spot.engine.failed] or there
        return min(there, key=lambda spot: len(spot.decoding))

    def _commit(self, live: Live, lane: Spot, decoder: Spot, *, promised: bool) -> None:
        tier = self._tier(live)
        live.placed = Place(lane, decoder, promised, tier, self._lengths.of(live), live.generated)
        lane.prompts[live.request_id] = live
        lane.unplanned_tokens += 0 if promised else live.offered.prompt_tokens
        decoder.hold(live)
        work = live.work
        live.export = lane is not decoder
        work.best_effort = not promised
        self._pace(live)
        lane.engine.submit(live)

    def _pace(self, live: Live) -> None:
        """What is owed to it on this engine: nothing, once best effort has missed its contract."""
        lost = live.work.best_effort and live.missed
        live.work.due_s = math.inf if lost else live.due_s
        live.work.tpot_s = math.inf if lost or live.export else live.tpot_s

    def decoder_of(self, live: Live) -> Engine:
        place = place_of(live)
        if place.decoder.engine.failed:
            self._move(live, place)
        live.export = False
        self._pace(live)
        return place.decoder.engine

    def _move(self, live: Live, place: Place) -> None:
        place.decoder.let_go(live)
        place.decoder = self._decoder_for(place.lane)
        place.decoder.hold(live)

    def first_token(self, engine: Engine, live: Live) -> None:
        self._leave_lane(live)
        super().first_token(engine, live)

    def prompt_done(self, engine: Engine, live: Live) -> None:
        self._leave_lane(live)

    def handed_over(self, source: Source, engine: Engine, live: Live, transfer_s: float) -> None:
        spot = self._by_id[engine.worker_id]
        kv_bytes = source.tokens * self.machine.kv_bytes_per_token
        work_s = spot.belief.model.decode_step_s(max(1, len(engine.lives)), live.context_tokens * len(engine.lives))
        wait_s = self.events.now_s - source.since_s
        self._handovers.observe(
            source.engine.worker_id,
            engine.worker_id,
            kv_bytes,
            transfer_s,
            wait_s + spot.busy_s(self.events.now_s),
            work_s,
            busy=len(engine.lives) > 1,
        )

    def _leave_lane(self, live: Live) -> None:
        """Its prompt is computed."""
        place = place_of(live)
        if place.lane.prompts.pop(live.request_id, None) is None:
            return
        if place.planned:
            place.decoder.hold(live)
        else:
            place.lane.unplanned_tokens -= live.offered.prompt_tokens
            self._feed()

    def ended(self, engine: Engine, live: Live) -> None:
        place = place_of(live)
        self._leave_lane(live)
        place.decoder.let_go(live)
        self._lengths.ended(live)
        super().ended(engine, live)

    def lost(self, engine: Engine, lives: Sequence[Live]) -> None:
        for live in lives:
            place = place_of(live)
            place.lane.prompts.pop(live.request_id, None)
            place.decoder.let_go(live)
            if not place.planned:
                place.lane.unplanned_tokens = max(0, place.lane.unplanned_tokens - live.offered.prompt_tokens)
            lane = min(self._lanes(), key=_prompt_tokens)
            self._commit(live, lane, self._decoder_for(lane), promised=place.planned)


def _prompt_tokens(spot: Spot) -> int:
    return sum([live.work.pending_tokens for live in spot.prompts.values()])
