"""The cluster as a planning problem: workers as they are now with everything promised, requests as candidates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from services.slo.admission.committed_loads import CommittedLoads
from services.slo.admission.index import RequestIndex
from services.slo.admission.kv_forecasts import KvForecasts
from services.slo.admission.other_routers import promised_prompts, with_others
from services.slo.admission.other_work import OtherWork
from services.slo.admission.promise_wanted import PromiseWanted
from services.slo.admission.requests import Progress, context_tokens, prefills_at, promised_tpot_s
from services.slo.admission.step_under_way import under_way
from services.slo.admission.tiers import TierBook, tier_of
from services.slo.admission.workers import Group, WorkerState
from services.slo.admission_options import AdmissionOptions
from services.slo.composer import StepMeter
from services.slo.composer.compose import DEFAULT_POLICY
from services.slo.performance import PerformanceModel, StepRegime
from services.slo.planner import (
    Link,
    OwedArrival,
    Problem,
    PromisedPrefill,
    ReservedHeadroom,
    StepBound,
    Tiers,
    Topology,
    Worker,
    WorkerProfile,
    ahead_s,
)
from services.slo.transfer import Handovers

LOCAL_MARGIN = 1.25
"""A decode worker computes prompts only once its steps with both are about as predictable as those with decodes alone,
within this factor: the planner has one bound for all."""
UNLIMITED_SLOTS = 1_000_000
"""Requests that a worker which only computes prompts may decode: none ever does."""


@dataclass(slots=True)
class _Seen:
    """A worker that only decodes, as it was planned with last."""

    worker: Worker
    revision: int
    others: OtherWork
    at_s: float


@dataclass(slots=True)
class PlannerView:
    """Builds planning problems, and keeps what is costly to build and seldom changes. Owned by one event loop."""

    options: AdmissionOptions
    requests: RequestIndex
    memory: KvForecasts
    loads: CommittedLoads
    handovers: Handovers
    _tiers: TierBook = field(init=False)
    _tiers_made_s: float = -math.inf
    _profiles: dict[str, tuple[WorkerProfile, PerformanceModel, float]] = field(default_factory=dict)
    """Profile of each worker, its expected step times then, and when that was."""
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _topologies: dict[tuple[str, ...], tuple[Topology, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tiers = TierBook(self.options.draft_tokens, self.options.draft_acceptance)

    def problem(
        self,
        group: Group,
        wanted: Sequence[PromiseWanted],
        now_s: float,
        headroom: ReservedHeadroom | None,
        typical: PromiseWanted | None,
        seed: int,
        owed_arrival: OwedArrival | None = None,
    ) -> Problem:
        """Return the problem of one round over a group of workers.

        Args:
            headroom: room that costly requests have to leave; None: none.
            typical: the typical request that headroom is counted in, its times counted from its arrival.
            seed: of the workers that are sampled.
            owed_arrival: request that those leave room for whose tenants have had most; None: nobody is owed anything.
        """
        counted = typical if headroom else None
        tiers = self._tiers_for(group, wanted if counted is None else (*wanted, counted), now_s)
        workers = [self.worker(worker, tiers, now_s) for worker in (*group.prefill, *group.decode)]
        return Problem(
            workers=workers,
            topology=self._topology(workers, group, now_s),
            candidates=tuple(request.candidate(tiers, now_s) for request in wanted),
            typical_arrival=None if counted is None else counted.candidate(tiers, 0.0),
            headroom_requests=headroom.requests if headroom else 0.0,
            cost_threshold=headroom.cost_threshold if headroom else 0.0,
            seed=seed,
            owed_arrival=owed_arrival,
        )

    def worker(self, state: WorkerState, tiers: Tiers, now_s: float) -> Worker:
        """Return one worker as the planner sees it."""
        worker_id = state.worker_id
        known, others = self.loads.of(worker_id, tiers, state.steps), state.others
        profile, model = self._profile(state, tiers, now_s)
        seen = self._seen.get(worker_id)
        if (
            seen is not None
            and seen.worker.profile is profile
            and seen.revision == known.revision
            and seen.others == others
            and now_s - seen.at_s < self.options.reuse_worker_s
        ):
            return seen.worker
        planned, decodes = known.planned, state.decodes
        given, awaiting = self.requests.prefilling(worker_id), self.requests.awaiting(worker_id)
        busy_s, in_step = under_way(state, given, self.requests, self.options.submission_s, now_s)
        prompts = [request for request in (*given, *awaiting) if request.planned]
        if decodes:
            held = planned.kv_tokens() + others.tokens
            slots_free = max(0, state.facts.limits.max_running_requests - len(planned) - others.requests)
        else:
            leased = state.load.kv_blocks_leased * state.facts.limits.block_tokens
            held = leased + sum(context_tokens(request) for request in prompts)
            held += sum(theirs.tokens for theirs in others.prompts)
            slots_free = UNLIMITED_SLOTS
        running, contexts = planned.running, planned.context_tokens
        if decodes:
            # The tiers are made for the rates of workers that decode: what somebody expects of another has none.
            running, contexts = with_others(running, contexts, others, tiers)
        prefills = self.prefills_too(state)
        worker = Worker(
            worker_id=worker_id,
            profile=profile,
            prefills=prefills,
            decodes=decodes,
            kv_tokens_free=max(0, state.facts.kv_tokens - held),
            kv_tokens=state.facts.kv_tokens,
            running=running,
            context_tokens=contexts,
            slots_free=slots_free,
            busy_s=busy_s,
            ahead_s=self._ahead_s(state, profile, running, contexts, now_s + busy_s) if prefills and decodes else 0.0,
            promised=(
                *promised_prompts(state, in_step, now_s),
                *(
                    PromisedPrefill(
                        deadline_s=request.rank_s - now_s,
                        prompt_tokens=context_tokens(request),
                        computed_tokens=request.prefilled_tokens + in_step.get(request.facts.request_id, 0),
                        decode_tier=tier_of(promised_tpot_s(request), tiers)
                        if request.decode_worker_id == worker_id
                        else -1,
                        kv_tokens=self.memory.of(request) if request.decode_worker_id == worker_id else 0,
                    )
                    for request in prompts
                ),
            ),
            releases=planned.releases(model) if decodes else (),
            handover_steps=self.handovers.steps_bound(
                worker_id, self.options.handover_coverage, busy=bool(planned or others.requests)
            ),
        )
        if not prefills:
            self._seen[worker_id] = _Seen(worker, known.revision, others, now_s)
        return worker

    def prefills_too(self, state: WorkerState) -> bool:
        """Return whether prompts may be computed on this worker."""
        if not state.decodes:
            return True
        if not self.options.local_prefill or state.alone:
            return self.options.local_prefill
        margins = state.bound.margins
        return margins[StepRegime.MIXED] <= LOCAL_MARGIN * margins[StepRegime.DECODE]

    def forget(self, worker_id: str) -> None:
        """Drop what is kept for a worker that is gone."""
        self._profiles.pop(worker_id, None)
        self._seen.pop(worker_id, None)
        self.loads.forget(worker_id)
        self._topologies.clear()

    def _ahead_s(
        self, state: WorkerState, profile: WorkerProfile, running: Sequence[int], contexts: Sequence[int], at_s: float
    ) -> float:
        """Return what running decodes leave of a step that begins then.

        What other routers promised may be due at any time, so that nothing is left beside it.
        """
        if state.others.decodes:
            return 0.0
        return ahead_s(profile.bound, sum(running), sum(contexts), self._leads(state.worker_id, at_s))

    def _leads(self, worker_id: str, at_s: float) -> Iterator[tuple[float, float]]:
        """Yield how far promised streams are ahead of a step that begins then, in seconds, each with its TPOT."""
        for request in self.requests.decoding(worker_id):
            if not request.guaranteed or (tpot_s := request.tightest_tpot_s) is None:
                continue
            if request.progress is Progress.DECODING:
                due_s = request.next_due_s
                yield 0.0 if due_s is None else due_s - at_s, tpot_s
            elif not prefills_at(request, worker_id):
                yield 0.0, tpot_s

    def _tiers_for(self, group: Group, wanted: Sequence[PromiseWanted], now_s: float) -> Tiers:
        """Return the tiers of the round before, unless somebody asks for another rate.

        What is promised may have changed its rate as well, which is looked at once in `refit_s`.
        """
        theirs = (decodes.tpot_s for worker in group.decode for decodes in worker.others.decodes)
        rates = [rate for rate in (*(request.tpot_s for request in wanted), *theirs) if rate is not None]
        if now_s - self._tiers_made_s < self.options.refit_s and self._tiers.cover(rates):
            return self._tiers.tiers
        self._tiers_made_s = now_s
        promised = (request for worker in group.decode for request in self.requests.decoding(worker.worker_id))
        return self._tiers.covering(
            [*rates, *(rate for request in promised if (rate := promised_tpot_s(request)) is not None)]
        )

    def _profile(self, state: WorkerState, tiers: Tiers, now_s: float) -> tuple[WorkerProfile, PerformanceModel]:
        kept = self._profiles.get(state.worker_id)
        if kept is not None and kept[0].tiers is tiers and now_s - kept[2] < self.options.refit_s:
            return kept[0], kept[1]
        bound, prefills = state.bound, self.prefills_too(state)
        # The composer keeps every step this short, and one that serves prompts beside decodes as short as the tightest
        # of these wants it.
        longest_s = DEFAULT_POLICY.longest_step_s(StepMeter(bound).shortest_step_s())
        if state.decodes and prefills:
            longest_s = min(longest_s, tiers.tpot_s[0])
        profile = WorkerProfile(
            StepBound.of(bound, prefills=prefills, decodes=state.decodes),
            tiers,
            state.facts.limits.max_step_tokens,
            min(longest_s, state.facts.max_step_s),
        )
        self._profiles[state.worker_id] = (profile, state.model, now_s)
        return profile, state.model

    def _topology(self, workers: Sequence[Worker], group: Group, now_s: float) -> Topology:
        key = tuple(f"{worker.worker_id}{worker.prefills:d}" for worker in workers)
        kept = self._topologies.get(key)
        if kept is not None and now_s - kept[1] < self.options.refit_s:
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
        model = self.handovers.link(source, target, self.options.handover_coverage)
        return Link(model.latency_s, model.bytes_per_s)
