"""The scheduler that makes vLLM do what the step composer chose. It runs inside EngineCore and is given by name."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from services.engine.step_recording import StepRecorder
from services.engine.vllm.core.schedulable_requests import SchedulableRequests, WaitingStates
from services.engine.vllm.core.scheduler import RunningStep, ServingScheduler
from services.engine.vllm.shared.control_channel import CONFIG_KEY
from services.engine.vllm.shared.prior import known_performance
from services.engine.vllm.shared.support import UnsupportedVllmError, require_attributes, require_parameters
from services.slo.composer import ComposerPolicy, Composition, Limits, compose
from services.slo.composer.recorded_step import ComposedStep
from services.slo.fitting import StepTimeFit
from services.slo.step_coverage import STEP_COVERAGE

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.request import Request

    from services.engine.vllm.core.drafting import DraftBook
    from services.slo.performance import StepShape


class ComposedScheduler(ServingScheduler):
    """The scheduler decides who runs and how many tokens each gets; blocks, prefix cache and outputs stay vLLM's.

    For one call of vLLM's `schedule` the queues hold, in the composer's order, what may run, and
    `_reserve_prefill_lookahead`, which vLLM asks about every request, cuts each to what it was granted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _require_known_scheduler(self)
        self._limits = Limits(self.max_num_scheduled_tokens, self.max_num_active_reqs, self.block_size)
        self._policy = ComposerPolicy()
        self._fit = StepTimeFit(known_performance(self.vllm_config.model_config.hf_text_config))
        config = (self.vllm_config.additional_config or {}).get(CONFIG_KEY, {})
        self._drafts = self._draft_book(always=bool(config.get("draft_always")))
        recording = config.get("record_steps")
        self._recorder = StepRecorder(Path(recording)) if recording else None
        states = WaitingStates(RequestStatus.WAITING, RequestStatus.PREEMPTED, RequestStatus.WAITING_FOR_REMOTE_KVS)
        self._schedulable = SchedulableRequests(self.block_size, states, self.figures.counts)
        self._grants: dict[str, int] | None = None
        """Tokens of each request in the step that vLLM is planning; None while vLLM is asked by somebody else."""
        self._now_s = 0.0
        self._compose_s = 0.0
        """Seconds that it took to compose the step that is being planned."""

    def _draft_book(self, *, always: bool) -> DraftBook | None:
        if not self.num_spec_tokens:
            return None
        if self.dynamic_sd_lookup is None:
            raise UnsupportedVllmError("speculation is on, but requests would be padded with drafts nobody made")
        from services.engine.vllm.core.drafting import DraftBook

        return DraftBook(self.num_spec_tokens, always=always)

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        self._schedulable.begin(request, self._clock())
        if self._drafts is not None and super()._draft_limit(request):
            self._drafts.begin(request.request_id, self._schedulable.application(request.request_id))

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> tuple[Any, Any]:
        self._schedulable.end(request.request_id)
        if self._drafts is not None:
            self._drafts.end(request.request_id)
        return super()._free_request(request, delay_free_blocks=delay_free_blocks)

    def _clock(self) -> float:
        """Return a time that never goes back, whatever the host's clock does."""
        self._now_s = max(self._now_s, time.monotonic())
        return self._now_s

    def _plan(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if not (self.running or self.waiting or self.kv_holding_waiting):
            # Nothing but leases and notices: EngineCore asks a thousand times a second.
            return super()._plan(*args, **kwargs)
        composition = self._compose(self._clock())
        with self._applied(composition):
            plan = super()._plan(*args, **kwargs)
        self.figures.counts["held"] += len(composition.held)
        if self._drafts is not None:
            lengths = (self._draft_limit(self.requests[request_id]) for request_id in plan.num_scheduled_tokens)
            plan.num_spec_tokens_to_schedule = max(lengths, default=0)
        return plan

    def _begun(self, shape: StepShape) -> RunningStep:
        predicted_s, bound_s = self._fit.model().step_s(shape), self._fit.bound(STEP_COVERAGE).step_s(shape)
        return RunningStep(time.monotonic(), shape, predicted_s, bound_s, self._compose_s)

    def _compose(self, now_s: float) -> Composition:
        requests = self._schedulable.brought_up_to_date(self)
        free_blocks = self.kv_cache_manager.block_pool.get_num_free_blocks()
        began_s = time.perf_counter()
        bound = self._fit.bound(STEP_COVERAGE)
        begins_s = self._begins_s(now_s)
        composition = compose(requests, free_blocks, bound, self._limits, begins_s, self._policy)
        self._compose_s = time.perf_counter() - began_s
        if composition.grants:
            self.figures.composed(self._compose_s)
            if self._recorder is not None:
                self._recorder.begin(
                    ComposedStep(requests, free_blocks, bound, self._limits, self._policy, begins_s, composition)
                )
        return composition

    def _begins_s(self, now_s: float) -> float:
        """Return when the next step begins: not before the one that is under way ends."""
        for step in self._running_steps.values():
            now_s = max(now_s, step.planned_at_s + step.predicted_s)
        return now_s

    @contextmanager
    def _applied(self, composition: Composition) -> Iterator[None]:
        """Let vLLM see what the composer chose, and afterwards put back what it did not choose."""
        for request_id in composition.preempted:
            self._give_up_blocks(self.requests[request_id])
        grants = dict(composition.grants)
        for request_id in composition.admitted:
            # A pull computes nothing in this step; if all of it is cached here already, what is left runs at once.
            grants.setdefault(request_id, self._schedulable.pending_tokens(request_id))
        place = {request_id: index for index, request_id in enumerate((*composition.admitted, *grants))}
        last = len(place)
        self.running.sort(key=lambda request: self._victim_order(request.request_id, place, last))
        hidden = [self._hide_others(queue, place) for queue in (self.waiting, self.kv_holding_waiting)]
        self._grants = grants
        try:
            yield
        finally:
            self._grants = None
            for queue, others in zip((self.waiting, self.kv_holding_waiting), hidden, strict=True):
                queue.extend(others)

    def _victim_order(self, request_id: str, place: dict[str, int], last: int) -> tuple[bool, int]:
        """Return where a running request stands in the order in which vLLM serves; the last loses its blocks first."""
        return self._schedulable.best_effort(request_id), place.get(request_id, last)

    def _hide_others(self, queue: FCFSRequestQueue, place: dict[str, int]) -> list[Request]:
        """Leave those in a queue that get something, in their order, and those that vLLM passes over by itself.

        Returns:
            The requests that were taken out.
        """
        shown: list[Request] = []
        others: list[Request] = []
        for request in queue:
            # A request whose KV has landed would stop vLLM's look through the queues if it got nothing.
            landed = request.request_id in self.finished_recving_kv_req_ids
            passed_over = self._is_blocked_waiting_status(request.status) and not landed
            (shown if passed_over or request.request_id in place else others).append(request)
        shown.sort(key=lambda request: place.get(request.request_id, len(place)))
        queue.clear()
        queue.extend(shown)
        return others

    def _give_up_blocks(self, request: Request) -> None:
        if request.status != RequestStatus.RUNNING or not self._request_blocks_can_be_freed(request):
            return
        self.running.remove(request)
        self._preempt_request(request, time.monotonic(), drop_stale_output=self.requires_kv_delivery)
        self.figures.counts["preempted"] += 1

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        tokens = int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
        return tokens if self._grants is None else min(tokens, self._grants.get(request.request_id, 0))

    def _draft_limit(self, request: Request) -> int:
        return 0 if self._drafts is None else self._drafts.length(request.request_id)

    def _step_ended(self, plan: SchedulerOutput, step: RunningStep, outputs: Mapping[int, EngineCoreOutputs]) -> None:
        self.figures.ran(step.predicted_s, step.bound_s, self._step_duration_s)
        self._fit.observe(step.shape, self._step_duration_s)
        if self._recorder is not None:
            self._recorder.end(self._step_duration_s)
        made = [output for each in outputs.values() for output in each.outputs if output.new_token_ids]
        now_s = self._clock()
        for output in made:
            self._schedulable.note_tokens(output.request_id, len(output.new_token_ids), now_s)
        if self._drafts is None or not made:
            return
        from services.engine.vllm.core.drafting import PromisedStream, StepPace, draft_room

        expected, bound = self._fit.model(), self._fit.bound(STEP_COVERAGE)
        pace = StepPace.of(step.shape, sum(len(output.new_token_ids) for output in made), expected)
        streams = []
        for output in made:
            request_id = output.request_id
            drafted = len(plan.scheduled_spec_decode_tokens.get(request_id, ()))
            tpot_s, left_s = self._schedulable.tpot_s(request_id), self._schedulable.due_s(request_id) - now_s
            self._drafts.add(request_id, len(output.new_token_ids), drafted, tpot_s, pace)
            streams.append(PromisedStream(tpot_s, self._drafts.relied_on(request_id), left_s))
        self._drafts.limit(draft_room(step.shape, streams, expected, bound, self.num_spec_tokens))
        self.figures.counts["drafted"] = self._drafts.drafted
        self.figures.counts["accepted"] = self._drafts.accepted

    def shutdown(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
        super().shutdown()


class AsyncComposedScheduler(ComposedScheduler, AsyncScheduler):
    """The composing scheduler for engines that plan a step while the one before it runs."""


def _require_known_scheduler(scheduler: Scheduler) -> None:
    require_parameters(Scheduler._reserve_prefill_lookahead, "request", "num_computed_tokens", "num_new_tokens")
    require_parameters(Scheduler._preempt_request, "request", "timestamp", "drop_stale_output")
    require_parameters(Scheduler._is_blocked_waiting_status, "status")
    require_parameters(Scheduler._request_blocks_can_be_freed, "request")
    require_attributes(
        scheduler,
        "max_num_scheduled_tokens",
        "max_num_active_reqs",
        "num_spec_tokens",
        "dynamic_sd_lookup",
        "finished_recving_kv_req_ids",
        "requires_kv_delivery",
    )
    for queue in (scheduler.waiting, scheduler.kv_holding_waiting):
        if not isinstance(queue, FCFSRequestQueue):
            raise UnsupportedVllmError(f"requests wait in a {type(queue).__name__} instead of a FCFSRequestQueue")
