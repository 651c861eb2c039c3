"""What would become of requests, were they taken now: verdict, place, and what to expect."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from router.admission.planning_view import Ask, PlanningView
from router.admission.promises import Promise, place_promises
from router.admission.round_views import RoundViews
from router.cluster.cluster_view import ClusterView, Group, WorkerView
from router.requests.live_request import LiveRequest
from router.requests.parsed_request import ParsedRequest
from router.requests.planning_log import PlanningLog
from services.rpc.errors import (
    ImpossibleContractError,
    InvalidRequestError,
    NoWorkerError,
    OverloadedError,
    RequestError,
)
from services.slo.contract import Contract, OnOverload
from services.slo.latency_forecast import Placement, place_without_promise
from services.slo.planner import Binding, Decision, ReservedHeadroom, Verdict, plan_round
from services.telemetry.traces import Trace

DEFAULT_RETRY_S = 1.0
LEAST_RETRY_S = 0.05
RETRY_JITTER = 0.2
"""Spread of the retry time, so that what was refused together does not come back together."""
SAMPLED_WORKERS = 8
"""Workers of a pool that are looked at for a request without a promise."""
QUICKEST_FOR_S = 1.0
"""How long a worker is taken for the quickest of its pool."""
TYPICAL_PROMPT_TOKENS = 1024
"""By which the quickest is found."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that has passed every check that needs no cluster."""

    parsed: ParsedRequest
    contract: Contract
    """As asked for: a slowdown is still one."""
    arrival_s: float
    task_due_s: float | None = None
    """When the whole task that it belongs to must be done."""
    planning: PlanningLog = field(default_factory=PlanningLog)
    """What becomes of it, round by round."""
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class Assessment:
    """What would become of a request, were it taken now."""

    contract: Contract
    """Resolved: slowdowns are seconds."""
    placement: Placement
    binding: Binding
    """What forbids a guarantee; `Binding.NONE` if it is guaranteed."""
    impossible: ImpossibleContractError | None
    """Set if not even an idle worker could keep the contract."""
    earliest_guarantee_s: float | None
    """In how many seconds it would be guaranteed; None when it is already, or when that cannot be foreseen."""
    waits_until_s: float | None = None
    """It is worth planning again until then, on the router's clock; None if waiting does not help."""
    work_per_value: float | None = None
    """As `Candidate.work_per_value`; None if no room was looked for."""

    @property
    def guaranteed(self) -> bool:
        return self.binding is Binding.NONE

    @property
    def refused(self) -> RequestError | None:
        """The refusal, if the contract asks for one rather than for service without a guarantee."""
        wants_refusal = self.contract.promises_anything and self.contract.on_overload is OnOverload.REFUSE
        if self.guaranteed or not wants_refusal:
            return None
        if self.impossible is not None:
            return self.impossible
        wait_s = DEFAULT_RETRY_S if self.earliest_guarantee_s is None else self.earliest_guarantee_s
        wait_s = max(LEAST_RETRY_S, wait_s)
        return OverloadedError(
            f"cannot be guaranteed now: {self.binding.value}",
            retry_after_s=wait_s * (1 + RETRY_JITTER * random.random()),
            metadata={
                "binding": self.binding.name,
                "predicted_ttft_s": f"{self.placement.ttft.expected_s:.4f}",
                "predicted_tpot_s": f"{self.placement.tpot.expected_s:.4f}",
            },
        )


