"""The messages of EngineCore, one for each step, turned into events of the port."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from services.engine.protocol import EngineEvent, EngineLoad, EngineStep, LeaseClosed, RequestOutput
from services.engine.vllm.frontend.kv_backend import export
from services.engine.vllm.frontend.outputs import translate
from services.engine.vllm.shared.core_report import STATS_KEY, CoreReport
from services.slo.performance import StepShape

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs

    from services.engine.kv.handle import KvHandle
    from services.engine.vllm.frontend.kv_backend import VllmHandOver
    from services.engine.vllm.frontend.live_requests import LiveRequests


class CoreMessages:
    """Reads the messages of one EngineCore, and keeps live requests and leases up to date with them."""

    def __init__(self, live: LiveRequests, kv: VllmHandOver, kv_blocks: int) -> None:
        """
        Args:
            kv_blocks: number of KV blocks of the engine.
        """
        self.load = EngineLoad(0, 0, kv_blocks, 0, 0)
        """Requests and blocks that EngineCore holds, as last heard."""
        self._live = live
        self._kv = kv
        self._steps = 0

    def events(self, message: EngineCoreOutputs) -> Iterator[EngineEvent]:
        """Yield what a message means: a step if it brings outputs or computed anything, then leases that have ended."""
        report = _report(message)
        if report is not None:
            self.load = report.load
            self._note_transfers(report)
        outputs = tuple(self._outputs(message.outputs, message.timestamp))
        if report is not None and report.shape.tokens:
            self._steps += 1
            outputs += tuple(self._progress(report))
            yield EngineStep(self._steps, report.duration_s, report.shape, outputs, report.load, report.scheduling)
        elif outputs:
            yield self.without_computation(outputs)
        for lease_id, outcome in {} if report is None else report.closed_leases.items():
            self._kv.closed(lease_id, outcome)
            yield LeaseClosed(lease_id, outcome)

    def without_computation(self, outputs: tuple[RequestOutput, ...]) -> EngineStep:
        """Return a step for outputs that came without any computation."""
        self._steps += 1
        return EngineStep(self._steps, 0.0, StepShape(), outputs, self.load)

    def _progress(self, report: CoreReport) -> Iterator[RequestOutput]:
        """Yield an output for each prompt of which the step computed a part."""
        for core_id, tokens in report.prefilled.items():
            live = self._live.in_core(core_id)
            if live is not None:
                yield RequestOutput(live.request.request_id, (), prefilled_tokens=tokens)

    def _note_transfers(self, report: CoreReport) -> None:
        for core_id, pull in report.pulls.items():
            live = self._live.in_core(core_id)
            if live is not None:
                live.pulled(pull)
        for core_id, reason in report.recomputes.items():
            live = self._live.in_core(core_id)
            if live is not None:
                live.recompute(reason)

    def _outputs(self, outputs: Sequence[EngineCoreOutput], step_at_s: float) -> Iterator[RequestOutput]:
        for output in outputs:
            live = self._live.in_core(output.request_id)
            if live is None:
                continue
            if output.new_token_ids:
                live.end_claim()
            if output.finish_reason is not None:
                self._live.forget(live)
            yield translate(live, output, step_at_s, self._exported(live.core_id, output))

    def _exported(self, core_id: str, output: EngineCoreOutput) -> KvHandle | None:
        params = output.kv_transfer_params
        if params is None or not params.get("do_remote_prefill"):
            return None
        return export(self._kv, core_id, params)


def _report(message: EngineCoreOutputs) -> CoreReport | None:
    stats = message.scheduler_stats
    wire = None if stats is None else (stats.kv_connector_stats or {}).get(STATS_KEY)
    return None if wire is None else CoreReport.from_wire(wire)
