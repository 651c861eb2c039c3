"""The cluster as a planning problem: workers as they are now with everything promised, requests as candidates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from router.admission.committed_loads import CommittedLoads, prefills_at, promised_rate_s
from router.admission.tiers import TierBook, tier_of
from router.cluster.cluster_view import Group, WorkerView
from router.cluster.memory import MemoryPromises
from router.cluster.other_routers import promised_prompts, with_others
from router.cluster.prefixes import PrefixIndex
from router.cluster.step_under_way import under_way
from router.requests.request_index import Requests
from services import wire
from services.slo.latency_forecast import DecodeView, Forecast, PrefillView, QueuedPrefill
from services.slo.performance import PerformanceModel, StepRegime
from services.slo.planner import (
    ArrivalSample,
    Candidate,
    CostThreshold,
    Link,
    Problem,
    PromisedPrefill,
    ReservedHeadroom,
    StepBound,
    Tiers,
    Topology,
    Worker,
    WorkerProfile,
    ahead_s,
    reserved_headroom,
)
from services.slo.transfer import Handovers
from services.state.journal_entry import RequestState
from services.state.registry import WorkerRole

HANDOVER_COVERAGE = 0.95
"""Of hand-overs within their bound, in steps that are bounds themselves; a rarer one is one in a few hundred seen, and
one stall of the machine would forbid every promise until it is forgotten."""
REFIT_S = 1.0
"""How long a worker's profile serves, and the links: building a step table costs more than a round."""
KEEP_S = 0.05
"""How long a decode worker is planned with as it was seen, if no request came to it or left: all that changes then are
forecasts of when its requests end."""
LOCAL_MARGIN = 1.25
"""A decode worker prefills only once its steps with both are about as predictable as those with decodes alone: the
planner has one bound for all."""

LEAST_SHARE = 0.05
"""Of the time of a decode worker, what is left to prompts in any case."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that wants a promise. The contract is resolved: slowdowns are seconds."""

    request_id: str
    prompt_tokens: int
    kv_tokens: int
    """Context that it is promised memory for."""
    due_s: float = math.inf
    """When its first token is due, on the router's clock."""
    tpot_s: float | None = None
    value: float = 1.0
    cached: tuple[tuple[str, int], ...] = ()
    """Workers that have the beginning of its prompt in their cache, and how many tokens of it."""


@dataclass(slots=True)
class _Seen:
    """A worker that only decodes, as planned with last."""

    worker: Worker
    revision: int
    others: wire.OtherWork
    at_s: float