@dataclass(slots=True)
class Admission:
    """Assesses requests against the cluster as it is. Changes nothing."""

    cluster: ClusterView
    view: PlanningView
    best_effort_patience_s: float
    rounds: int = 0
    """Planning rounds so far; also the seed of the next one's samples."""
    _quickest: dict[str, tuple[WorkerView, float]] = field(default_factory=dict)

    def assess(self, arrivals: Sequence[Arrival], now_s: float) -> list[Assessment | RequestError]:
        """One round over these requests; where a request cannot be served at all, the error says why."""
        groups = self.cluster.groups()
        if not groups:
            missing = self.cluster.missing()
            return [NoWorkerError(missing, retry_after_s=DEFAULT_RETRY_S) for _ in arrivals]
        resolved = [self._resolve(arrival, groups, now_s) for arrival in arrivals]
        asks = [
            None if impossible is not None or not contract.promises_anything else self._ask(arrival, contract)
            for arrival, (contract, impossible) in zip(arrivals, resolved, strict=True)
        ]
        decisions = self.plan(
            [ask for ask in asks if ask is not None], groups, now_s, self.view.reserved_headroom(now_s)
        )
        promises = [
            Promise(decisions[ask.request_id], ask, arrival.arrival_s)
            for arrival, ask in zip(arrivals, asks, strict=True)
            if ask is not None and decisions[ask.request_id].guaranteed
        ]
        placements = self.promised(promises, now_s)
        answers: list[Assessment | RequestError] = []
        views = RoundViews(self.view, now_s)
        for arrival, (contract, impossible), ask in zip(arrivals, resolved, asks, strict=True):
            if ask is not None and ask.request_id in placements:
                work = decisions[ask.request_id].work_per_value
                answers.append(
                    Assessment(contract, placements[ask.request_id], Binding.NONE, None, None, work_per_value=work)
                )
            else:
                other = None if ask is None else decisions[ask.request_id]
                cached = self._cached(arrival.parsed) if ask is None else ask.cached
                answers.append(self._not_guaranteed(arrival, contract, impossible, other, groups, views, cached))
        return answers

    @property
    def block_tokens(self) -> int:
        """Of the workers that serve; all of a group have the same."""
        return next((view.facts.compatibility.block_tokens for view in self.cluster.workers.values()), 1)

    def plan(
        self, asks: Sequence[Ask], groups: Sequence[Group], now_s: float, room: ReservedHeadroom | None = None
    ) -> dict[str, Decision]:
        """Plan each group in turn for those that found no room before."""
        left = list(asks)
        decided: dict[str, Decision] = {}
        for group in groups:
            if not left:
                break
            self.rounds += 1
            outcome = plan_round(self.view.problem(group, left, now_s, room, self.rounds))
            for decision in outcome.decisions:
                known = decided.get(decision.candidate_id)
                if decision.guaranteed or known is None or _wait_s(decision) < _wait_s(known):
                    decided[decision.candidate_id] = decision
            left = [ask for ask in left if not decided[ask.request_id].guaranteed]
        return decided

    def promised(self, promises: Sequence[Promise], now_s: float) -> dict[str, Placement]:
        """As `place_promises`."""
        return place_promises(promises, self.cluster.workers, self.view, self.best_effort_patience_s, now_s)

    def place_again(self, request: LiveRequest, now_s: float) -> Placement:
        """Where a request goes on whose worker is gone, or that is to be moved: its verdict stands.

        Raises:
            NoWorkerError: no pair of workers matches.
            InvalidRequestError: what it holds fits no worker that is left.
        """
        groups = self.cluster.groups()
        if not groups:
            raise NoWorkerError(self.cluster.missing(), retry_after_s=DEFAULT_RETRY_S)
        tokens = self.view.memory.of(request)
        views = RoundViews(self.view, now_s)
        cached = self._cached(request.parsed)
        return self._without_promise(groups, request.context_tokens, tokens, request.due_s, now_s, views, cached)

    def _resolve(
        self, arrival: Arrival, groups: Sequence[Group], now_s: float
    ) -> tuple[Contract, ImpossibleContractError | None]:
        """The contract in seconds, and whether an idle worker could keep it."""
        prompt_tokens = len(arrival.parsed.prompt)
        lane = self._quickest_of("prefill", [view for group in groups for view in group.lanes], now_s)
        decoder = self._quickest_of("decode", [view for group in groups for view in group.decode], now_s)
        idle_s = lane.model.prefill_s(prompt_tokens, lane.facts.max_step_tokens)
        contract = arrival.contract.resolved(idle_s)
        return contract, _impossible(contract, idle_s, decoder.model.decode_step_s(1, prompt_tokens))

    def _quickest_of(self, pool: str, views: Sequence[WorkerView], now_s: float) -> WorkerView:
        kept = self._quickest.get(pool)
        if (
            kept is None
            or now_s - kept[1] > QUICKEST_FOR_S
            or self.cluster.workers.get(kept[0].worker_id) is not kept[0]
        ):
            quickest = min(
                views, key=lambda view: view.model.prefill_s(TYPICAL_PROMPT_TOKENS, view.facts.max_step_tokens)
            )
            kept = self._quickest[pool] = (quickest, now_s)
        return kept[0]

    def _ask(self, arrival: Arrival, contract: Contract) -> Ask:
        parsed = arrival.parsed
        kv_tokens = self.view.memory.of_new(parsed)
        return Ask(
            request_id=parsed.request_id,
            prompt_tokens=len(parsed.prompt),
            kv_tokens=kv_tokens,
            due_s=_first_token_due_s(arrival, contract, kv_tokens - len(parsed.prompt)),
            tpot_s=contract.tightest_tpot_s,
            value=contract.value,
            cached=self._cached(parsed),
        )

    def _cached(self, parsed: ParsedRequest) -> tuple[tuple[str, int], ...]:
        return self.view.prefixes.holders(parsed.prompt, self.block_tokens)

    def _not_guaranteed(
        self,
        arrival: Arrival,
        contract: Contract,
        impossible: ImpossibleContractError | None,
        decision: Decision | None,
        groups: Sequence[Group],
        views: RoundViews,
        cached: tuple[tuple[str, int], ...],
    ) -> Assessment | RequestError:
        """What is left for a request that wants no promise, cannot be kept one by anybody, or found no room."""
        parsed = arrival.parsed
        best_effort_due_s = arrival.arrival_s + self.best_effort_patience_s
        prompt_tokens = len(parsed.prompt)
        try:
            full_tokens = prompt_tokens + parsed.sampling.max_tokens
            placement = self._without_promise(
                groups, prompt_tokens, full_tokens, best_effort_due_s, arrival.arrival_s, views, cached
            )
        except InvalidRequestError as error:
            return error
        views.place(placement, prompt_tokens, full_tokens)
        if not contract.promises_anything:
            return Assessment(contract, placement, Binding.NO_CONTRACT, None, None)
        if decision is None:
            binding = Binding.PREFILL_TIME if impossible and "prefill" in impossible.field else Binding.DECODE_RATE
            return Assessment(contract, placement, binding, impossible, None)
        waits_until_s = None
        if decision.verdict is Verdict.HOLD and decision.earliest_s is not None:
            waits_until_s = views.now_s + decision.earliest_s
        return Assessment(
            contract, placement, decision.binding, None, decision.earliest_s, waits_until_s, decision.work_per_value
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
    ) -> Placement:
        """
        Raises:
            InvalidRequestError: no worker's KV cache could ever hold it.
        """
        placements = []
        holders = {worker_id for worker_id, _ in cached}
        for group in groups:
            lanes = [view for view in group.prefill if view.kv_tokens >= prompt_tokens]
            decoders = _sample([view for view in group.decode if view.kv_tokens >= kv_tokens])
            placement = place_without_promise(
                prompt_tokens,
                kv_tokens,
                due_s,
                views.prefill(_sample(lanes, holders), decoders),
                views.decode(decoders),
                arrival_s,
                views.now_s,
                cached,
            )
            if placement is not None:
                placements.append(placement)
        if not placements:
            raise InvalidRequestError(
                f"{prompt_tokens} prompt tokens and {kv_tokens - prompt_tokens} output tokens do not fit into the KV "
                "cache of any worker",
                field="sampling.max_tokens",
            )
        return min(placements, key=lambda placement: placement.ttft.expected_s)


