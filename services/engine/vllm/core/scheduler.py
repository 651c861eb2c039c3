"""The scheduler that measures vLLM's steps and keeps leases. It runs inside EngineCore and is given to vLLM by name."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import RequestStatus

from services.engine.kv.handle import LeaseOutcome
from services.engine.protocol import EngineLoad, Scheduling
from services.engine.vllm import plugin
from services.engine.vllm.core.draft_worker import may_draft
from services.engine.vllm.core.kv_connector import LeasingConnector
from services.engine.vllm.core.scheduling_figures import SchedulingFigures
from services.engine.vllm.core.step_shape import step_shape
from services.engine.vllm.shared.carried_output import carried_tokens
from services.engine.vllm.shared.core_report import STATS_KEY, CoreReport
from services.engine.vllm.shared.support import UnsupportedVllmError, require_attributes, require_supported_vllm
from services.slo.performance import StepShape

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
    from vllm.v1.request import Request


@dataclass(frozen=True, slots=True)
class RunningStep:
    """A step that was planned and whose output has not come yet."""

    planned_at_s: float
    """Time at which the plan was made, on the monotonic clock."""
    shape: StepShape
    predicted_s: float = 0.0
    """Seconds that the step is expected to take; 0 if nothing is expected."""
    bound_s: float = 0.0
    """Seconds that the step is not expected to exceed."""
    compose_s: float = 0.0
    """Seconds that it took to compose the step."""


class ServingScheduler(Scheduler):
    """The scheduler measures each step, keeps count of leases, and reports both with the step's own output.

    Which requests run and how many tokens each gets is vLLM's decision here; only the mechanics around it are extended.
    """

    REMOTE_METHODS = frozenset({"kv_facts", "release_lease", "scheduling_figures"})
    """Methods that the front end may call through the control channel."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        plugin.register()
        require_supported_vllm()
        super().__init__(*args, **kwargs)
        require_attributes(
            self, "requests", "running", "waiting", "kv_holding_waiting", "kv_cache_manager", "connector"
        )
        require_attributes(self.kv_cache_manager.block_pool, "get_num_free_blocks", "num_gpu_blocks")
        connector_scheduler = getattr(self.connector, "connector_scheduler", None)
        if not isinstance(connector_scheduler, LeasingConnector):
            raise UnsupportedVllmError(f"the KV connector is {type(self.connector).__name__}, not ours")
        self._kv = connector_scheduler
        self._running_steps: dict[int, RunningStep] = {}
        self._last_step_end_s = 0.0
        self._steps = 0
        self._step_duration_s = 0.0
        self._step_shape = StepShape()
        self._aborted: list[Request] = []
        self._leases: dict[str, frozenset[int]] = {}
        self._leased_blocks = 0
        self._closed_leases: dict[str, LeaseOutcome] = {}
        self._reported_load: EngineLoad | None = None
        self._scheduling = Scheduling()
        self._prefilled: dict[str, int] = {}
        self.figures = SchedulingFigures()

    def kv_facts(self) -> dict[str, int]:
        """Return the sizes of the KV cache, for the front end. Bytes are those of one tensor parallel rank."""
        groups = self.kv_cache_config.kv_cache_groups
        return {
            "blocks": self._total_blocks(),
            "block_tokens": self.block_size,
            "block_bytes": sum(len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in groups),
            "groups": len(groups),
        }

    def release_lease(self, lease_id: str) -> None:
        """Free a lease's blocks with the next step. Unknown and closed leases are ignored."""
        if lease_id in self._leases:
            self._kv.release(lease_id)

    def scheduling_figures(self) -> dict[str, float]:
        """Return how scheduling has gone so far; see `SchedulingFigures`."""
        return self.figures.to_wire()

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        began_s = time.perf_counter()
        plan = self._plan(*args, **kwargs)
        shape = step_shape(self.requests, plan) if plan.total_num_scheduled_tokens else StepShape()
        self._running_steps[id(plan)] = self._begun(shape)
        if shape.tokens:
            self.figures.scheduled(time.perf_counter() - began_s)
        return plan

    def _plan(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        return super().schedule(*args, **kwargs)

    def _begun(self, shape: StepShape) -> RunningStep:
        return RunningStep(time.monotonic(), shape)

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        super().update_draft_token_ids(draft_token_ids)
        for request_id in draft_token_ids.req_ids:
            request = self.requests.get(request_id)
            if request is not None and request.spec_token_ids:
                request.spec_token_ids = request.spec_token_ids[: self._draft_limit(request)]

    def _draft_limit(self, request: Request) -> int:
        """Return how many drafts of a request its next step may verify."""
        params = request.sampling_params
        return int(self.num_spec_tokens) if may_draft(params, carried_tokens(params)) else 0

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        now_s = time.monotonic()
        step = self._running_steps.pop(id(scheduler_output))
        # With asynchronous scheduling a step is planned while the one before it still runs.
        self._step_duration_s = now_s - max(step.planned_at_s, self._last_step_end_s)
        self._step_shape = step.shape
        self._last_step_end_s = now_s
        aborted, self._aborted = self._aborted, []
        if step.shape.tokens or aborted:
            self._reported_load = None
        if step.shape.tokens:
            self._scheduling = self.figures.of_step(step.predicted_s, step.bound_s, step.compose_s)
        began_s = time.perf_counter()
        # Calls `make_stats`: what is reported must be there by now.
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
        for request in aborted:
            last = EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ABORT)
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(last)
        self._prefilled = self._computed_in_part(scheduler_output, outputs)
        if step.shape.tokens:
            self._step_ended(scheduler_output, step, outputs)
            self.figures.updated(time.perf_counter() - began_s)
        return outputs

    def _computed_in_part(self, plan: SchedulerOutput, outputs: Mapping[int, EngineCoreOutputs]) -> dict[str, int]:
        """Return how many tokens are computed of requests that got something in this step and no token yet."""
        answered = {output.request_id for of_client in outputs.values() for output in of_client.outputs}
        return {
            request_id: int(self.requests[request_id].num_computed_tokens)
            for request_id in plan.num_scheduled_tokens
            if request_id in self.requests and request_id not in answered
        }

    def _step_ended(self, plan: SchedulerOutput, step: RunningStep, outputs: Mapping[int, EngineCoreOutputs]) -> None:
        """Take note of the end of a step that computed something and took `_step_duration_s`."""

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """Return the statistics of this step with its report in them; None if there is nothing to tell.

        While a lease is open EngineCore steps about a thousand times a second without work.
        """
        load = self._load()
        if load == self._reported_load and not self._closed_leases and not self._kv.has_news():
            return None
        self._reported_load = load
        self._steps += 1
        pulls, recomputes = self._kv.take_news()
        closed, self._closed_leases = self._closed_leases, {}
        report = CoreReport(
            step=self._steps,
            duration_s=self._step_duration_s,
            shape=self._step_shape,
            load=load,
            closed_leases=closed,
            pulls=pulls,
            recomputes=recomputes,
            scheduling=self._scheduling,
            prefilled=self._prefilled,
        )
        stats: SchedulerStats | None = super().make_stats(*args, **kwargs)
        if stats is not None:
            stats.kv_connector_stats = {STATS_KEY: report.to_wire()}
        return stats

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        finished: list[Request] = super().finish_requests(request_ids, finished_status)
        if finished_status == RequestStatus.FINISHED_ABORTED:
            self._aborted.extend(finished)
        return finished

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> tuple[Any, Any]:
        kv_params, ec_params = super()._free_request(request, delay_free_blocks=delay_free_blocks)
        if kv_params and kv_params.get("do_remote_prefill"):
            groups = self.kv_cache_manager.get_block_ids(request.request_id)
            self._leases[request.request_id] = frozenset(block for group in groups for block in group)
            self._count_leased()
        return kv_params, ec_params

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        if self._leases.pop(request.request_id, None) is not None:
            self._closed_leases[request.request_id] = self._kv.take_outcome(request.request_id)
            self._count_leased()

    def _count_leased(self) -> None:
        self._leased_blocks = len(frozenset().union(*self._leases.values()))

    def _total_blocks(self) -> int:
        # One block is vLLM's placeholder and never holds tokens.
        return int(self.kv_cache_manager.block_pool.num_gpu_blocks) - 1

    def _load(self) -> EngineLoad:
        total = self._total_blocks()
        return EngineLoad(
            running_requests=len(self.running),
            waiting_requests=len(self.waiting) + len(self.kv_holding_waiting),
            kv_blocks_total=total,
            kv_blocks_used=total - self.kv_cache_manager.block_pool.get_num_free_blocks(),
            kv_blocks_leased=self._leased_blocks,
        )


class AsyncServingScheduler(ServingScheduler, AsyncScheduler):
    """The measuring scheduler for engines that plan a step while the one before it runs."""
