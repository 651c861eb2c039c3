"""The state that engine steps change: where each request is and what it has computed. Time is an argument."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

from services.engine.emulated.active_request import ActiveRequest, Export, Progress
from services.engine.emulated.blocks import KvBlocks
from services.engine.emulated.tokens import TokenStream, Vocabulary
from services.engine.kv.handle import KvPull
from services.engine.protocol import (
    EngineLoad,
    EngineRequest,
    FinishReason,
    RequestOutput,
    TokenLogprob,
)
from services.model.misfit import misfit
from services.slo.composer import Composition, Limits, SchedulableRequest, TightestTpot, TokenDeadlines
from services.slo.kv_blocks import blocks_for

logger = logging.getLogger(__name__)

Composer = Callable[[Sequence[SchedulableRequest], int], Composition]
"""Function that composes a step from everything there is and the number of free blocks."""


class Core:
    """The requests of an engine: each is waiting, pulling or running, and holds blocks in the latter two only."""

    def __init__(self, limits: Limits, kv_blocks: int, max_context_tokens: int, vocabulary: Vocabulary) -> None:
        self.blocks = KvBlocks(kv_blocks)
        self.max_context_tokens = min(max_context_tokens, kv_blocks * limits.block_tokens)
        self._limits = limits
        self._vocabulary = vocabulary
        self._waiting: OrderedDict[str, ActiveRequest] = OrderedDict()
        self._pulling: dict[str, ActiveRequest] = {}
        self._running: dict[str, ActiveRequest] = {}
        self._requests: dict[str, ActiveRequest] = {}
        self._in_step: frozenset[str] = frozenset()
        self.tightest_tpot = TightestTpot()
        """Tightest TPOT of the streams that were promised here lately."""
        self.contracts_malformed = 0
        """Number of requests treated as best effort because their figures make no sense."""

    def refusal(self, request: EngineRequest) -> str | None:
        """Return why no engine like this one can take a request; None if it can be taken."""
        tokens = len(request.token_ids)
        if request.request_id in self._requests:
            return f"request id {request.request_id!r} is in use"
        if not 0 <= request.generated_tokens <= tokens:
            return f"generated_tokens is {request.generated_tokens} of {tokens} tokens"
        if request.generated_tokens == tokens:
            return "the prompt is empty"
        if request.sampling.max_tokens <= request.generated_tokens:
            return f"max_tokens is {request.sampling.max_tokens}, {request.generated_tokens} are generated already"
        unfit = misfit(request.token_ids, self._vocabulary.size, self.max_context_tokens)
        return None if unfit is None else unfit.detail

    def submit(self, request: EngineRequest, now_s: float) -> None:
        """Queue a request that `refusal` lets pass."""
        stream = TokenStream(
            self._vocabulary, request.sampling, request.token_ids, request.generated_tokens, self.max_context_tokens
        )
        deadlines = self._deadlines(request, now_s)
        schedulable = SchedulableRequest(
            request_id=request.request_id,
            computed_tokens=0,
            pending_tokens=stream.context_tokens,
            decoding=False,
            running=False,
            held_blocks=0,
            due_s=deadlines.due_s,
            tpot_s=deadlines.tpot_s,
            best_effort=request.best_effort,
            waiting_since_s=now_s,
            pulls_kv=request.kv_source is not None,
        )
        active = ActiveRequest(request, stream, now_s, request.kv_source, deadlines, schedulable)
        self._requests[request.request_id] = active
        self._waiting[request.request_id] = active
        self._note_pace(active, now_s)

    def begin_step(self, now_s: float, composer: Composer) -> tuple[Composition, tuple[ActiveRequest, ...]]:
        """Compose a step, and return it with the requests whose KV is to be pulled from now on.

        `complete_step` must follow before the next one, unless the step computes nothing.
        """
        everything = (*self._running.values(), *self._pulling.values(), *self._waiting.values())
        composition = composer([active.schedulable for active in everything], self.blocks.free)
        for request_id in composition.preempted:
            self._preempt(self._running.pop(request_id))
        pulls = []
        for request_id in composition.admitted:
            active = self._waiting.pop(request_id)
            active.schedulable.running = True
            self._hold_for(active, active.schedulable.pending_tokens)
            if active.kv_source is None:
                self._running[request_id] = active
            else:
                self._pulling[request_id] = active
                pulls.append(active)
        for request_id, tokens in composition.grants.items():
            active = self._running[request_id]
            self._hold_for(active, tokens)
            if active.first_scheduled_s is None:
                active.first_scheduled_s = now_s
        self._in_step = frozenset(composition.grants)
        return composition, tuple(pulls)

    def complete_step(self, composition: Composition, now_s: float) -> tuple[Progress, ...]:
        """Take in what a step computed, and return its outputs."""
        self._in_step = frozenset()
        progress = []
        for request_id, tokens in composition.grants.items():
            active = self._running[request_id]
            if active.aborted:
                progress.append(self._aborted(active, now_s))
                continue
            active.note_computed(active.schedulable.computed_tokens + tokens)
            if active.schedulable.pending_tokens == 0:
                progress.append(self._draw(active, now_s))
            else:
                progress.append(
                    Progress(RequestOutput(request_id, (), prefilled_tokens=active.schedulable.computed_tokens))
                )
        return tuple(progress)

    def land(self, active: ActiveRequest, tokens: int, pull: KvPull) -> None:
        """Take in a pull that brought the KV of the first `tokens` tokens, unless the request has ended meanwhile."""
        if self._stop_pulling(active):
            active.note_computed(min(tokens, active.stream.context_tokens - 1))
            active.kv_pull = pull

    def recompute(self, active: ActiveRequest, reason: str) -> None:
        """Have a KV cache computed here, because its pull brought nothing, unless the request has ended meanwhile."""
        if self._stop_pulling(active):
            active.kv_recompute_reason = reason

    def abort(self, request_id: str, now_s: float) -> Progress | None:
        """End a request and return its last output.

        One that a step is computing ends with that step, and None is returned. None is also returned for requests that
        are unknown or finished.
        """
        active = self._requests.get(request_id)
        if active is None:
            return None
        if request_id in self._in_step:
            active.aborted = True
            return None
        return self._aborted(active, now_s)

    def load(self) -> EngineLoad:
        return EngineLoad(
            running_requests=len(self._running),
            waiting_requests=len(self._waiting) + len(self._pulling),
            kv_blocks_total=self.blocks.total,
            kv_blocks_used=self.blocks.used,
            kv_blocks_leased=self.blocks.leased,
        )

    def _draw(self, active: ActiveRequest, now_s: float) -> Progress:
        request = active.request
        export: Export | None = None
        digest = active.stream.context_digest() if request.export_kv else ""
        draw = active.stream.draw()
        active.note_token(now_s)
        finish_reason = draw.finish_reason
        if finish_reason is None and request.export_kv:
            finish_reason = FinishReason.LENGTH
            export = Export(active.schedulable.computed_tokens, active.schedulable.held_blocks, digest)
            self.blocks.lease(active.schedulable.held_blocks)
            active.schedulable.held_blocks = 0
        if finish_reason is not None:
            self._note_pace(active, now_s)
            self._forget(active)
        logprobs: tuple[tuple[TokenLogprob, ...], ...] = () if draw.logprobs is None else (draw.logprobs,)
        output = RequestOutput(
            request_id=request.request_id,
            token_ids=(draw.token_id,),
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_token_id=draw.stop_token_id,
            timings=active.first_timings(now_s),
        )
        return Progress(output, export)

    def _aborted(self, active: ActiveRequest, now_s: float) -> Progress:
        self._forget(active)
        output = RequestOutput(
            active.request.request_id, (), finish_reason=FinishReason.ABORT, timings=active.first_timings(now_s)
        )
        return Progress(output)

    def _preempt(self, active: ActiveRequest) -> None:
        self._hold(active, -active.schedulable.held_blocks)
        active.note_computed(0)
        active.schedulable.decoding = active.schedulable.running = False
        if active.kv_pull is not None and not active.reported:
            active.kv_pull = None
            active.kv_recompute_reason = "the KV blocks ran out after the pull"
        self._waiting[active.request.request_id] = active
        self._waiting.move_to_end(active.request.request_id, last=False)

    def _stop_pulling(self, active: ActiveRequest) -> bool:
        request_id = active.request.request_id
        if self._pulling.get(request_id) is not active:
            return False
        self._running[request_id] = self._pulling.pop(request_id)
        active.kv_source = None
        active.schedulable.pulls_kv = False
        return True

    def _hold_for(self, active: ActiveRequest, tokens: int) -> None:
        """Hold the blocks that a request needs for so many tokens more than are computed."""
        needed = blocks_for(active.schedulable.computed_tokens + tokens, self._limits.block_tokens)
        self._hold(active, max(0, needed - active.schedulable.held_blocks))

    def _hold(self, active: ActiveRequest, blocks: int) -> None:
        self.blocks.hold(blocks)
        active.schedulable.held_blocks += blocks

    def _note_pace(self, active: ActiveRequest, now_s: float) -> None:
        if not active.request.best_effort:
            self.tightest_tpot.note(active.deadlines.tpot_s, now_s)

    def _forget(self, active: ActiveRequest) -> None:
        self._hold(active, -active.schedulable.held_blocks)
        request_id = active.request.request_id
        del self._requests[request_id]
        for place in (self._running, self._pulling, self._waiting):
            place.pop(request_id, None)

    def _deadlines(self, request: EngineRequest, now_s: float) -> TokenDeadlines:
        """Return the deadlines of a new request.

        A prefill that is handed on decodes elsewhere and has no TPOT here. Figures that make no sense promise nothing.
        """
        tpot_s = None if request.export_kv else request.tpot_s
        try:
            return TokenDeadlines.begin(
                now_s, request.deadline_in_s, tpot_s, request.generated_tokens, best_effort=request.best_effort
            )
        except ValueError as error:
            self.contracts_malformed += 1
            logger.warning("request %s is served as best effort: %s", request.request_id, error)
            return TokenDeadlines()