def _sample(views: Sequence[WorkerView], wanted: Collection[str] = ()) -> Sequence[WorkerView]:
    """Not all of many, but those that are wanted."""
    if len(views) <= SAMPLED_WORKERS:
        return views
    others = [view for view in views if view.worker_id not in wanted]
    sampled = random.sample(others, min(SAMPLED_WORKERS, len(others)))
    return sampled + [view for view in views if view.worker_id in wanted]


def _first_token_due_s(arrival: Arrival, contract: Contract, output_tokens: int) -> float:
    """On the router's clock; infinite without a target. The rest must still be possible before the task is due."""
    ttft_s = contract.ttft_s(0.0)
    due_s = math.inf if ttft_s is None else arrival.arrival_s + ttft_s
    if arrival.task_due_s is not None:
        due_s = min(due_s, arrival.task_due_s - output_tokens * (contract.tightest_tpot_s or 0.0))
    return due_s


def _wait_s(decision: Decision) -> float:
    return math.inf if decision.earliest_s is None else decision.earliest_s


def _impossible(contract: Contract, idle_prefill_s: float, idle_step_s: float) -> ImpossibleContractError | None:
    ttft_s, tpot_s = contract.ttft_s(idle_prefill_s), contract.tightest_tpot_s
    if ttft_s is not None and ttft_s < idle_prefill_s:
        return ImpossibleContractError(
            f"TTFT {ttft_s * 1e3:.3g} ms: an idle worker needs {idle_prefill_s * 1e3:.3g} ms for this prompt",
            field="contract.stages[0].prefill",
        )
    if tpot_s is not None and tpot_s < idle_step_s:
        return ImpossibleContractError(
            f"TPOT {tpot_s * 1e3:.3g} ms: an idle worker needs {idle_step_s * 1e3:.3g} ms a token",
            field="contract.stages",
        )
    return None
