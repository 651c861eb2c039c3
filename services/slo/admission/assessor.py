"""The verdict on requests were they taken now, against the cluster with everything that is promised."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from services.slo.admission.assessment import Assessment, Held, Impossible, Target, Unservable
from services.slo.admission.fair_shares import ALONE, FairShares, RoundShares
from services.slo.admission.idle_cluster import IdleCluster
from services.slo.admission.latency_view import RoundViews
from services.slo.admission.planner_view import PlannerView
from services.slo.admission.prefixes import PrefixIndex
from services.slo.admission.promise_placement import RoomFound, place_promises
from services.slo.admission.promise_wanted import PromiseWanted, first_token_due_s
from services.slo.admission.requests import Arrival, RequestFacts, TrackedRequest, context_tokens
from services.slo.admission.tiers import tier_of
from services.slo.admission.workers import Cluster, Group, WorkerState
from services.slo.contract import Contract
from services.slo.latency_forecast import Placement, place_without_promise
from services.slo.planner import (
    ArrivalSample,
    Binding,
    CostThreshold,
    Decision,
    OwedArrival,
    Problem,
    Round,
    Tiers,
    Verdict,
    plan_round,
    reserved_headroom,
)


@dataclass(slots=True)
class Assessor:
    """Assesses requests against the cluster as it is. Changes nothing about them. Owned by one event loop."""

    cluster: Cluster
    view: PlannerView
    prefixes: PrefixIndex
    arrivals: ArrivalSample[PromiseWanted]
    threshold: CostThreshold
    random: Random
    idle: IdleCluster
    shares: FairShares
    rounds: int = 0
    """Planning rounds so far; also the seed of what the next one samples."""
    next_in_turn: int = 0
    """With `one_worker_in_turn`: how often the first offer has moved on."""
    _drafts: dict[str, tuple[Tiers, tuple[int, ...]]] = field(default_factory=dict)
    """Draft tokens of each tier, by worker, as it was last planned with."""

    def assess(
        self, arrivals: Sequence[Arrival], now_s: float, max_hold_s: float = 0.0
    ) -> list[Assessment | Held | Unservable]:
        """Return, for each request, what one planning round over all of them answers.

        Args:
            max_hold_s: seconds after its arrival until which a request may be held.
        """
        groups = self.cluster.groups()
        if not groups:
            return [Unservable.NO_WORKER] * len(arrivals)
        resolved = [self.idle.resolve(arrival, groups, now_s) for arrival in arrivals]
        shares = self.shares.round(now_s)
        wanted = [
            None
            if impossible is not None or not contract.promises_anything
            else self._wanted(arrival, contract, shares)
            for arrival, (contract, impossible) in zip(arrivals, resolved, strict=True)
        ]
        promising = [request for request in wanted if request is not None]
        decisions = self.plan(promising, groups, now_s, keep_headroom=True, shares=shares)
        placements = self.place(
            [
                RoomFound(decisions[request.request_id], request, arrival.arrival_s)
                for arrival, request in zip(arrivals, wanted, strict=True)
                if request is not None and decisions[request.request_id].guaranteed
            ],
            now_s,
        )
        answers: list[Assessment | Held | Unservable] = []
        views = RoundViews(self.view, now_s)
        for arrival, (contract, impossible), request in zip(arrivals, resolved, wanted, strict=True):
            if request is not None and request.request_id in placements:
                work = decisions[request.request_id].work_per_value
                answers.append(Assessment(contract, placements[request.request_id], Binding.NONE, work_per_value=work))
            else:
                decision = None if request is None else decisions[request.request_id]
                held = None if decision is None else _held(arrival, contract, decision, max_hold_s, now_s)
                if held is not None:
                    answers.append(held)
                    continue
                cached = self.cached(arrival.facts) if request is None else request.cached
                answers.append(self._not_guaranteed(arrival, contract, impossible, decision, groups, views, cached))
        return answers

    def plan(
        self,
        wanted: Sequence[PromiseWanted],
        groups: Sequence[Group],
        now_s: float,
        *,
        keep_headroom: bool,
        shares: RoundShares = ALONE,
    ) -> dict[str, Decision]:
        """Plan each group in turn for the requests that found no room before. Returns decisions by request id.

        Args:
            keep_headroom: the costliest requests leave room for typical ones, as the options and the threshold say.
            shares: how the tenants of the requests stand against each other.
        """
        owed = shares.owed_arrival
        if self.view.options.one_worker_in_turn:
            decided: dict[str, Decision] = {}
            for request in wanted:
                decided |= self._plan_groups([request], self._in_turn(groups), now_s, owed, keep_headroom=keep_headroom)
            return decided
        return self._plan_groups(wanted, groups, now_s, owed, keep_headroom=keep_headroom)

    def place(self, found: Sequence[RoomFound], now_s: float) -> dict[str, Placement]:
        """Return where requests run that room was found for, by request id."""
        return place_promises(found, self.cluster.workers, self.view, now_s)

    def place_again(self, request: TrackedRequest, now_s: float) -> Placement | Unservable:
        """Return where a request goes on whose worker is gone, or that is to be moved: its verdict stands."""
        groups = self.cluster.groups()
        if not groups:
            return Unservable.NO_WORKER
        tokens = self.view.memory.of(request)
        views = RoundViews(self.view, now_s)
        cached = self.cached(request.facts)
        return self._without_promise(groups, context_tokens(request), tokens, request.rank_s, now_s, views, cached)

    def cached(self, facts: RequestFacts) -> tuple[tuple[str, int], ...]:
        """Return the workers that have the beginning of a prompt in their cache, with the tokens each has."""
        return self.prefixes.holders(facts.blocks, self.cluster.block_tokens)

    def _plan_groups(
        self,
        wanted: Sequence[PromiseWanted],
        groups: Sequence[Group],
        now_s: float,
        owed: OwedArrival | None,
        *,
        keep_headroom: bool,
    ) -> dict[str, Decision]:
        options = self.view.options
        headroom = None
        if keep_headroom:
            threshold = self.threshold if options.cost_threshold else None
            headroom = reserved_headroom(options.headroom_requests, threshold, now_s)
        left = list(wanted)
        decided: dict[str, Decision] = {}
        for group in groups:
            if not left:
                break
            self.rounds += 1
            problem = self.view.problem(group, left, now_s, headroom, self.arrivals.typical(), self.rounds, owed)
            outcome = plan_round(problem)
            if options.draft_tokens:
                self._note_drafts(problem, outcome)
            for decision in outcome.decisions:
                known = decided.get(decision.candidate_id)
                if decision.guaranteed or known is None or _wait_s(decision) < _wait_s(known):
                    decided[decision.candidate_id] = decision
            left = [request for request in left if not decided[request.request_id].guaranteed]
        return decided

    def drafts_of(self, worker_id: str, tpot_s: float | None) -> int:
        """Return how many tokens a stream of that TPOT drafts in each step; 0 for a worker nothing was planned on."""
        tiers, drafts = self._drafts.get(worker_id, (None, ()))
        if tiers is None or tpot_s is None or tpot_s < tiers.tpot_s[0]:
            return 0
        return drafts[tier_of(tpot_s, tiers)]

    def _note_drafts(self, problem: Problem, outcome: Round) -> None:
        tiers = {worker.worker_id: worker.profile.tiers for worker in problem.workers}
        for worker_id, plan in outcome.steps.items():
            self._drafts[worker_id] = tiers[worker_id], plan.draft_tokens

    def _in_turn(self, groups: Sequence[Group]) -> list[Group]:
        """Return one group for each worker that computes prompts, beginning with the next in turn."""
        singles = [
            replace(group, prefill=(worker,)) if group.prefill else replace(group, decode=(worker,))
            for group in groups
            for worker in group.first_choice
        ]
        first = self.next_in_turn % len(singles)
        self.next_in_turn += 1
        return singles[first:] + singles[:first]

    def _wanted(self, arrival: Arrival, contract: Contract, shares: RoundShares) -> PromiseWanted:
        facts = arrival.facts
        kv_tokens = self.view.memory.of_new(facts)
        return PromiseWanted(
            request_id=facts.request_id,
            prompt_tokens=facts.prompt_tokens,
            kv_tokens=kv_tokens,
            due_s=first_token_due_s(arrival, contract, kv_tokens - facts.prompt_tokens),
            tpot_s=contract.tightest_tpot_s,
            value=shares.value(facts.tenant, contract.value),
            cached=self.cached(facts),
            standing=shares.standing(facts.tenant),
        )

    def _not_guaranteed(
        self,
        arrival: Arrival,
        contract: Contract,
        impossible: Impossible | None,
        decision: Decision | None,
        groups: Sequence[Group],
        views: RoundViews,
        cached: tuple[tuple[str, int], ...],
    ) -> Assessment | Unservable:
        """Return what is left for a request that wants no promise, cannot be kept one by anybody, or found no room."""
        facts = arrival.facts
        full_tokens = facts.prompt_tokens + facts.max_tokens
        due_s = arrival.arrival_s + self.view.options.best_effort_patience_s
        placement = self._without_promise(
            groups, facts.prompt_tokens, full_tokens, due_s, arrival.arrival_s, views, cached
        )
        if isinstance(placement, Unservable):
            return placement
        views.place(placement, facts.prompt_tokens, full_tokens)
        if not contract.promises_anything:
            return Assessment(contract, placement, Binding.NO_CONTRACT)
        if decision is None:
            late = impossible is not None and impossible.target is Target.TTFT
            return Assessment(contract, placement, Binding.PREFILL_TIME if late else Binding.DECODE_RATE, impossible)
        return Assessment(
            contract,
            placement,
            decision.binding,
            earliest_guarantee_s=decision.earliest_s,
            work_per_value=decision.work_per_value,
        )

    def _without_promise(
        self,
        groups: Sequence[Group],
        prompt_tokens: int,
        kv_tokens: int,
        due_s: float,
        arrival_s: float,
        views: RoundViews,
        cached: tuple[tuple[str, int], ...],
    ) -> Placement | Unservable:
        placements = []
        holders = {worker_id for worker_id, _ in cached}
        for group in groups:
            prefill = [worker for worker in group.prefill if worker.facts.kv_tokens >= prompt_tokens]
            decode = self._sample([worker for worker in group.decode if worker.facts.kv_tokens >= kv_tokens])
            placement = place_without_promise(
                prompt_tokens,
                kv_tokens,
                due_s,
                views.prefill(self._sample(prefill, holders), decode),
                views.decode(decode),
                arrival_s,
                views.now_s,
                cached,
            )
            if placement is not None:
                placements.append(placement)
        return min(placements, key=lambda placement: placement.ttft.expected_s, default=Unservable.NEVER_FITS)

    def _sample(self, workers: Sequence[WorkerState], wanted: Collection[str] = ()) -> Sequence[WorkerState]:
        """Return not all of many workers, but those that are wanted."""
        most = self.view.options.sampled_workers
        if len(workers) <= most:
            return workers
        others = [worker for worker in workers if worker.worker_id not in wanted]
        sampled = self.random.sample(others, min(most, len(others)))
        return sampled + [worker for worker in workers if worker.worker_id in wanted]


def _held(arrival: Arrival, contract: Contract, decision: Decision, max_hold_s: float, now_s: float) -> Held | None:
    """Return the request as held, if there will be room for it before it has waited too long; else None."""
    wait_s = decision.earliest_s
    if decision.verdict is not Verdict.HOLD or wait_s is None:
        return None
    if not now_s < now_s + wait_s <= arrival.arrival_s + max_hold_s:
        return None
    return Held(contract, decision.binding, wait_s, decision.replan_s)


def _wait_s(decision: Decision) -> float:
    return math.inf if decision.earliest_s is None else decision.earliest_s
