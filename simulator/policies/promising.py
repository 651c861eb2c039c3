"""This project in virtual time: the admission core that ships decides, the composer that ships fills every step."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from services.slo.admission import (
    AdmissionCore,
    AdmissionOptions,
    Assessment,
    Held,
    Outcome,
    Progress,
    Role,
    Unservable,
)
from services.slo.latency_forecast import Placement
from services.slo.performance import StepShape
from simulator.cluster import PolicyContext
from simulator.engine import Composer, Engine
from simulator.knowledge import KnownLengths
from simulator.policies.admitted import Admitted, admitted, arrival_of
from simulator.policies.base import BasePolicy, Source, worker_name
from simulator.policies.choices import Choices, Roles
from simulator.policies.composed_steps import ComposedSteps, FixedSteps
from simulator.policies.core_workers import CoreWorkers
from simulator.request import SimRequest

PLANNING_S = 1.5e-3
"""Seconds that a planning round is taken to last, which sets how soon the next one may follow. In the recording of a
router with three workers at overload the median was 1.4 ms (`docs/how-to/recording.md`). Virtual time stands still
meanwhile.
"""
TICK_S = 0.25
"""Seconds between looks at what no event brings, as a router has them."""


class PromisingPolicy(BasePolicy):
    """Tells the admission core what happens, and carries out what it answers, as a router does."""

    def __init__(self, context: PolicyContext, choices: Choices, tpots_s: Sequence[float]) -> None:
        """Set up engines that promises are made for.

        Args:
            tpots_s: TPOTs of the workload, for engines that compose steps of a fixed length.
        """
        super().__init__(context)
        self.choices = choices
        machine, knowledge = context.machine, choices.knowledge
        self.core = self.make_core(
            choices.admission_options(machine), KnownLengths() if knowledge.lengths else None, context.seed
        )
        self._workers = CoreWorkers(self.core, machine, knowledge)
        tightest_s = min(tpots_s, default=math.inf)
        self._steps: dict[str, ComposedSteps] = {}
        self.engines = []
        for index in range(context.workers):
            prefills_only = choices.roles is not Roles.COLOCATED and index < choices.prefills
            bound = functools.partial(self._workers.bound, worker_name(index))
            composer: Composer
            if choices.composition:
                composer = ComposedSteps(bound, choices.policy, self._stepped)
            else:
                composer = FixedSteps(bound, tightest_s, self._stepped)
            engine = self.engine(index, composer, reserves_output=not choices.composition)
            if isinstance(composer, ComposedSteps):
                self._steps[engine.worker_id] = composer
                composer.drafts_of = self._drafts_of if self.core.options.draft_tokens else None
            self._workers.add(engine, Role.PREFILL if prefills_only else Role.DECODE)
            self.engines.append(engine)
        self._waiting: dict[str, SimRequest] = {}
        """Requests without a verdict."""
        self._without_workers: list[SimRequest] = []
        """Requests that came while there was no worker."""
        self._moved: dict[str, tuple[int, float]] = {}
        """KV caches that have moved, by request: bytes, and seconds of the transfer."""
        self._round_at_s = math.inf
        self._ticking = False
        self._some_ended = False

    def make_core(self, options: AdmissionOptions, lengths: KnownLengths | None, seed: int) -> AdmissionCore:
        """Return the core that decides; a subclass may record it."""
        return AdmissionCore(options, link=self.machine.link, lengths=lengths, seed=seed)

    # Requests come, and get their verdict.

    def arrive(self, request: SimRequest) -> None:
        """Take a request that has come to the cluster."""
        self._workers.join_again()
        if not self.core.cluster.groups():
            self._without_workers.append(request)
            self._tick_later()
        elif self.choices.admission:
            self._waiting[request.request_id] = request
            self.core.arrived(arrival_of(request, length_known=self.choices.knowledge.lengths))
            self._have_round(self.core.next_round_s)
        else:
            self._take_without_asking(request)

    def step_ended(self, engine: Engine) -> None:
        """Let those who wait have what a step has freed."""
        self._workers.loaded(engine, self.events.now_s)
        self.core.grew(engine.worker_id, engine.stream_tokens)
        self._fill(engine.worker_id)
        if self._some_ended:
            self._some_ended = False
            self._pump()
        self._changed()

    def _changed(self) -> None:
        if self.core.pending:
            self._have_round(self.core.next_round_s)

    def _have_round(self, at_s: float) -> None:
        now_s = self.events.now_s
        at_s = now_s + max(
            0.0, at_s - now_s
        )  # To the last bit what a timer that is set for the difference makes of it.
        if at_s < self._round_at_s:
            self._round_at_s = at_s
            self.events.at(at_s, self._run_round)

    def _run_round(self) -> None:
        now_s = self.events.now_s
        if self._round_at_s != now_s:
            return  # An earlier round was asked for since, and has been.
        self._round_at_s = math.inf
        self._workers.join_again()
        if self.core.pending:
            decided = self.core.decide(now_s)
            for verdict in decided.verdicts:
                if not isinstance(verdict.answer, Held):
                    self._settle(self._waiting.pop(verdict.request_id), verdict.outcome, verdict.answer)
            if decided.replan_at_s < math.inf:
                self._have_round(decided.replan_at_s)
            self.core.planning_took(now_s, PLANNING_S)
        for given in self.core.give_room(now_s):
            kept = given.request
            assert isinstance(kept, Admitted)
            kept.planned = True
            kept.rank_s = given.placement.due_s
            self._move(kept, given.placement)
            self._fill(kept.prompt_worker_id)

    def _settle(self, request: SimRequest, outcome: Outcome, answer: Assessment | Unservable) -> None:
        if answer is Unservable.NO_WORKER:
            # Its client is told when to come back, and does.
            self._without_workers.append(request)
            self._tick_later()
            return
        if isinstance(answer, Unservable) or outcome is Outcome.REFUSED:
            self.refuse(request)
            return
        request.guaranteed = outcome is Outcome.GUARANTEED
        if request.guaranteed or self.choices.best_effort:
            self._take(request, answer.placement, promised=request.guaranteed)
        else:
            self.refuse(request)

    def _take_without_asking(self, request: SimRequest) -> None:
        """Take a request as if promised, where its first token comes soonest."""
        kept = self._kept(request, "", "", promised=True, rank_s=request.due_s)
        placement = self.core.place_again(kept, self.events.now_s)
        if isinstance(placement, Unservable):
            self.refuse(request)
        else:
            self._take(request, placement, promised=True)

    def _take(self, request: SimRequest, placement: Placement, *, promised: bool) -> None:
        first, then = placement.prefill_worker_id, placement.decode_worker_id
        self.core.filed(self._kept(request, first, then, promised=promised, rank_s=placement.due_s))
        self._fill(first)
        self._tick_later()

    def _kept(self, request: SimRequest, first: str, then: str, *, promised: bool, rank_s: float) -> Admitted:
        facts = arrival_of(request, length_known=self.choices.knowledge.lengths).facts
        kept = Admitted(request, facts, first, then, guaranteed=promised, planned=promised, rank_s=rank_s)
        request.placed = kept
        return kept

    # What waits in the router.

    def _tick_later(self) -> None:
        if not self._ticking and (self._without_workers or self.core.requests.queued_count()):
            self._ticking = True
            self.events.at(self.events.now_s + TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._workers.join_again()
        came, self._without_workers = self._without_workers, []
        for request in came:
            self.arrive(request)
        self._pump()
        if self.core.wants_round(self.events.now_s):
            self._have_round(self.core.next_round_s)
        self._tick_later()

    def _pump(self) -> None:
        """Place again what waits for a worker that is gone, and let every worker have what it has room for."""
        for waiting in self.core.requests.queued():
            workers = waiting.prompt_worker_id, waiting.decode_worker_id
            if not all(self.core.cluster.usable(worker_id) for worker_id in workers):
                placement = self.core.place_again(waiting, self.events.now_s)
                if isinstance(placement, Placement) and isinstance(waiting, Admitted):
                    self._move(waiting, placement)
        for worker_id in self._workers.engines:
            self._fill(worker_id)

    def _move(self, kept: Admitted, placement: Placement) -> None:
        if kept.progress is Progress.QUEUED:
            kept.prompt_worker_id = placement.prefill_worker_id
        kept.decode_worker_id = placement.decode_worker_id
        self.core.filed(kept)

    def _fill(self, worker_id: str) -> None:
        now_s = self.events.now_s
        for submission in self.core.to_submit(worker_id, now_s):
            kept = submission.request
            assert isinstance(kept, Admitted)
            request = kept.request
            kept.believed_cached_tokens = submission.believed_cached_tokens
            kept.submitted_s = now_s
            kept.progress = Progress.PREFILLING
            request.export = kept.decode_worker_id != worker_id
            self._pace(request, worker_id)
            self.core.promised_kv_tokens(kept)  # A router tells the worker with the prompt.
            engine = self._workers.engines[worker_id]
            kept.cached_tokens = engine.prefixes.peek(request.offered)
            self.core.filed(kept)
            engine.submit(request)

    def _pace(self, request: SimRequest, worker_id: str) -> None:
        """Tell an engine what is owed to a request there: nothing, once what was never promised has missed."""
        kept, work = admitted(request), request.work
        work.best_effort = not kept.planned
        lost = work.best_effort and request.missed
        first = not request.generated and kept.planned
        work.due_s = math.inf if lost else min(request.due_s, kept.rank_s) if first else request.due_s
        work.tpot_s = math.inf if lost or request.export else request.tpot_s
        steps = self._steps.get(worker_id)
        if steps is not None and kept.planned:
            steps.note(work.tpot_s, self.events.now_s)

    # What engines do.

    def _stepped(self, engine: Engine, shape: StepShape, seconds: float) -> None:
        self._workers.stepped(engine, shape, seconds, self.events.now_s)

    def first_token(self, engine: Engine, request: SimRequest) -> None:
        """Hand a request over to the worker that decodes it."""
        self._prompt_computed(request)
        admitted(request).submitted_s = self.events.now_s
        super().first_token(engine, request)

    def decoder_of(self, request: SimRequest) -> Engine:
        """Return where a request goes on whose first token has come elsewhere."""
        kept = admitted(request)
        kept.progress = Progress.HANDOVER
        if not self.core.cluster.usable(kept.decode_worker_id):
            placement = self.core.place_again(kept, self.events.now_s)
            if isinstance(placement, Placement):
                kept.decode_worker_id = placement.decode_worker_id
        self.core.filed(kept)
        request.export = False
        self._pace(request, kept.decode_worker_id)
        self.core.promised_kv_tokens(kept)
        return self._workers.engines[kept.decode_worker_id]

    def prompt_done(self, engine: Engine, request: SimRequest) -> None:
        """Note that a request decodes from now on where it is."""
        kept = admitted(request)
        if kept.progress is Progress.DECODING:
            self._grew_uncounted(engine, request)
            return
        if kept.progress is Progress.PREFILLING:
            self._prompt_computed(request)
        elif (moved := self._moved.pop(request.request_id, None)) is not None:
            kv_bytes, transfer_s = moved
            wait_s = engine.step_began_s - kept.submitted_s
            kept.untold_tokens = 1
            self.core.handed_over(kept, kv_bytes, transfer_s, wait_s, self.events.now_s)
            kept.untold_tokens = 0
        kept.progress = Progress.DECODING
        self.core.filed(kept)

    def _prompt_computed(self, request: SimRequest) -> None:
        kept = admitted(request)
        self.core.prompt_computed(kept, kept.believed_cached_tokens, kept.cached_tokens)
        # Room in the plan that came of waiting was for the prompt.
        kept.planned = kept.guaranteed

    def handed_over(self, source: Source, engine: Engine, request: SimRequest, transfer_s: float) -> None:
        """Note how a KV cache has moved; a router hears of it with the first token that comes of it."""
        self._moved[request.request_id] = source.tokens * self.machine.kv_bytes_per_token, transfer_s

    def ended(self, engine: Engine, request: SimRequest) -> None:
        """Note that a request has all its tokens."""
        self._grew_uncounted(engine, request)
        if admitted(request).progress is Progress.PREFILLING:
            self._prompt_computed(request)
        self.core.removed(admitted(request), complete=True)
        self._some_ended = True
        super().ended(engine, request)

    def _grew_uncounted(self, engine: Engine, request: SimRequest) -> None:
        """Count the token of a stream whose context was computed again after a preemption: its engine does not."""
        if admitted(request).progress is Progress.DECODING and not request.work.decoding:
            self.core.grew(engine.worker_id, 1)

    def lost(self, engine: Engine, requests: Sequence[SimRequest]) -> None:
        """Start requests again whose worker failed, from the last token they had."""
        self.core.left(engine.worker_id)
        now_s = self.events.now_s
        for request in requests:
            kept = admitted(request)
            kept.planned = kept.guaranteed
            kept.rank_s = min(now_s, request.due_s)
            kept.progress = Progress.QUEUED
            self.core.filed(kept)
        self._pump()
        self._tick_later()

    def _drafts_of(self, request: SimRequest) -> int:
        kept = admitted(request)
        if request.missed and not kept.planned:
            return 0
        return self.core.planned_drafts(kept)