@dataclass(slots=True)
class PlanningView:
    """Builds problems; keeps what is costly to build and seldom changes."""

    requests: Requests
    memory: MemoryPromises
    holdings: CommittedLoads
    handovers: Handovers
    prefixes: PrefixIndex
    local_prefill: bool
    """Decode workers may compute prompts."""
    room_for_newcomers: float = 0.0
    """So many typical requests find room beside what is promised to a larger one."""
    admission_price: bool = True
    """While not everybody finds room, the same of the dearest."""
    price: CostThreshold = field(default_factory=CostThreshold)
    newcomers: ArrivalSample[Ask] = field(default_factory=lambda: ArrivalSample(_cost))
    _tiers: TierBook = field(default_factory=TierBook)
    _tiers_made_s: float = -math.inf
    _profiles: dict[str, tuple[WorkerProfile, PerformanceModel, float]] = field(default_factory=dict)
    """By worker: its profile, its expected step times then, and when."""
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _topologies: dict[tuple[str, ...], tuple[Topology, float]] = field(default_factory=dict)

    def reserved_headroom(self, now_s: float) -> ReservedHeadroom | None:
        """By those who are promised something now."""
        return reserved_headroom(self.room_for_newcomers, self.price if self.admission_price else None, now_s)

    def problem(
        self, group: Group, asks: Sequence[Ask], now_s: float, room: ReservedHeadroom | None = None, seed: int = 0
    ) -> Problem:
        """One round over a group of workers that may hand KV caches to each other."""
        views = (*group.prefill, *group.decode)
        typical = self.newcomers.typical() if room else None
        tiers = self._tiers_for(group, asks if typical is None else (*asks, typical), now_s)
        workers = [self.worker(view, tiers, now_s) for view in views]
        return Problem(
            workers=workers,
            topology=self._topology(workers, group, now_s),
            candidates=tuple(_candidate(ask, tiers, now_s) for ask in asks),
            typical_arrival=None if typical is None else _candidate(typical, tiers, 0.0),
            headroom_requests=room.requests if room else 0.0,
            cost_threshold=room.cost_threshold if room else 0.0,
            seed=seed,
        )

    def worker(self, view: WorkerView, tiers: Tiers, now_s: float) -> Worker:
        """One worker as the planner sees it."""
        worker_id = view.worker_id
        decodes = view.role is WorkerRole.DECODE
        known, others = self.holdings.of(worker_id, tiers), view.others
        profile, model = self._profile(view, tiers, now_s)
        seen = self._seen.get(worker_id)
        if (
            seen is not None
            and seen.worker.profile is profile
            and seen.revision == known.revision
            and seen.others is others
            and now_s - seen.at_s < KEEP_S
        ):
            return seen.worker
        holdings = known.planned
        given, awaiting = self.requests.prefilling(worker_id), self.requests.awaiting(worker_id)
        busy_s, in_step = under_way(view, given, self.requests, now_s)
        prompts = [request for request in (*given, *awaiting) if request.planned]
        if decodes:
            held = holdings.kv_tokens() + others.tokens
        else:
            leased = view.load.kv_blocks_leased * view.facts.compatibility.block_tokens
            held = leased + sum(request.context_tokens for request in prompts)
            held += sum(theirs.tokens for theirs in others.prompts)
        running, contexts = with_others(holdings, others, tiers)
        prefills = not decodes or self.prefills_too(view)
        worker = Worker(
            worker_id=worker_id,
            profile=profile,
            prefills=prefills,
            decodes=decodes,
            kv_tokens_free=max(0, view.kv_tokens - held),
            kv_tokens=view.kv_tokens,
            running=running,
            context_tokens=contexts,
            slots_free=max(0, view.facts.max_running_requests - len(holdings) - others.requests),
            busy_s=busy_s,
            ahead_s=self._ahead_s(view, profile, running, contexts, now_s + busy_s) if prefills and decodes else 0.0,
            promised=(
                *promised_prompts(view, in_step, now_s),
                *(
                    PromisedPrefill(
                        deadline_s=request.due_s - now_s,
                        prompt_tokens=request.context_tokens,
                        computed_tokens=request.prefilled_tokens + in_step.get(request.request_id, 0),
                        decode_tier=tier_of(promised_rate_s(request), tiers)
                        if request.decode_worker_id == worker_id
                        else -1,
                        kv_tokens=self.memory.of(request) if request.decode_worker_id == worker_id else 0,
                    )
                    for request in prompts
                ),
            ),
            releases=holdings.releases(model) if decodes else (),
            handover_steps=self.handovers.steps_bound(
                worker_id, HANDOVER_COVERAGE, busy=bool(holdings or others.requests)
            ),
        )
        if not prefills:
            self._seen[worker_id] = _Seen(worker, known.revision, others, now_s)
        return worker

    def _ahead_s(
        self, view: WorkerView, profile: WorkerProfile, running: Sequence[int], contexts: Sequence[int], at_s: float
    ) -> float:
        """Of a step that begins then. What other routers promised may be due at any time."""
        if view.others.decodes:
            return 0.0
        return ahead_s(profile.bound, sum(running), sum(contexts), self._leads(view.worker_id, at_s))

    def _leads(self, worker_id: str, at_s: float) -> Iterator[tuple[float, float]]:
        for request in self.requests.decoding(worker_id):
            tpot_s = promised_rate_s(request)
            if tpot_s is not None and not prefills_at(request, worker_id):
                due_s = request.meter.next_due_s() if request.state is RequestState.DECODING else None
                yield 0.0 if due_s is None else due_s - at_s, tpot_s

    def prefill_view(self, view: WorkerView, now_s: float) -> PrefillView:
        """For what is not promised: everyone it has or will get counts."""
        given = self.requests.prefilling(view.worker_id)
        busy_s, in_step = under_way(view, given, self.requests, now_s)
        queue = [
            QueuedPrefill(request.due_s, left, request.planned)
            for request in (*given, *self.requests.awaiting(view.worker_id))
            if (left := request.context_tokens - request.prefilled_tokens - in_step.get(request.request_id, 0)) > 0
        ]
        queue += [
            QueuedPrefill(now_s + theirs.deadline_s, theirs.prompt_tokens - theirs.computed_tokens, guaranteed=True)
            for theirs in promised_prompts(view, in_step, now_s)
        ]
        return PrefillView(
            worker_id=view.worker_id,
            model=view.model,
            bound=view.bound,
            max_step_tokens=view.facts.max_step_tokens,
            busy_until_s=now_s + busy_s,
            queue=tuple(sorted(queue, key=lambda prompt: prompt.due_s)),
            kv_tokens=view.kv_tokens,
            share=self._share_of_prompts(view) if view.role is WorkerRole.DECODE else 1.0,
        )

    def decode_view(self, view: WorkerView) -> DecodeView:
        there, others = self.holdings.of(view.worker_id).everyone, view.others
        busy = bool(there or others.requests)
        return DecodeView(
            worker_id=view.worker_id,
            model=view.model,
            bound=view.bound,
            requests=len(there) + others.requests,
            context_tokens=self.requests.decoding_tokens(view.worker_id) + others.tokens,
            max_running_requests=view.facts.max_running_requests,
            kv_tokens_free=view.kv_tokens - there.kv_tokens() - others.tokens,
            kv_tokens=view.kv_tokens,
            handover_steps=self.handovers.steps(view.worker_id, busy=busy),
            handover_steps_bound=self.handovers.steps_bound(view.worker_id, HANDOVER_COVERAGE, busy=busy),
        )

    def transfer(self, source: str, target: WorkerView, tokens: int) -> Forecast:
        """Of the KV cache of so many tokens."""
        kv_bytes = tokens * target.facts.kv_bytes_per_token
        return Forecast(
            self.handovers.transfer_s(source, target.worker_id, kv_bytes),
            self.handovers.transfer_bound_s(source, target.worker_id, kv_bytes, HANDOVER_COVERAGE),
        )

    def forget(self, worker_id: str) -> None:
        """The worker is gone."""
        self._profiles.pop(worker_id, None)
        self._seen.pop(worker_id, None)
        self.holdings.forget(worker_id)
        self.prefixes.forget(worker_id)
        self._topologies.clear()

    def prefills_too(self, view: WorkerView) -> bool:
        """Whether a decode worker may compute prompts."""
        if not self.local_prefill or view.alone:
            return self.local_prefill
        margins = view.bound.margins
        return margins[StepRegime.MIXED] <= LOCAL_MARGIN * margins[StepRegime.DECODE]

    def _share_of_prompts(self, view: WorkerView) -> float:
        """Of the steps of a decode worker: they are as long as the tightest of its streams allows."""
        streams = self.requests.decoding(view.worker_id)
        tpots_s = [rate for request in streams if (rate := promised_rate_s(request)) is not None]
        tpots_s += [decodes.tpot_s for decodes in view.others.decodes if decodes.tpot_s is not None]
        if not tpots_s:
            return 1.0
        context_tokens = self.requests.decoding_tokens(view.worker_id) + view.others.tokens
        step_s = view.model.decode_step_s(len(streams) + view.others.requests, context_tokens)
        return max(LEAST_SHARE, 1 - step_s / min(tpots_s))

    def _tiers_for(self, group: Group, asks: Sequence[Ask], now_s: float) -> Tiers:
        """Those of the round before, unless somebody asks for another rate; what is promised may have changed its rate
        as well, which is looked at now and then.
        """
        theirs = (decodes.tpot_s for view in group.decode for decodes in view.others.decodes)
        rates = [rate for rate in (*(ask.tpot_s for ask in asks), *theirs) if rate is not None]
        if now_s - self._tiers_made_s < REFIT_S and self._tiers.cover(rates):
            return self._tiers.tiers
        self._tiers_made_s = now_s
        promised = (request for view in group.decode for request in self.requests.decoding(view.worker_id))
        return self._tiers.covering(
            [*rates, *(rate for request in promised if (rate := promised_rate_s(request)) is not None)]
        )

    def _profile(self, view: WorkerView, tiers: Tiers, now_s: float) -> tuple[WorkerProfile, PerformanceModel]:
        kept = self._profiles.get(view.worker_id)
        if kept is not None and kept[0].tiers is tiers and now_s - kept[2] < REFIT_S:
            return kept[0], kept[1]
        decodes = view.role is WorkerRole.DECODE
        bound = StepBound.of(view.bound, prefills=not decodes or self.prefills_too(view), decodes=decodes)
        # The composer keeps a step that serves prompts beside decodes as short as the tightest of these wants it.
        shared = decodes and self.prefills_too(view)
        longest_s = min(view.facts.max_step_s, tiers.tpot_s[0]) if shared else view.facts.max_step_s
        profile = WorkerProfile(bound, tiers, view.facts.max_step_tokens, longest_s)
        self._profiles[view.worker_id] = (profile, view.model, now_s)
        return profile, view.model

    def _topology(self, workers: Sequence[Worker], group: Group, now_s: float) -> Topology:
        key = tuple(f"{worker.worker_id}{worker.prefills:d}" for worker in workers)
        kept = self._topologies.get(key)
        if kept is not None and now_s - kept[1] < REFIT_S:
            return kept[0]
        here = {worker.worker_id for worker in workers}
        topology = Topology.of(
            workers,
            self._link("", ""),
            {
                (source, target): self._link(source, target)
                for source, target in self.handovers.learnt_pairs()
                if source in here and target in here
            },
            kv_bytes_per_token=float(group.decode[0].facts.kv_bytes_per_token),
        )
        self._topologies[key] = (topology, now_s)
        return topology

    def _link(self, source: str, target: str) -> Link:
        model = self.handovers.link(source, target, HANDOVER_COVERAGE)
        return Link(model.latency_s, model.bytes_per_s)


def _candidate(ask: Ask, tiers: Tiers, now_s: float) -> Candidate:
    return Candidate(
        candidate_id=ask.request_id,
        prompt_tokens=ask.prompt_tokens,
        kv_tokens=ask.kv_tokens,
        deadline_s=ask.due_s - now_s,
        tier=tier_of(ask.tpot_s, tiers),
        value=ask.value,
        cached=ask.cached,
    )


def _cost(ask: Ask) -> float:
    return ask.prompt_tokens / ask.value
